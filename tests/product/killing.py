"""Commands in processes of their own that are killed, without a chance to clean up, at a mark."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

EMLAB = str(Path(sys.executable).with_name("emlab"))
PATIENCE = 300.0  # seconds; a machine may be busy


def environment(**changes: str) -> dict[str, str]:
    """Variables of this process, one thread, no mirror, and what is changed."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("EMLAB_")}
    return {**plain, "OMP_NUM_THREADS": "1", "EMLAB_THREADS": "1", **changes}


def start(command: Sequence[object], **options: object) -> subprocess.Popen[str]:
    """Start a command; ``emlab`` is the one of this interpreter."""
    words = [EMLAB if word == "emlab" else str(word) for word in command]
    options = {"env": environment(), **options}
    return subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def finish(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    """Wait for a command."""
    out, err = process.communicate(timeout=PATIENCE)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def run(command: Sequence[object], **options: object) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return finish(start(command, **options))


def kill_at(process: subprocess.Popen[str], mark: Callable[[], bool]) -> None:
    """Kill a process the moment that a mark is seen; it must still be running then."""
    wait_until(lambda: mark() or process.poll() is not None)
    running = process.poll() is None
    process.send_signal(signal.SIGKILL)
    out, err = process.communicate(timeout=PATIENCE)
    assert running, f"it ended before the mark was seen\n{out}\n{err}"
    assert process.returncode == -signal.SIGKILL


def wait_until(seen: Callable[[], bool]) -> None:
    """Look every few milliseconds."""
    end = time.monotonic() + PATIENCE
    while not seen():
        assert time.monotonic() < end, "the mark was never seen"
        time.sleep(0.002)


def is_alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
