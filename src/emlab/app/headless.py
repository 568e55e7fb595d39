"""Execute a notebook in a child process with a controlled environment, kernel, time and end."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emlab.errors import InputError
from emlab.runtime import import_jsonschema, wanted_threads
from emlab.viz.explorers import SWITCH

ERROR_LINES = 8
START_TIMEOUT_SECONDS = 180
ORPHAN_CHECK_SECONDS = 0.5
_THREAD_VARIABLES = ("EMLAB_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_CHILD = "import sys; from emlab.app.headless import child; sys.exit(child(sys.argv[1]))"
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")

_running: set[subprocess.Popen[bytes]] = set()
_interrupted: set[subprocess.Popen[bytes]] = set()


def end_all() -> None:
    """End every notebook that runs; in the threads that wait for them it is a KeyboardInterrupt."""
    for child in list(_running):
        _interrupted.add(child)
        _end(child)


def execute(
    notebook: Path,
    output: Path,
    parameters: Mapping[str, Any],
    log: Path,
    threads: int | None = None,
    timeout: float | None = None,
) -> list[str]:
    """Execute a notebook in a new process; return what went wrong, in a few lines (empty: nothing).

    It runs in the folder of `output`, so that it can lean on no file beside itself, with a kernel
    of this very interpreter, which an interrupt or an error here ends. `output` is also there after
    a failure, as far as it got; `log` has what the child and native libraries print.
    """
    for module in ("papermill", "ipykernel"):
        if importlib.util.find_spec(module) is None:
            raise InputError(
                f"running a chapter needs {module}: pip install 'emlab-book[notebooks]'"
            )
    progress = sys.stderr.isatty()
    with tempfile.TemporaryDirectory(prefix="emlab-run-") as scratch, open(log, "wb") as log_stream:
        error, job_path = Path(scratch, "error.json"), Path(scratch, "job.json")
        papermill = {
            "input_path": str(notebook),
            "output_path": str(output),
            "parameters": dict(parameters),
            "cwd": str(output.parent),
            "progress_bar": progress,
        }
        job = {"papermill": papermill, "error": str(error), "parent": os.getpid()}
        job_path.write_text(json.dumps(job), encoding="utf-8")
        child = subprocess.Popen(
            [sys.executable, "-c", _CHILD, str(job_path)],
            env=_environment(Path(scratch), threads),
            stdin=subprocess.DEVNULL,
            stdout=log_stream,
            stderr=None if progress else log_stream,
            start_new_session=True,
        )
        _running.add(child)
        try:
            status = child.wait(timeout)
        except subprocess.TimeoutExpired:
            return [f"stopped after {timeout:g} s (time-out)"]
        finally:
            _running.discard(child)
            _end(child)
        if child in _interrupted:
            raise KeyboardInterrupt
        if error.is_file():
            return json.loads(error.read_text(encoding="utf-8"))
    if status == 0:
        return []
    last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-ERROR_LINES:]
    return [f"the runner ended with status {status}: {last[-1] if last else 'no message'}", *last]


def _environment(scratch: Path, threads: int | None) -> dict[str, str]:
    """Return the child's environment: threads, absolute paths, and a kernel that is this Python."""
    environment = dict(os.environ)
    environment.pop("MPLBACKEND", None)
    count = str(wanted_threads(threads))
    for name in _THREAD_VARIABLES:
        if threads is not None or not environment.get(name):
            environment[name] = count
    for name in ("EMLAB_MIRROR", "EMLAB_CACHE", "EMLAB_WEIGHTS", "EMLAB_EXPECTED"):
        if environment.get(name):
            environment[name] = str(Path(environment[name]).expanduser().resolve())
    if environment.get("PYTHONPATH"):
        folders = environment["PYTHONPATH"].split(os.pathsep)
        environment["PYTHONPATH"] = os.pathsep.join(
            str(Path(folder).resolve()) for folder in folders
        )
    kernel = scratch / "kernels" / "python3"
    kernel.mkdir(parents=True)
    command = [sys.executable, "-Xfrozen_modules=off", "-m", "ipykernel_launcher"]
    specification = {
        "argv": [*command, "-f", "{connection_file}"],
        "display_name": "Python 3",
        "language": "python",
    }
    (kernel / "kernel.json").write_text(json.dumps(specification), encoding="utf-8")
    others = environment.get("JUPYTER_PATH", "")
    environment["JUPYTER_PATH"] = os.pathsep.join(filter(None, [str(scratch), others]))
    environment["JUPYTER_RUNTIME_DIR"] = str(scratch / "runtime")
    environment["IPYTHONDIR"] = str(scratch / "ipython")
    environment["PYTHONHASHSEED"] = "0"
    environment[SWITCH] = "off"  # nobody is there to move a slider
    environment["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"
    return environment


def _end(child: subprocess.Popen[bytes]) -> None:
    """End a child that still runs and everything below it; the kernel has a session of its own."""
    if child.poll() is not None:
        return
    import psutil  # type: ignore[import-untyped]

    below = psutil.Process(child.pid).children(recursive=True)
    child.send_signal(signal.SIGTERM if os.name == "nt" else signal.SIGINT)
    try:
        child.wait(5)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    for process in below:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(below, 5)


# --- in the child


def child(job_path: str) -> int:
    """Execute the notebook of a job file; returns the exit status.

    If a cell fails, ``error`` (a path of the job) receives the lines for the reader, and the status
    is 1. When the parent is gone, killed perhaps, so is this process, and with it the kernel:
    nothing goes on writing where a second run may have begun.
    """
    import_jsonschema()  # as papermill would, but quickly
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    job = json.loads(Path(job_path).read_text(encoding="utf-8"))
    threading.Thread(target=_leave_with, args=[job["parent"]], daemon=True).start()
    try:
        papermill.execute_notebook(
            **job["papermill"],
            kernel_name="python3",
            language="python",
            start_timeout=START_TIMEOUT_SECONDS,
            autosave_cell_every=0,
        )
    except PapermillExecutionError as problem:
        message = _ANSI.sub("", problem.evalue).strip() or "(no message)"
        trace = _ANSI.sub("", "\n".join(problem.traceback)).splitlines()
        where = f"cell {problem.cell_index}: {problem.ename}: {message.splitlines()[0]}"
        lines = [where, *[line for line in trace if line.strip()][-ERROR_LINES:]]
    except DeadKernelError:
        text = "the kernel died (out of memory?); run.log has what it said last"
        lines = [f"DeadKernelError: {text}"]
    else:
        return 0
    Path(job["error"]).write_text(json.dumps(lines), encoding="utf-8")
    return 1


def _leave_with(parent: int) -> None:
    """End this process once its parent has ended; the kernel watches this one in the same way."""
    import psutil

    # On Windows the parent may be a launcher in between, and its number stays when it has ended.
    while psutil.pid_exists(parent) if os.name == "nt" else os.getppid() == parent:
        time.sleep(ORPHAN_CHECK_SECONDS)
    os._exit(1)
