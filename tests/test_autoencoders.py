"""Autoencoders, against scikit-learn's and SciPy's linear algebra, autograd and a plain loop."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from sklearn.decomposition import PCA

from bdl_lib import data, vae
from bdl_lib.vi import FailedFit

MAKERS = {
    "linear": vae.linear_autoencoder,
    "mlp": lambda *args, **shared: vae.mlp_autoencoder(*args, hidden=(5, 3), **shared),
    "conv": lambda *args, **shared: vae.conv_autoencoder(*args, channels=(2, 3), hidden=(6,), **shared),
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def patterns(num=60, height=4, width=8, seed=1):
    """Images in [0, 1] whose variances along their principal directions differ clearly."""
    flat = torch.randn(num, 5, generator=generator(seed), dtype=torch.float64) * torch.tensor([3.0, 2.0, 1.2, 0.5, 0.3])
    directions = torch.randn(5, height * width, generator=generator(seed + 1), dtype=torch.float64)
    return torch.sigmoid(0.3 * flat @ directions).view(num, height, width)


def make(kind="mlp", latent_dim=2, image_shape=(4, 8), seed=2):
    return MAKERS[kind](latent_dim, image_shape=image_shape, generator=generator(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def digits():
    return data.digits(dtype=torch.float64).train.images[:1000]


# ---- Shapes, and what the parts are


@pytest.mark.parametrize("kind", MAKERS)
def test_there_and_back(kind):
    model, images = make(kind), patterns()
    codes = model.encode(images)
    assert codes.shape == (60, 2)
    assert model(images).shape == images.shape
    torch.testing.assert_close(model(images), model.decode(codes))
    torch.testing.assert_close(model.decode(codes.view(3, 20, 2)), model(images).view(3, 20, 4, 8))


@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_squashed_pixels_are_in_the_unit_interval(kind):
    model = make(kind)
    far = model.decode(1e3 * torch.randn(50, 2, generator=generator(), dtype=torch.float64))
    assert 0 <= far.min() < 0.01
    assert 0.99 < far.max() <= 1


def test_linear_autoencoder_is_affine_and_may_leave_the_unit_interval():
    model, images = make("linear"), patterns()
    mixed = model(0.3 * images[:20] + 0.7 * images[20:40])
    torch.testing.assert_close(mixed, 0.3 * model(images[:20]) + 0.7 * model(images[20:40]))
    assert model(images).abs().max() > 1


def test_the_decoder_mirrors_the_encoder():
    model = make("mlp", latent_dim=2)
    widths = [[p.shape for p in part.parameters() if p.ndim == 2] for part in (model.encoder, model.decoder)]
    assert widths[0] == [(5, 32), (3, 5), (2, 3)]
    assert widths[1] == [(3, 2), (5, 3), (32, 5)]


def test_weights_come_from_the_generator_alone():
    torch.manual_seed(1)
    first = make("conv")
    torch.manual_seed(2)
    for a, b in zip(first.parameters(), make("conv").parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(next(first.parameters()), next(make("conv", seed=3).parameters()))


def test_reconstruction_error_sums_over_pixels():
    images, others = patterns(), patterns(seed=5)
    by_hand = [float(np.linalg.norm((a - b).numpy()) ** 2) for a, b in zip(images, others, strict=True)]
    assert vae.reconstruction_error(images, others).tolist() == pytest.approx(by_hand, rel=1e-12)


# ---- Training


def plain_loop(model, images, num_epochs, batch_size, lr, draw):
    """The same training, written out once more: Adam by hand, step size from its formula."""
    moments = [[torch.zeros_like(p), torch.zeros_like(p)] for p in model.parameters()]
    step, num_steps = 0, num_epochs * math.ceil(len(images) / batch_size)
    for _ in range(num_epochs):
        order = torch.randperm(len(images), generator=draw)
        for start in range(0, len(images), batch_size):
            batch = images[order[start : start + batch_size]]
            loss = ((model(batch) - batch) ** 2).sum() / len(batch)
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            now = lr * math.cos(math.pi * step / (2 * num_steps)) ** 2
            step += 1
            for p, g, m in zip(model.parameters(), gradients, moments, strict=True):
                m[0] = 0.9 * m[0] + 0.1 * g
                m[1] = 0.999 * m[1] + 0.001 * g**2
                change = m[0] / (1 - 0.9**step) / ((m[1] / (1 - 0.999**step)).sqrt() + 1e-8)
                p.data -= now * change


@pytest.mark.parametrize("kind", MAKERS)
def test_fit_is_the_plain_loop(kind):
    start, images = make(kind), patterns(50)
    found = vae.fit_autoencoder(start, images, num_epochs=3, batch_size=16, lr=0.01, generator=generator(4))
    expected = make(kind)
    plain_loop(expected, images, 3, 16, 0.01, generator(4))
    for a, b in zip(found.model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_fit_leaves_its_inputs_alone_and_repeats_itself():
    start, images = make(), patterns()
    before = [p.clone() for p in start.parameters()], images.clone()
    state = torch.get_rng_state()
    first, second = (vae.fit_autoencoder(start, images, num_epochs=2, generator=generator(4)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(start.parameters(), before[0], strict=True))
    assert torch.equal(images, before[1])
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.loss_history, second.loss_history)
    assert not first.model.training
    assert first.validation_history is None


def test_histories_are_errors_an_image():
    start, images, others = make(), patterns(), patterns(1100, seed=7)  # more than one part of 500
    found = vae.fit_autoencoder(start, images, validation_images=others, num_epochs=4, generator=generator(4))
    assert found.loss_history.shape == found.validation_history.shape == (4,)
    expected = ((found.model(others) - others) ** 2).sum((1, 2)).mean()
    torch.testing.assert_close(found.validation_history[-1], expected.detach())
    still = vae.fit_autoencoder(start, images, num_epochs=1, batch_size=25, lr=1e-12, generator=generator(4))
    expected = ((start(images) - images) ** 2).sum((1, 2)).mean()
    torch.testing.assert_close(still.loss_history[0], expected.detach())  # with an epoch's last minibatch smaller


def test_training_reconstructs_digits(digits):
    start = vae.mlp_autoencoder(8, hidden=(32,), generator=generator(), dtype=torch.float64)
    found = vae.fit_autoencoder(start, digits, num_epochs=6, batch_size=25, lr=1e-2, generator=generator())
    nothing_learnt = (digits - digits.mean(0)).square().sum((1, 2)).mean()
    assert found.loss_history[-1] < 0.7 * nothing_learnt


def test_fit_stops_where_numbers_are_not_finite():
    model, images = make("linear").float(), patterns().float()
    with pytest.raises(FailedFit, match="the loss of epoch 1 is") as caught:
        vae.fit_autoencoder(model, images, num_epochs=3, lr=1e30, batch_size=60, generator=generator())
    assert caught.value.step == 1
    assert caught.value.fit.loss_history.shape == (1,)
    assert all(p.isfinite().all() for p in caught.value.fit.model.parameters())


# ---- The linear autoencoder is principal component analysis


def basis_of(model):
    return model.decoder.head[0].weight.detach()


@pytest.mark.parametrize("latent_dim", [1, 6])
def test_linear_autoencoder_spans_the_principal_subspace(digits, latent_dim):
    """The largest angle to scikit-learn's subspace is below 1e-3 rad; the loss is what its eigenvalues leave."""
    start = vae.linear_autoencoder(latent_dim, generator=generator(), dtype=torch.float64)
    found = vae.fit_linear_autoencoder(start, digits, num_sweeps=100)
    exact = PCA(svd_solver="full").fit(digits.flatten(1).numpy())
    angles = scipy.linalg.subspace_angles(exact.components_[:latent_dim].T, basis_of(found.model).numpy())
    assert angles.max() < 1e-3
    left_over = exact.explained_variance_[latent_dim:].sum() * (len(digits) - 1) / len(digits)
    assert found.loss_history[-1].item() == pytest.approx(left_over, rel=1e-8)


