"""The process that executes one notebook: ``python -m emlab.app.runner.child JOB.json``.

The job holds input, output, parameters, cwd, progress and parent. If a cell fails, ``error`` (a
path of the job) receives one JSON object {cell, name, message, lines} and the exit status is 1.
When the parent is gone, killed perhaps, so is this process, and with it the kernel: nothing goes
on writing where a second run may have begun.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time
from pathlib import Path
from typing import Any

START_TIMEOUT_SECONDS = 180
ORPHAN_CHECK_SECONDS = 0.5
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def main(job_path: str) -> int:
    """Execute the notebook of a job; returns the exit status."""
    from emlab.runtime import import_jsonschema

    import_jsonschema()  # as papermill would, but quickly
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    job = json.loads(Path(job_path).read_text(encoding="utf-8"))
    threading.Thread(target=_leave_with, args=[job["parent"]], daemon=True).start()
    try:
        papermill.execute_notebook(
            job["input"],
            job["output"],
            parameters=job["parameters"],
            kernel_name="python3",
            language="python",
            cwd=job["cwd"],
            progress_bar=job["progress"],
            start_timeout=START_TIMEOUT_SECONDS,
            autosave_cell_every=0,
        )
    except PapermillExecutionError as problem:
        _tell(job, problem.cell_index, problem.ename, problem.evalue, problem.traceback)
        return 1
    except DeadKernelError:
        text = "the kernel died (out of memory?); run.log has what it said last"
        _tell(job, None, "DeadKernelError", text, [])
        return 1
    return 0


def _leave_with(parent: int) -> None:
    """End this process once its parent has ended; the kernel watches this one in the same way.

    On Windows the parent may be a launcher in between, and its number stays when it has ended.
    """
    import psutil  # type: ignore[import-untyped]

    while psutil.pid_exists(parent) if os.name == "nt" else os.getppid() == parent:
        time.sleep(ORPHAN_CHECK_SECONDS)
    os._exit(1)


def _tell(job: dict[str, Any], cell: int | None, name: str, message: str, trace: list[str]) -> None:
    lines = _ANSI.sub("", "\n".join(trace)).splitlines()
    content = {"cell": cell, "name": name, "message": _ANSI.sub("", message), "lines": lines}
    Path(job["error"]).write_text(json.dumps(content), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
