"""Hashes of files and of decoded arrays."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np


def hash_file(path: str | Path) -> str:
    """Return the sha256 of a file's bytes as 64 hex digits."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hash_arrays(arrays: Mapping[str, np.ndarray]) -> str:
    """Return one sha256 over all arrays, by name: dtype (little-endian), shape and bytes.

    It does not depend on the container (tif, npz, ...), only on what a reader gets to see. Arrays
    of objects (images of different sizes) are hashed item by item.
    """
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        digest.update(f"{name}\n".encode())
        for item in array if array.dtype == object else [array]:
            item = np.ascontiguousarray(item, dtype=item.dtype.newbyteorder("<"))
            digest.update(f"{item.dtype.str} {item.shape}\n".encode())
            digest.update(item.tobytes())
    return digest.hexdigest()


def hash_images(images: np.ndarray) -> list[str]:
    """Return the sha256 of each image's uint8 pixels; images (n, H, W) uint8."""
    return [hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest() for image in images]