def test_the_loss_of_the_sweeps_is_that_of_the_model(digits):
    start = vae.linear_autoencoder(3, generator=generator(), dtype=torch.float64)
    for num_sweeps in (1, 2, 7):
        found = vae.fit_linear_autoencoder(start, digits, num_sweeps=num_sweeps)
        loss = vae.reconstruction_error(digits, found.model(digits)).mean()
        assert found.loss_history[-1].item() == pytest.approx(loss.item(), rel=1e-10)
        assert (found.loss_history.diff() <= 1e-10).all()


def test_gradients_vanish_where_the_sweeps_end(digits):
    start = vae.linear_autoencoder(2, generator=generator(), dtype=torch.float64)
    found = vae.fit_linear_autoencoder(start, digits, num_sweeps=200)
    sizes = []
    for model in (start, found.model):
        loss = vae.reconstruction_error(digits, model(digits)).mean()
        sizes.append(max(g.abs().max().item() for g in torch.autograd.grad(loss, list(model.parameters()))))
    assert sizes[1] < 1e-9 * sizes[0]


def test_sweeps_leave_their_inputs_alone():
    start, images = make("linear"), patterns()
    before = [p.clone() for p in start.parameters()], images.clone()
    found = vae.fit_linear_autoencoder(start, images, num_sweeps=3)
    assert all(torch.equal(a, b) for a, b in zip(start.parameters(), before[0], strict=True))
    assert torch.equal(images, before[1])
    assert found.validation_history is None
    assert not found.model.training
    assert all(p.requires_grad for p in found.model.parameters())


