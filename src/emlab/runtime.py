"""Device, seeds, threads, environment stamp, timing, and files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import emlab
from emlab.errors import EmlabError, InputError

if TYPE_CHECKING:  # torch takes seconds to import; `emlab data list` needs none of it
    import torch

MAX_DEFAULT_THREADS = 4


def import_jsonschema() -> Any:
    """Import jsonschema, without building its grammars of web addresses: that takes two seconds."""
    grammars = "rfc3987_syntax"
    if "jsonschema" not in sys.modules and grammars not in sys.modules:
        sys.modules[grammars] = None  # type: ignore[assignment]  # as if it were not installed
        import jsonschema

        del sys.modules[grammars]
    import jsonschema

    return jsonschema


def choose_device(name: str = "auto") -> torch.device:
    """Return a device that exists on this machine.

    Parameters
    ----------
    name
        ``"auto"`` (CUDA, else MPS, else CPU), ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"mps"``.

    Raises
    ------
    InputError
        The name is unknown or there is no such device; the message lists what there is.
    """
    import torch

    present = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        present.append("mps")
    wanted = name.strip().lower()
    if wanted == "auto":
        wanted = next((d for d in ("cuda:0", "mps") if d in present), "cpu")
    if wanted == "cuda":
        wanted = "cuda:0"
    if wanted not in present:
        raise InputError(f"device {name!r} is not here; use auto or one of: {', '.join(present)}")
    return torch.device(wanted)


def make_generator(seed: int) -> torch.Generator:
    """Return a seeded generator; the only source of randomness that functions take."""
    import torch

    if isinstance(seed, bool) or int(seed) != seed or not 0 <= seed < 2**63:
        raise InputError(f"seed must be a whole number from 0 to 2**63 - 1, not {seed!r}")
    return torch.Generator().manual_seed(int(seed))


def choose_threads(n: int | None = None) -> int:
    """Set and return the number of torch threads, see `wanted_threads`; denormals become zero."""
    import torch

    n = wanted_threads(n)
    torch.set_num_threads(n)
    torch.set_flush_denormal(True)
    return n


def wanted_threads(n: int | None = None) -> int:
    """Return how many threads numerical libraries are to use.

    The default is EMLAB_THREADS, else the physical cores that this process may use, at most 4: the
    arrays here are small, and threads that wait for a busy core make a loop slower. On a machine
    shared with another job one thread can be faster than two; set ``EMLAB_THREADS=1`` there.
    """
    if n is None:
        text = os.environ.get("EMLAB_THREADS", "")
        try:
            n = int(text) if text else min(usable_cores(), MAX_DEFAULT_THREADS)
        except ValueError:
            raise InputError(f"EMLAB_THREADS={text} is not a number; set it to 1 or more") from None
    if n < 1:
        raise InputError(f"the number of threads must be at least 1, not {n}")
    return n


def has_fast_bfloat16(device: torch.device | str) -> bool:
    """Return whether the device multiplies bfloat16 matrices faster than float32 ones."""
    import torch

    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    flags = " ".join(_cpuinfo("flags")[:1])
    return "avx512_bf16" in flags or "amx_bf16" in flags


def usable_cores() -> int:
    """Return the physical cores that this process may use (logical ones where that is unknown)."""
    import psutil  # type: ignore[import-untyped]

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    ids = zip(_cpuinfo("physical id"), _cpuinfo("core id"), strict=False)
    return min(len(set(ids)) or psutil.cpu_count(logical=False) or 64, allowed or 1)


def _cpuinfo(key: str) -> list[str]:
    """Return the values of a field of Linux's /proc/cpuinfo, one per logical core; else empty."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    pairs = (line.partition(":") for line in lines)
    return [value.strip() for name, _, value in pairs if name.strip() == key]


