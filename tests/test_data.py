"""bdl_lib.data: what is drawn has the stated distribution, what is real is the real thing, and damage is noticed.

Stochastic tests are seeded and state their false-alarm rate.
"""

import hashlib
import importlib.resources
import math
import urllib.error
import zipfile

import numpy as np
import pytest
import sklearn.datasets
import torch
from scipy import stats

from bdl_lib import data
from bdl_lib.data import breeds, pictures

inf, nan = math.inf, math.nan


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def uniform_pvalue(values):
    return stats.kstest(np.asarray(values), "uniform").pvalue


def normal_pvalue(values, mean=0.0, std=1.0):
    return stats.kstest(np.asarray(values), stats.norm(mean, std).cdf).pvalue


# ---- All of them: seeded, typed, with a card

DRAWN = {
    "line": lambda **kw: data.line(20, **kw),
    "sine_with_gap": lambda **kw: data.sine_with_gap(20, **kw),
    "dog_breeds": lambda **kw: data.dog_breeds(20, **kw),
    "unseen_animals": lambda **kw: data.unseen_animals(20, **kw),
    "breast_cancer": data.breast_cancer,
    "wine": data.wine,
    "diabetes": data.diabetes,
    "scenes": lambda **kw: data.scenes(3, unseen_prob=0.5, **kw),
}


def leaves(record):
    """Every tensor in a record and in the records inside it."""
    if isinstance(record, torch.Tensor):
        yield record
    elif isinstance(record, tuple):
        for part in record:
            yield from leaves(part)


def cards(record):
    """The cards of a record, or of the two halves of a split."""
    return [record.card] if hasattr(record, "card") else [record.train.card, record.test.card]