def test_gradient_training_finds_the_subspace_too():
    images = patterns(40)
    settings = {"num_epochs": 500, "batch_size": 40, "lr": 0.1, "generator": generator()}
    found = vae.fit_autoencoder(make("linear"), images, **settings)
    exact = PCA(2).fit(images.flatten(1).numpy())
    angles = scipy.linalg.subspace_angles(exact.components_.T, basis_of(found.model).numpy())
    assert angles.max() < 1e-2  # not 1e-3: Adam crawls at the end


def test_principal_components_are_those_of_scikit_learn():
    images = patterns()
    found = vae.principal_components(images, 4)
    exact = PCA(svd_solver="full").fit(images.flatten(1).numpy())
    share = 59 / 60  # scikit-learn divides by n - 1
    np.testing.assert_allclose(found.variances, exact.explained_variance_[:4] * share, rtol=1e-10)
    np.testing.assert_allclose(found.left_over, exact.explained_variance_[4:].sum() * share, rtol=1e-10)
    np.testing.assert_allclose(found.mean.flatten(), exact.mean_, rtol=1e-12)
    cosines = (found.components.flatten(1).numpy() * exact.components_[:4]).sum(1)
    np.testing.assert_allclose(np.abs(cosines), 1, rtol=1e-10)
    exact = PCA(4, svd_solver="full").fit(images.flatten(1).numpy())
    back = exact.inverse_transform(exact.transform(images.flatten(1).numpy()))
    np.testing.assert_allclose(found.decode(found.encode(images)).flatten(1), back, atol=1e-12)


def test_all_components_reconstruct_exactly():
    images = patterns(40)
    found = vae.principal_components(images, 32)
    torch.testing.assert_close(found.decode(found.encode(images)), images)
    assert found.left_over < 1e-20


@pytest.mark.parametrize("sizes", [(3, 3), (2, 4), (5, 1)])
def test_principal_angles_are_those_of_scipy(sizes):
    first, second = (
        torch.randn(9, size, generator=generator(size + 10 * i), dtype=torch.float64) for i, size in enumerate(sizes)
    )
    expected = scipy.linalg.subspace_angles(first.numpy(), second.numpy())
    np.testing.assert_allclose(vae.principal_angles(first, second), expected, rtol=1e-10)
    stretched = second @ (torch.eye(sizes[1], dtype=torch.float64) + 0.3)  # another basis of the same subspace
    np.testing.assert_allclose(vae.principal_angles(first, stretched), expected, rtol=1e-9)


