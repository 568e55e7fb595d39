"""What a run over blocks leaves on the disk, so that a killed one can go on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from emlab.app.block_layout import BlockAxis, Triple
from emlab.errors import InputError
from emlab.runtime import atomic_path, disk_error


class Journal:
    """Results that neighbours still need, and the number of blocks written to the target.

    A ``lasting`` journal is on the disk, note by note, before the run goes on.
    """

    def __init__(
        self, folder: Path, facts: dict[str, Any], axes: list[BlockAxis], lasting: bool
    ) -> None:
        self.folder, self.axes, self.written = folder, axes, 0
        self._place = atomic_path if lasting else nullcontext
        self.facts = json.loads(json.dumps(facts, default=str))
        self.counts = [len(axis.starts) for axis in axes]
        self._waiting: dict[Triple, int] = {}  # last user of each result on the disk

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

    def result(self, index: Triple) -> np.ndarray | None:
        """Return the kept result of a block, mapped from the disk, if it is there."""
        path = self.place(index)
        return np.load(path, mmap_mode="r", allow_pickle=False) if path.exists() else None

    def keep(self, index: Triple, kept: np.ndarray) -> None:
        """Keep the result of a block for its neighbours."""
        if self._last_user(index) > self._number(index):
            self.expect(index)
            with self._place(self.place(index)) as path:
                write_array(path, kept)

    def expect(self, index: Triple) -> None:
        """Count on a result in the folder, by whomever it was put there."""
        self._waiting[index] = self._last_user(index)

    def missing(self) -> dict[Triple, None]:
        """Blocks that are neither written nor kept, in raster order."""
        ranges = [range(count) for count in self.counts]
        todo = islice(product(*ranges), self.written, None)
        return {(z, y, x): None for z, y, x in todo if (z, y, x) not in self._waiting}

    def place(self, index: Triple) -> Path:
        """File of a block's result."""
        return self.folder.absolute() / ("-".join(map(str, index)) + ".npy")

    def close_block(self, index: Triple) -> None:
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
        names = sorted({*facts, *self.facts})
        other = [name for name in names if facts.get(name) != self.facts.get(name)]
        if other:
            changes = ", ".join(
                f"{name} was {facts.get(name)} and is {self.facts.get(name)}" for name in other
            )
            raise InputError(
                f"{self.folder} belongs to a run with other settings ({changes}); repeat those, or "
                f"delete it to start again"
            )
        for path in self.folder.glob("[0-9]*.npy"):
            z, y, x = (int(word) for word in path.stem.split("-"))
            self._waiting[z, y, x] = self._last_user((z, y, x))
        self._drop()

    def _drop(self) -> None:
        for index in [i for i, last in self._waiting.items() if last < self.written]:
            self.place(index).unlink(missing_ok=True)
            del self._waiting[index]

    def _last_user(self, index: Triple) -> int:
        z, y, x = (axis.last_user[i] for axis, i in zip(self.axes, index, strict=True))
        return self._number((z, y, x))

    def _number(self, index: Triple) -> int:
        (z, y, x), (_, rows, columns) = index, self.counts
        return (z * rows + y) * columns + x

    @property
    def _notes(self) -> Path:
        return self.folder / "journal.json"


def write_array(path: Path, values: np.ndarray) -> None:
    """Write an npy file; np.save would not say that the disk is full."""
    stored = np.ascontiguousarray(values)
    header = np.lib.format.header_data_from_array_1_0(stored)
    with open(path, "wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        stream.write(stored.data)


def keep_arrays(file: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write named arrays beside a journal; the file appears whole or not at all."""
    with atomic_path(file) as path, open(path, "wb") as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]


def kept_arrays(file: Path) -> dict[str, np.ndarray]:
    """What `keep_arrays` wrote.

    Raises
    ------
    InputError
        The file is lost or damaged.
    """
    try:
        with np.load(file, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError) as problem:
        raise InputError(
            f"{file} is lost or damaged; delete {file.parent} to start again"
        ) from problem
