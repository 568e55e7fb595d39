"""Run a program to its end, and know what it took."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from emlab.errors import EmlabError


@dataclass(frozen=True)
class Finished:
    """What a program took."""

    output: str  #: what it wrote, errors included
    seconds: float  #: by the clock
    cpu_seconds: float  #: of all its processors
    peak_memory_mb: float  #: megabytes of 2**20 bytes


def run_program(
    command: Sequence[str | Path],
    folder: Path,
    *,
    threads: int = 1,
    environment: Mapping[str, str] | None = None,
) -> Finished:
    """Run a command in a folder; it ends with us if we are interrupted.

    Parameters
    ----------
    threads : int
        Told to libraries that read ``OMP_NUM_THREADS``.

    Raises
    ------
    EmlabError
        The program failed; with the last line that it wrote.
    """
    variables = {**os.environ, "OMP_NUM_THREADS": str(threads), **(environment or {})}
    with tempfile.TemporaryFile() as stream:
        start = time.perf_counter()
        process = subprocess.Popen(
            [str(word) for word in command],
            cwd=folder,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
        try:
            cpu_seconds, peak_memory_mb = _wait(process)
        except BaseException:
            process.kill()
            process.wait()
            raise
        seconds = time.perf_counter() - start
        stream.seek(0)
        output = stream.read().decode("utf-8", "replace")
    if process.returncode:
        said = [line.strip() for line in output.splitlines() if line.strip()]
        reason = said[-1] if said else f"exit status {process.returncode}"
        raise EmlabError(f"{Path(command[0]).name} failed: {reason}; look at its version and input")
    return Finished(output, seconds, cpu_seconds, peak_memory_mb)


def _wait(process: subprocess.Popen[bytes]) -> tuple[float, float]:
    """Wait for the end of a program; returns its CPU seconds and largest memory in megabytes."""
    if hasattr(os, "wait4"):
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        per_mb = 2**20 if sys.platform == "darwin" else 2**10
        return used.ru_utime + used.ru_stime, used.ru_maxrss / per_mb
    import psutil  # type: ignore[import-untyped]

    seconds = peak = 0.0
    watched = psutil.Process(process.pid)  # Windows: what it had when it was last looked at
    while process.poll() is None:
        with suppress(psutil.Error), watched.oneshot():
            seconds, peak = sum(watched.cpu_times()[:2]), max(peak, watched.memory_info().rss)
        time.sleep(0.02)
    return seconds, peak / 2**20
