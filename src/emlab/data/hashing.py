"""Hashes of files and of decoded arrays."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from emlab.errors import IntegrityError
from emlab.runtime import atomic_path


def hash_file(path: str | Path) -> str:
    """Return the sha256 of a file's bytes as 64 hex digits."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def note_hash(path: Path) -> None:
    """Keep the hash of a file whose bytes nobody promised in ``<name>.sha256`` beside it."""
    with atomic_path(path.with_name(f"{path.name}.sha256")) as note:
        note.write_text(f"{hash_file(path)}\n", "utf-8")


def noted_hash(path: Path) -> str:
    """Return the hash that :func:`note_hash` kept, or nothing."""
    note = path.with_name(f"{path.name}.sha256")
    return note.read_text("utf-8").strip() if note.is_file() else ""


def check_noted(path: Path) -> None:
    """Raise `IntegrityError` if a file is not as :func:`note_hash` found it."""
    if noted_hash(path) not in ("", hash_file(path)):
        raise IntegrityError(f"{path} has changed since it was received; remove it")


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