def environment_stamp() -> dict[str, Any]:
    """Return where a number was made: versions, machine, threads, commit, time (UTC).

    ``commit`` is that of the source tree emlab runs from, with ``+dirty`` when tracked files differ
    from it, or "unknown" for an installed copy.
    """
    import numpy as np
    import torch

    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "emlab": emlab.__version__,
        "platform": platform.platform(),
        "cpu": next(iter(_cpuinfo("model name")), platform.processor() or platform.machine()),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "commit": _git_commit(),
        "utc": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _git_commit() -> str:
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)
        dirty = "+dirty" if git("status", "--porcelain", "--untracked-files=no") else ""
        return git("rev-parse", "HEAD") + dirty
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def peak_memory_mb() -> float:
    """Return the largest resident memory of this process so far, in megabytes (2**20 bytes)."""
    try:
        import resource
    except ImportError:  # Windows, where psutil knows it
        import psutil

        return psutil.Process().memory_info().peak_wset / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


class Stopwatch:
    """Context manager; ``.seconds`` is the time so far, and stands still after the block."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._stop: float | None = None

    def __enter__(self) -> Stopwatch:
        self._start, self._stop = time.perf_counter(), None
        return self

    def __exit__(self, *_: object) -> None:
        self._stop = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds since the start of the block."""
        return (time.perf_counter() if self._stop is None else self._stop) - self._start


class MemoryWatch:
    """Context manager; ``.megabytes`` is by how much memory grew at most inside the block.

    The resident memory of this process is read every 20 ms, so short peaks can be missed, and
    memory that was freed before but not given back to the system is not seen again. On a GPU the
    peak of torch's allocator there is added.
    """

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self.megabytes = 0.0
        self._device = str(device)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> MemoryWatch:
        import psutil

        self._process = psutil.Process()
        self._before = self._most = self._process.memory_info().rss
        if self._device.startswith("cuda"):
            import torch

            torch.cuda.reset_peak_memory_stats(self._device)
            self._before_gpu = torch.cuda.memory_allocated(self._device)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        grown = max(self._most, self._process.memory_info().rss) - self._before
        if self._device.startswith("cuda"):
            import torch

            grown += torch.cuda.max_memory_allocated(self._device) - self._before_gpu
        self.megabytes = grown / 2**20

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self._most = max(self._most, self._process.memory_info().rss)


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` if the block succeeds.

    Readers see the old file or the new one, never half of one. On an exception or an interrupt the
    temporary file is removed and ``path`` is as before. Missing parent folders are created. The
    temporary name ends like ``path``, for writers that go by suffix.

    Raises
    ------
    EmlabError
        The disk is full; the message names the folder.
    InputError
        The folder cannot be written to.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=f".tmp{path.suffix}")
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with open(temporary, "r+b") as stream:  # Windows flushes only what it may write to
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as problem:
        raise disk_error(problem, path) from problem
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST}


def disk_error(problem: OSError, path: Path) -> Exception:
    """Translate what the disk said about writing ``path`` into a message for the user."""
    # NumPy counts the bytes that did not fit and forgets the reason
    cut_short = problem.errno is None and "requested and" in str(problem)
    if cut_short or problem.errno in (errno.ENOSPC, errno.EDQUOT):
        return EmlabError(
            f"no space left on the disk that holds {path.parent}; free some and try again"
        )
    if problem.errno == errno.EFBIG:
        return EmlabError(
            f"{path} is larger than files may be there; choose another disk or raise the limit"
        )
    if problem.errno in FORBIDDEN:
        return InputError(f"cannot write {path}: {problem.strerror}; choose another place")
    return problem


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


REFERENCE_PROBE_SECONDS = 0.030


def probe_machine() -> float:
    """Return how long a fixed piece of work takes here, in seconds: how fast the machine is.

    Convolutions and Fourier transforms of the sizes that chapters use, with the threads that torch
    has now; the fastest of the rounds that fit into two seconds counts. Divided by
    `REFERENCE_PROBE_SECONDS` it says by how much times here are longer than on the machine that
    the limits of `make bench` are for: two cores with AVX-512.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    images = torch.randn(8, 32, 96, 96, generator=generator)
    kernels = torch.randn(32, 32, 3, 3, generator=generator)
    fields = torch.randn(64, 128, 128, generator=generator)
    best, end = float("inf"), time.perf_counter() + 2
    with torch.no_grad():
        while time.perf_counter() < end or best == float("inf"):
            with Stopwatch() as watch:
                for _ in range(4):
                    torch.nn.functional.conv2d(images, kernels, padding=1)
                    torch.fft.irfft2(torch.fft.rfft2(fields) * 2, s=(128, 128))
            best = min(best, watch.seconds)
    return best