@pytest.mark.parametrize("name", DRAWN)
def test_a_seed_is_a_data_set(name):
    state = torch.get_rng_state()
    first, again, other = (list(leaves(DRAWN[name](generator=seeded(seed)))) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", DRAWN)
def test_dtype_and_device_are_as_asked(name):
    for dtype in (torch.float32, torch.float64):
        floats = [x for x in leaves(DRAWN[name](generator=seeded(), dtype=dtype)) if x.is_floating_point()]
        assert {x.dtype for x in floats} == {dtype}
    assert {x.dtype for x in leaves(DRAWN[name](generator=seeded())) if x.is_floating_point()} == {torch.float32}
    on_device = DRAWN[name](generator=torch.Generator("sim").manual_seed(0))
    assert {x.device.type for x in leaves(on_device)} == {"sim"}


@pytest.mark.parametrize("name", [*DRAWN, "digits"])
def test_cards_are_one_line_of_rows_columns_source_and_licence(name):
    record = data.digits() if name == "digits" else DRAWN[name](generator=seeded())
    for card in cards(record):
        assert "\n" not in card
        rows, *rest = card.split("; ")
        assert rows.split()[0].isdigit()
        assert rows.split("rows")[0]
        assert len(rest) >= 3 or name == "diabetes"
    halves = [record] if hasattr(record, "card") else [record.train, record.test]
    assert all(int(half.card.split()[0]) == len(half[0]) for half in halves)


# ---- Curves


@pytest.mark.parametrize(("make", "mean"), [(data.line, data.line_mean), (data.sine_with_gap, data.sine_mean)])
def test_noise_around_the_curve_is_normal_with_the_stated_std(make, mean):
    points = make(4_000, noise_std=0.3, generator=seeded())
    assert points.inputs.shape == (4_000, 1)
    noise = points.targets - mean(points.inputs[:, 0])
    assert normal_pvalue(noise, 0, 0.3) > 1e-3  # false alarms: 1 in 1,000
    clean = make(5, noise_std=0.0, generator=seeded())
    torch.testing.assert_close(clean.targets, mean(clean.inputs)[:, 0])


def test_curves_are_what_they_say():
    x = torch.tensor([[-1.0], [0.0], [0.5]])
    torch.testing.assert_close(data.line_mean(x), torch.tensor([[-0.5], [0.3], [0.7]]))
    torch.testing.assert_close(data.sine_mean(x), torch.tensor([[0.0], [0.0], [1.0]]), rtol=0, atol=1e-6)


def test_inputs_are_uniform_outside_the_gap():
    assert uniform_pvalue((data.line(4_000, generator=seeded()).inputs[:, 0] + 1) / 2) > 1e-3
    x = data.sine_with_gap(4_000, generator=seeded()).inputs[:, 0]
    left, right = x[x < 0.05], x[x > 0.05]
    assert -1 <= left.min() < left.max() <= -0.3
    assert 0.4 <= right.min() < right.max() <= 1
    assert uniform_pvalue((left + 1) / 0.7) > 1e-3  # false alarms: 1 in 1,000 each
    assert uniform_pvalue((right - 0.4) / 0.6) > 1e-3
    assert stats.binomtest(len(left), 4_000, 0.7 / 1.3).pvalue > 1e-3


# ---- Animals


@pytest.mark.parametrize(("make", "ranges"), [(data.dog_breeds, breeds._BREEDS), (data.unseen_animals, breeds._UNSEEN)])
def test_animals_fill_the_published_ranges(make, ranges):
    animals = make(4_000, generator=seeded(), dtype=torch.float64)
    assert animals.class_names == tuple(ranges)
    assert animals.labels.bincount().tolist() == [4_000] * 3
    for label, (male, female) in enumerate(ranges.values()):
        values = animals.inputs[animals.labels == label].numpy()
        for column in (0, 1):
            middle, quarter = (
                [(r[column][0] + s * r[column][1]) / d for r in (male, female)] for s, d in ((1, 2), (-1, -4))
            )
            mixture = [stats.norm(m, q) for m, q in zip(middle, quarter, strict=True)]
            pvalue = stats.kstest(values[:, column], lambda x, f=mixture: (f[0].cdf(x) + f[1].cdf(x)) / 2).pvalue
            assert pvalue > 1e-3  # false alarms: 1 in 1,000 each, so 1 in 160 for all six
        if male == female:  # no mixture: the correlation within a sex is that of all; standard error 0.01
            assert abs(np.corrcoef(values.T)[0, 1] - 0.6) < 0.04


def test_the_table_of_ranges_is_the_one_that_the_docstring_cites():
    """German shepherd: FCI-Standard No. 166; the others as in the docstring's table, inches and pounds converted."""
    assert breeds._BREEDS["German shepherd"] == (((60, 65), (30, 40)), ((55, 60), (22, 32)))
    assert breeds._BREEDS["chihuahua"].male[1] == (1.5, 3)
    pound, inch = 0.45359237, 2.54
    dane = breeds._UNSEEN["Great Dane"]
    np.testing.assert_allclose(dane.male, [[30 * inch, 32 * inch], [140 * pound, 175 * pound]], rtol=1e-3)
    np.testing.assert_allclose(dane.female, [[28 * inch, 30 * inch], [110 * pound, 140 * pound]], rtol=1e-3)
    bulldog = breeds._BREEDS["bulldog"]
    np.testing.assert_allclose([bulldog.male[1], bulldog.female[1]], [[50 * pound, 25], [40 * pound, 23]], rtol=3e-3)


def test_unseen_animals_are_far_from_every_breed():
    dogs, animals = data.dog_breeds(200, generator=seeded()), data.unseen_animals(200, generator=seeded(1))
    scale = data.standardiser(dogs.inputs)
    distance = torch.cdist(scale(animals.inputs), scale(dogs.inputs)).amin(1)
    far = {name: distance[animals.labels == i].median() for i, name in enumerate(animals.class_names)}
    assert far["horse"] > 10 > 1 > far["cat"]  # a cat could be a heavy chihuahua: two questions of different kinds
    assert far["Great Dane"] > 1


# ---- Tables

TABLES = {
    "breast_cancer": (data.breast_cancer, sklearn.datasets.load_breast_cancer),
    "wine": (data.wine, sklearn.datasets.load_wine),
    "diabetes": (data.diabetes, lambda: sklearn.datasets.load_diabetes(scaled=False)),
}


def rows_of(part):
    """Inputs beside targets or labels, one row an observation."""
    return np.column_stack([part.inputs.double().numpy(), part[1].double().numpy()])


@pytest.mark.parametrize("standardise", [True, False])
@pytest.mark.parametrize("name", TABLES)
def test_a_split_holds_every_row_once(name, standardise):
    make, source = TABLES[name]
    split = make(generator=seeded(), test_fraction=0.3, standardise=standardise, dtype=torch.float64)
    inputs, targets = ([part[i].double() for part in split[:2]] for i in (0, 1))
    if standardise:
        inputs = [split.input_scaling.inverse(x) for x in inputs]
        if split.target_scaling:
            targets = [split.target_scaling.inverse(y[:, None])[:, 0] for y in targets]
    together = np.column_stack([torch.cat(inputs).numpy(), torch.cat(targets).numpy()])
    expected = np.column_stack([source().data, source().target])
    np.testing.assert_allclose(
        together[np.lexsort(together.round(8).T)], expected[np.lexsort(expected.round(8).T)], rtol=1e-9, atol=1e-12
    )
    assert abs(len(split.test.inputs) - 0.3 * len(expected)) < 2
    assert split.feature_names == tuple(source().feature_names)


@pytest.mark.parametrize("name", TABLES)
def test_units_come_from_the_training_part_alone(name):
    split = TABLES[name][0](generator=seeded(), dtype=torch.float64)
    torch.testing.assert_close(split.train.inputs.mean(0), torch.zeros_like(split.input_scaling.loc), rtol=0, atol=1e-9)
    torch.testing.assert_close(split.train.inputs.std(0, correction=0), torch.ones_like(split.input_scaling.loc))
    assert split.test.inputs.mean(0).abs().max() > 0.01
    if name == "diabetes":
        torch.testing.assert_close(split.train.targets.mean().item(), 0.0, rtol=0, atol=1e-9)
    raw = TABLES[name][0](generator=seeded(), standardise=False, dtype=torch.float64)
    assert raw.input_scaling is raw.target_scaling is None
    torch.testing.assert_close(split.input_scaling(raw.test.inputs), split.test.inputs)


@pytest.mark.parametrize("name", ["breast_cancer", "wine"])
def test_both_parts_have_all_classes_in_proportion(name):
    split = TABLES[name][0](generator=seeded(), test_fraction=0.25)
    counts = [part.labels.bincount(minlength=len(part.class_names)) for part in split[:2]]
    for train, test in zip(*counts, strict=True):
        assert abs(test - 0.25 * (train + test)) <= 0.5
    assert split.train.labels.diff().ne(0).float().mean() > 0.2  # rows in random order, not class by class


def test_standardiser_leaves_constant_columns_finite():
    scale = data.standardiser(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
    torch.testing.assert_close(scale(torch.tensor([[5.0, 5.0]])), torch.tensor([[3.0, 0.0]]))
    torch.testing.assert_close(scale.inverse(torch.tensor([[3.0, 0.0]])), torch.tensor([[5.0, 5.0]]))


# ---- Digits, MNIST, Fashion-MNIST


def test_embedded_digits_are_the_file_that_was_shipped():
    folder = importlib.resources.files("bdl_lib") / "datasets"
    digest = hashlib.sha256((folder / "digits_28x28.npz").read_bytes()).hexdigest()
    readme = (folder / "README.md").read_text()
    assert digest in readme
    assert "CC BY-SA 3.0" in readme
    split = data.digits()
    assert [tuple(part.images.shape) for part in split] == [(5000, 28, 28), (1000, 28, 28)]
    assert (split.train.images.min(), split.train.images.max()) == (0, 1)
    with np.load(folder / "digits_28x28.npz") as arrays:
        np.testing.assert_array_equal((255 * split.test.images).round().numpy(), arrays["test_images"])
        np.testing.assert_array_equal(split.train.labels.numpy(), arrays["train_labels"])


def test_damaged_embedded_digits_are_refused(tmp_path, monkeypatch):
    content = (importlib.resources.files("bdl_lib") / "datasets" / "digits_28x28.npz").read_bytes()
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "digits_28x28.npz").write_bytes(content[:-1] + b"x")
    monkeypatch.setattr(importlib.resources, "files", lambda package: tmp_path)
    with pytest.raises(ValueError, match="the embedded digits must have SHA-256 01bc84ce"):
        data.digits()


class FakeOpenML:
    """Stands in for scikit-learn's loader: counts the calls, and gives 70,000 nearly black images."""

    def __init__(self, name="mnist"):
        source = pictures._SOURCES[name]
        parts = [np.repeat(np.arange(10), counts) for counts in (source.num_train, source.num_test)]
        self.labels = np.concatenate([part[np.random.default_rng(0).permutation(len(part))] for part in parts])
        self.pixels = np.zeros((70_000, 784), np.uint8)
        self.pixels[:, 0], self.pixels[:, 783] = self.labels, np.arange(70_000) % 256
        self.calls = []

    def __call__(self, name, **settings):
        self.calls.append((name, settings))
        return sklearn.utils.Bunch(data=self.pixels, target=self.labels.astype(str))


@pytest.fixture
def openml(monkeypatch):
    fake = FakeOpenML()
    monkeypatch.setattr(sklearn.datasets, "fetch_openml", fake)
    return fake


@pytest.fixture
def offline(monkeypatch):
    def fail(*args, **settings):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(sklearn.datasets, "fetch_openml", fail)


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    """A folder with a good copy in it, made once; tests that damage it copy it first."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sklearn.datasets, "fetch_openml", FakeOpenML())
        data.mnist(cache_dir=folder)
    return folder


@pytest.fixture
def copy(cached, tmp_path):
    for path in cached.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_mnist_is_downloaded_once_and_read_back_the_same(openml, tmp_path):
    first = data.mnist(cache_dir=tmp_path / "new folder")
    again = data.images("mnist", cache_dir=tmp_path / "new folder")
    assert [name for name, _ in openml.calls] == ["mnist_784"]
    assert openml.calls[0][1]["cache"] is False
    assert all(torch.equal(a, b) for a, b in zip(leaves(first), leaves(again), strict=True))
    assert [len(part.images) for part in first] == [60_000, 10_000]
    for part, pixels in zip(first, (openml.pixels[:60_000], openml.pixels[60_000:]), strict=True):
        assert torch.equal(part.images, torch.from_numpy(pixels).view(-1, 28, 28) / 255)
    np.testing.assert_array_equal(torch.cat([part.labels for part in first]).numpy(), openml.labels)
    assert sorted(p.name for p in (tmp_path / "new folder").iterdir()) == ["mnist.npz", "mnist.sha256"]


def test_fashion_mnist_has_its_own_name_classes_and_file(monkeypatch, tmp_path):
    fake = FakeOpenML("fashion_mnist")
    monkeypatch.setattr(sklearn.datasets, "fetch_openml", fake)
    split = data.fashion_mnist(cache_dir=tmp_path)
    assert fake.calls[0][0] == "Fashion-MNIST"
    assert split.test.class_names[9] == "ankle boot"
    assert (tmp_path / "fashion_mnist.npz").exists()
    assert "MIT" in split.train.card


def test_without_a_folder_the_copy_lies_in_scikit_learns(openml, tmp_path, monkeypatch):
    monkeypatch.setenv("SCIKIT_LEARN_DATA", str(tmp_path))
    data.mnist()
    assert (tmp_path / "bdl_lib" / "mnist.npz").exists()


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_offline_the_error_names_the_embedded_digits(offline, tmp_path, name):
    with pytest.raises(ConnectionError, match=rf"{name} could not be downloaded from OpenML: data\.digits\(\)"):
        data.images(name, cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert len(data.images("digits").train.images) == 5_000


def test_offline_a_good_copy_is_used(offline, cached):
    assert len(data.mnist(cache_dir=cached).train.images) == 60_000


def flip_one_bit_in_the_middle(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGES = {
    "truncated": lambda content: content[: len(content) // 2],
    "one byte short": lambda content: content[:-1],
    "empty": lambda content: b"",
    "one bit flipped": flip_one_bit_in_the_middle,
    "a web page": lambda content: b"<html>Log in to this network</html>",
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_copy_is_refused_even_online(openml, copy, name):
    (copy / "mnist.npz").write_bytes(DAMAGES[name]((copy / "mnist.npz").read_bytes()))
    with pytest.raises(ValueError, match=r"the cached file .*mnist\.npz .*delete it"):
        data.mnist(cache_dir=copy)
    assert openml.calls == []


def test_a_deleted_copy_is_downloaded_again(openml, copy):
    (copy / "mnist.npz").unlink()
    assert len(data.mnist(cache_dir=copy).test.images) == 10_000
    assert len(openml.calls) == 1


def test_an_altered_copy_that_is_whole_is_refused(copy, openml):
    with np.load(copy / "mnist.npz") as arrays:
        pixels, labels = arrays["pixels"], arrays["labels"]
    pixels[12_345, 3, 4] ^= 1
    np.savez_compressed(copy / "mnist.npz", pixels=pixels, labels=labels)
    assert zipfile.ZipFile(copy / "mnist.npz").testzip() is None
    with pytest.raises(ValueError, match="does not match its recorded SHA-256"):
        data.mnist(cache_dir=copy)


def test_a_copy_without_its_record_is_refused(copy, openml):
    (copy / "mnist.sha256").unlink()
    with pytest.raises(ValueError, match=r"the cached file .* is damaged"):
        data.mnist(cache_dir=copy)


def relabel(fake):
    fake.labels[0] = (fake.labels[0] + 1) % 10


def shorten(fake):
    fake.pixels, fake.labels = fake.pixels[:-1], fake.labels[:-1]


def grow(fake):
    fake.pixels = fake.pixels.astype(np.float32)
    fake.pixels[0, 0] = 255.5


@pytest.mark.parametrize("change", [relabel, shorten, grow])
def test_a_wrong_download_is_refused_and_not_kept(openml, tmp_path, change):
    change(openml)
    with pytest.raises(ValueError, match="the download of mnist must"):
        data.mnist(cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_leaves_nothing_to_read(openml, tmp_path, monkeypatch):
    def full(file, **arrays):
        file.write(b"half of it")
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(OSError, match="No space left"):
        data.mnist(cache_dir=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mnist.sha256"]  # of data that never came, and harmless


# ---- Scenes


def test_scenes_have_the_truth_for_every_pixel():
    scene = data.scenes(30, unseen_prob=0.4, noise_std=0.0, depth_noise_std=0.0, generator=seeded())
    assert {tuple(x.shape) for x in leaves(scene)} == {(30, 48, 48)}
    is_wall = scene.labels == 0
    assert ((scene.depth == 4.0) == is_wall).all()
    assert (scene.images[is_wall] == 0).all()
    assert (scene.images[~is_wall] > 0).all()
    assert scene.depth[~is_wall].min() >= 1
    assert scene.depth[~is_wall].max() <= 3
    assert (scene.is_unseen == (scene.labels == -1)).all()
    assert scene.is_unseen.any()
    assert set(scene.labels.unique().tolist()) == set(range(-1, 11))
    assert scene.class_names == ("wall", *"0123456789")
    torch.testing.assert_close(scene.measured_depth, scene.depth)
    assert not data.scenes(30, generator=seeded()).is_unseen.any()


def test_nearer_covers_further_and_looks_larger_and_brighter():
    """Of white squares, what is seen can be computed by hand: side 0.75/z, brightness e^(-0.35(z-1))."""
    square = data.Images(torch.ones(1, 28, 28, dtype=torch.float64), torch.tensor([4]), tuple("0123456789"), "a; b; c")
    kw = {"objects": square, "size": 64, "noise_std": 0.0, "depth_noise_std": 0.0, "dtype": torch.float64}
    one = data.scenes(200, num_objects=1, generator=seeded(), **kw)
    for label, image, depth in zip(one.labels, one.images, one.depth, strict=True):
        z = depth.min().item()
        assert (label == 5).sum().item() ** 0.5 == pytest.approx(64 * 0.75 / z, abs=1.1)
        assert image.max().item() == pytest.approx(math.exp(-0.35 * (z - 1)))
        row, column = (label == 5).nonzero().double().T
        assert row.max() - row.min() == pytest.approx(column.max() - column.min(), abs=1)
    many = data.scenes(50, num_objects=5, generator=seeded(), **kw)
    for label, depth in zip(many.labels, many.depth, strict=True):
        distances = depth[label == 5].unique()
        nearest = (depth == distances[0]).nonzero()
        corner, opposite = nearest.amin(0), nearest.amax(0)
        block = depth[corner[0] : opposite[0] + 1, corner[1] : opposite[1] + 1]
        assert (block[1:-1, 1:-1] == distances[0]).all()  # the nearest square is seen whole, but for its blurred edge
        assert len(distances) >= 2


def test_sensor_noise_is_the_stated_one():
    noisy = data.scenes(20, noise_std=0.2, depth_noise_std=0.05, generator=seeded(), dtype=torch.float64)
    clean = data.scenes(20, noise_std=0.0, depth_noise_std=0.05, generator=seeded(), dtype=torch.float64)
    torch.testing.assert_close(noisy.depth, clean.depth)
    grey = (noisy.images - clean.images).flatten()[::10]
    relative = (noisy.measured_depth / noisy.depth - 1).flatten()[::10]
    assert normal_pvalue(grey, 0, 0.2) > 1e-3  # false alarms: 1 in 1,000 each
    assert normal_pvalue(relative, 0, 0.05) > 1e-3


def test_unseen_objects_come_as_often_as_asked_and_digits_from_the_given_part():
    generator = seeded()
    digits = data.digits()
    scene = data.scenes(400, num_objects=1, unseen_prob=0.3, objects=digits.test, generator=generator)
    unseen = scene.is_unseen.flatten(1).any(1).sum().item()
    assert stats.binomtest(unseen, 400, 0.3).pvalue > 1e-3  # false alarms: 1 in 1,000
    assert "1000" not in scene.card
    assert "CC BY-SA 3.0" in scene.card
    kinds = scene.labels.flatten(1).amax(1)[~scene.is_unseen.flatten(1).any(1)]
    assert set((kinds - 1).tolist()) == set(range(10))


# ---- Bad input

BAD = {
    "no points": (lambda g: data.line(0, generator=g), "num_points must be at least 1, got 0"),
    "negative noise": (lambda g: data.sine_with_gap(3, noise_std=-0.1, generator=g), "noise_std must be non-negative"),
    "NaN noise": (
        lambda g: data.line(3, noise_std=nan, generator=g),
        "noise_std must be non-negative and finite, got nan",
    ),
    "no dogs": (lambda g: data.dog_breeds(0, generator=g), "num_per_breed must be at least 1, got 0"),
    "no animals": (lambda g: data.unseen_animals(-1, generator=g), "num_per_kind must be at least 1, got -1"),
    "everything in the test part": (
        lambda g: data.wine(test_fraction=1.0, generator=g),
        "test_fraction must be between 0 and 1",
    ),
    "NaN fraction": (
        lambda g: data.diabetes(test_fraction=nan, generator=g),
        "test_fraction must be between 0 and 1, got nan",
    ),
    "an empty class": (
        lambda g: data.wine(test_fraction=0.005, generator=g),
        "test_fraction must leave rows of every class",
    ),
    "one row to standardise": (
        lambda g: data.standardiser(torch.ones(1, 2)),
        "inputs must be finite, with at least two rows",
    ),
    "NaN to standardise": (lambda g: data.standardiser(torch.full((3, 2), nan)), "inputs must be finite"),
    "another image set": (
        lambda g: data.images("cifar"),
        r"name must be one of \['digits', 'mnist', 'fashion_mnist'\], got 'cifar'",
    ),
    "no scenes": (lambda g: data.scenes(0, generator=g), "num_scenes must be at least 1, got 0"),
    "no objects": (lambda g: data.scenes(1, num_objects=0, generator=g), "num_objects must be at least 1, got 0"),
    "tiny": (lambda g: data.scenes(1, size=15, generator=g), "size must be at least 16, got 15"),
    "probability": (lambda g: data.scenes(1, unseen_prob=1.5, generator=g), "unseen_prob must be from 0 to 1, got 1.5"),
    "NaN sensor": (
        lambda g: data.scenes(1, noise_std=nan, generator=g),
        "noise_std must be non-negative and finite, got nan",
    ),
    "depth sensor": (
        lambda g: data.scenes(1, depth_noise_std=-1.0, generator=g),
        "depth_noise_std must be non-negative",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_by_name(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call(seeded())