def test_small_angles_are_not_lost():
    angle, axes = 1e-9, torch.eye(4, dtype=torch.float64)
    tilted = torch.stack([axes[0], math.cos(angle) * axes[1] + math.sin(angle) * axes[2]], 1)
    assert vae.principal_angles(axes[:, :2], tilted).tolist() == pytest.approx([angle, 0.0], abs=1e-15)
    right = vae.principal_angles(axes[:, :2], axes[:, 1:3])
    assert right.tolist() == pytest.approx([math.pi / 2, 0.0], abs=1e-15)


# ---- Bad input

X = patterns(10)
NAN = X.clone()
NAN[3, 1, 1] = math.nan


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: vae.linear_autoencoder(0, generator=generator()), "latent_dim must be at least 1, got 0"),
        (lambda: vae.mlp_autoencoder(0, generator=generator()), "latent_dim must be at least 1, got 0"),
        (lambda: vae.conv_autoencoder(math.nan, generator=generator()), "latent_dim must be at least 1, got nan"),
        (lambda: vae.Autoencoder(torch.nn.Flatten(), torch.nn.Flatten(), 0), "latent_dim must be at least 1, got 0"),
        (lambda: vae.mlp_autoencoder(2, hidden=(3, 0), generator=generator()), r"hidden must be .*, got \(3, 0\)"),
        (
            lambda: vae.conv_autoencoder(2, image_shape=(6, 6), generator=generator()),
            "image_shape divisible by 2 for each",
        ),
        (lambda: make().encode(X[:, :, :7]), r"images must be \[n >= 1, 4, 8\], got \[10, 4, 7\]"),
        (lambda: make().decode(torch.ones(3, 5).double()), r"latents must be \[..., n, 2\], got \[3, 5\]"),
        (lambda: vae.reconstruction_error(X, X[:5]), "images and reconstructions must have one shape"),
        (lambda: fit(num_epochs=0), "num_epochs must be at least 1, got 0"),
        (lambda: fit(batch_size=0), "batch_size must be at least 1, got 0"),
        (lambda: fit(lr=math.nan), "lr must be positive and finite, got nan"),
        (lambda: fit(images=X[:0]), r"images must be \[n >= 1, 4, 8\], got \[0, 4, 8\]"),
        (lambda: fit(images=NAN), "images must be finite, got 1 non-finite values"),
        (lambda: fit(validation_images=NAN), "validation_images must be finite, got 1 non-finite values"),
        (lambda: fit(validation_images=X[:, :2]), r"^validation_images must be \[n >= 1, 4, 8\], got \[10, 2, 8\]"),
        (lambda: vae.fit_linear_autoencoder(make("linear"), X, num_sweeps=0), "num_sweeps must be at least 1, got 0"),
        (lambda: vae.fit_linear_autoencoder(make("mlp"), X), "model must be linear"),
        (lambda: vae.fit_linear_autoencoder(make("conv"), X), "model must be linear"),
        (lambda: vae.fit_linear_autoencoder(make("linear"), X[:2]), "images must be more than latent_dim = 2, got 2"),
        (lambda: vae.fit_linear_autoencoder(make("linear"), NAN), "images must be finite, got 1 non-finite values"),
        (lambda: vae.principal_components(X, 0), "num_components must be at least 1, got 0"),
        (lambda: vae.principal_components(X, 11), "num_components must be at most 10, got 11"),
        (lambda: vae.principal_components(NAN, 2), "images must be finite, got 1 non-finite values"),
        (lambda: vae.principal_angles(torch.ones(4, 2), torch.eye(4)), "first must have linearly independent columns"),
        (lambda: vae.principal_angles(torch.eye(4), torch.ones(4, 2)), "second must have linearly independent columns"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def fit(**changes):
    settings = {"images": X, "num_epochs": 1, "generator": generator()} | changes
    return vae.fit_autoencoder(make(), **settings)


def test_squashed_linear_model_is_not_linear():
    linear = make("linear")
    squashed = vae.Autoencoder(linear.encoder, linear.decoder, 2, (4, 8))
    with pytest.raises(ValueError, match="model must be linear"):
        vae.fit_linear_autoencoder(squashed, X)
