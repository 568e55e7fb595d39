"""What Windows and macOS lack is not needed: modules, functions of the system, /proc, links."""

import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from emlab import chapters, runtime
from emlab.app import headless
from emlab.external.process import run_program
from tools import public
from tools.release import ROOT

LACKING = ("sched_getaffinity", "wait4")
SCRIPT = f"""
import os, sys
from importlib import import_module
import psutil, torch  # what others do on their system is theirs
for name in ("resource", "fcntl", "pwd", "grp", "termios"):
    sys.modules[name] = None
for name in {LACKING}:
    delattr(os, name)
for name in sys.argv[1:]:
    import_module(name)
from emlab.runtime import atomic_path, environment_stamp
environment_stamp()
print(len(sys.argv) - 1)
"""


@pytest.fixture
def bare(monkeypatch):
    """This process as on Windows: a part of `os` and the module `resource` are missing."""
    for name in LACKING:
        monkeypatch.delattr(os, name, raising=False)
    monkeypatch.setitem(sys.modules, "resource", None)


def test_every_module_can_be_imported_where_posix_is_missing():
    modules = public.modules()
    command = [sys.executable, "-c", SCRIPT, *modules]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) == len(modules) > 150


def test_peak_memory_and_cores_are_known_without_posix(bare, monkeypatch):
    class Windows:
        def memory_info(self):
            return type("", (), {"peak_wset": 3 * 2**20})

    def absent(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr(psutil, "Process", Windows)
    assert runtime.peak_memory_mb() == 3
    monkeypatch.setattr(Path, "read_text", absent)
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: 1)
    assert runtime.usable_cores() == 1
    assert not runtime.has_fast_bfloat16("cpu")


def test_a_program_is_measured_without_wait4(bare, tmp_path):
    burn = "import time\nwhile time.process_time() < .3: pass\nprint('done')"
    done = run_program([sys.executable, "-c", burn], tmp_path)
    assert done.output.strip() == "done"
    assert 0.05 < done.cpu_seconds < 5
    assert 1 < done.peak_memory_mb < 1000
    assert math.isfinite(done.seconds)


def test_a_runner_on_windows_ends_with_its_parent(monkeypatch):
    # The modules as this one sees them, not the modules: other threads use those.
    alive, ended = iter([True, True, False]), []
    monkeypatch.setattr(headless, "os", SimpleNamespace(name="nt", _exit=ended.append))
    monkeypatch.setattr(headless, "time", SimpleNamespace(sleep=lambda seconds: None))
    monkeypatch.setattr(psutil, "pid_exists", lambda pid: next(alive))
    headless._leave_with(1)
    assert ended == [1]
    assert next(alive, "all asked") == "all asked"


def test_the_repository_holds_no_links():
    """A checkout on Windows makes text files of them."""
    listed = subprocess.run(
        ["git", "ls-files", "--stage"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert listed
    assert [line for line in listed if line.startswith("120000")] == []
    assert {path.parent for path in chapters.shipped()} == {ROOT / "notebooks"}
