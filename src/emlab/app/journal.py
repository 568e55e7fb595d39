"""What a run over blocks, or pieces of work, leaves on the disk, so that a killed one can go on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from emlab.errors import InputError
from emlab.runtime import atomic_path, disk_error


class Journal:
    """Results that neighbours still need, and the number of blocks written to the target.

    Parameters
    ----------
    facts
        All that the results depend on: a run with others is not gone on with.
    last_users
        For each axis, the last block that needs the result of each block.
    lasting
        Every note is on the disk before the run goes on.
    """

    def __init__(
        self,
        folder: Path,
        facts: dict[str, Any],
        last_users: Sequence[Sequence[int]],
        lasting: bool = True,
    ) -> None:
        self.folder, self.written = folder, 0
        self._place = atomic_path if lasting else nullcontext
        self._notes = folder / "journal.json"
        self.facts = json.loads(json.dumps(facts, default=str))
        self.counts = [len(users) for users in last_users]
        self._last_users = last_users

    @contextmanager
    def opened(self, fresh: bool) -> Iterator[None]:
        """Hold the folder for this process; read what an earlier run left, or clear it."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise disk_error(problem, self.folder) from problem
        try:
            with FileLock(self.folder / "lock", timeout=0):
                if fresh:
                    for path in self.folder.glob("*.npy"):
                        path.unlink()
                    self._notes.unlink(missing_ok=True)
                self._read()
                yield
        except Timeout:
            raise InputError(
                f"another process works with {self.folder}; wait for it or write somewhere else"
            ) from None

    def result(self, index: tuple[int, ...]) -> np.ndarray | None:
        """Return the kept result of a block, mapped from the disk, if it is there."""
        path = self.place(index)
        return np.load(path, mmap_mode="r", allow_pickle=False) if path.exists() else None

    def keep(self, index: tuple[int, ...], kept: np.ndarray) -> None:
        """Keep the result of a block for its neighbours."""
        if self._last_user(index) > self._number(index):
            with self._place(self.place(index)) as path:
                write_array(path, kept)

    def missing(self) -> dict[tuple[int, ...], None]:
        """Blocks that are neither written nor kept, in raster order."""
        todo = islice(product(*map(range, self.counts)), self.written, None)
        return {index: None for index in todo if not self.place(index).exists()}

    def place(self, index: tuple[int, ...]) -> Path:
        """File of a block's result."""
        return self.folder.absolute() / ("-".join(map(str, index)) + ".npy")

    def close_block(self, index: tuple[int, ...]) -> None:
        """Note that all that a block owns is written; drop the results that nobody needs now."""
        self.written = self._number(index) + 1
        with self._place(self._notes) as path:
            path.write_text(json.dumps({"settings": self.facts, "written": self.written}))
        self._drop()

    def _read(self) -> None:
        if not self._notes.exists():
            return
        try:
            notes = json.loads(self._notes.read_text())
            facts, self.written = notes["settings"], int(notes["written"])
        except (ValueError, KeyError, TypeError) as problem:
            raise InputError(
                f"{self._notes} cannot be read; delete {self.folder} to start again"
            ) from problem
        changes = ", ".join(
            f"{name} was {facts.get(name)} and is {self.facts.get(name)}"
            for name in sorted({*facts, *self.facts})
            if facts.get(name) != self.facts.get(name)
        )
        if changes:
            raise InputError(
                f"{self.folder} belongs to a run with other settings ({changes}); repeat those, or "
                f"delete it to start again"
            )
        self._drop()

    def _drop(self) -> None:
        for path in self.folder.glob("[0-9]*.npy"):
            index = tuple(int(word) for word in path.stem.split("-"))
            if self._last_user(index) < self.written:
                path.unlink(missing_ok=True)

    def _last_user(self, index: tuple[int, ...]) -> int:
        users = zip(self._last_users, index, strict=True)
        return self._number(tuple(axis[i] for axis, i in users))

    def _number(self, index: tuple[int, ...]) -> int:
        return int(np.ravel_multi_index(index, self.counts))


def write_array(path: Path, values: np.ndarray) -> None:
    """Write an npy file; np.save would not say that the disk is full."""
    stored = np.ascontiguousarray(values)
    header = np.lib.format.header_data_from_array_1_0(stored)
    with open(path, "wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        stream.write(stored.data)


class Pieces:
    """Results of numbered pieces of work on the disk, of which an earlier run did some."""

    def __init__(self, journal: Journal) -> None:
        self._journal, self.count, self.done = journal, journal.counts[0], journal.written

    @property
    def todo(self) -> range:
        """Numbers of those that are left."""
        return range(self.done, self.count)

    def keep(self, number: int, arrays: dict[str, np.ndarray]) -> None:
        """Keep the result of a piece; it is there, whole, if the run ends now."""
        keep_arrays(self._file(number), arrays)
        self._journal.close_block((number,))

    def kept(self) -> list[dict[str, np.ndarray]]:
        """All results; an `InputError` if one is lost or damaged."""
        return [self._read(self._file(number)) for number in range(self.count)]

    def drop(self) -> None:
        """Leave nothing, because nothing came of it."""
        shutil.rmtree(self._journal.folder)

    def _file(self, number: int) -> Path:
        return self._journal.folder / f"{number}.npz"

    def _read(self, file: Path) -> dict[str, np.ndarray]:
        try:
            with np.load(file, allow_pickle=False) as stored:
                return {name: stored[name] for name in stored.files}
        except (OSError, ValueError) as problem:
            raise InputError(
                f"{file} is lost or damaged; delete {file.parent} to start again"
            ) from problem


def keep_arrays(file: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write named arrays to a file that appears whole or not at all."""
    with atomic_path(file) as path, open(path, "wb") as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]
