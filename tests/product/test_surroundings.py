"""Full disks, caches and homes that cannot be written: a command ends with one line.

A full disk is a tmpfs of one megabyte in a mount namespace of its own; a user who may not have
that skips the test.
"""

from __future__ import annotations

import functools
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
from killing import EMLAB, environment, run

from emlab.io import write_image

LONELY = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}


@functools.cache
def namespaces(*kinds: str) -> list[str]:
    """The words that start a command in namespaces of its own, or none where that is forbidden."""
    for words in (["unshare", *kinds], ["unshare", "--map-root-user", *kinds]):
        try:
            if subprocess.run([*words, "true"], capture_output=True, check=False).returncode == 0:
                return words
        except FileNotFoundError:
            break
    return []


def mounted(folder: Path, options: str, line: str) -> list[str]:
    """The words that run a line of shell with a tmpfs over a folder that nobody else sees."""
    mount = f"mount -t tmpfs -o {options} none {shlex.quote(str(folder))}"
    return [*namespaces("--mount"), "sh", "-c", f"{mount} && {line}"]


def one_line(done: subprocess.CompletedProcess[str], status: int) -> str:
    """The message of a command that failed as it should."""
    assert done.returncode == status, done.stdout + done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("emlab: error: ")]
    assert len(errors) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return errors[0]


# Full disk


@pytest.mark.skipif(not namespaces("--mount"), reason="no mount namespace for this user")
def test_a_full_disk_ends_a_command_with_one_line(tmp_path: Path) -> None:
    command = f"{shlex.quote(EMLAB)} mtd simulate field.npy --digit 3 --field-size 900"
    line = f"cd {shlex.quote(str(tmp_path))} && {command}; status=$?; ls -A; exit $status"
    done = run(mounted(tmp_path, "size=1m", line))
    assert "no space left" in one_line(done, 2)
    assert done.stdout == ""


# Caches and homes


def test_a_home_that_cannot_be_written_is_needed_for_nothing_but_fetching(tmp_path: Path) -> None:
    """Nobody, not even root, can make a folder below a file."""
    home = tmp_path / "file"
    home.write_text("in the way")
    hidden = {name: str(home / "x") for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")}
    hidden |= {"MPLCONFIGDIR": str(home / "x")}
    options = {"env": environment(**hidden, **LONELY), "cwd": tmp_path}
    for command in (["data", "list"], ["weights", "list"]):
        done = run(["emlab", *command], **options)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
    done = run(["emlab", "data", "fetch", "mnist_train_60k"], **options)
    assert "cannot write" in one_line(done, 2)
    image = write_image(tmp_path / "digit.npy", np.eye(8, dtype=np.float32))
    done = run(["emlab", "mtd", "simulate", "field.npy", "--image", image], **options)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "field.npy").is_file()


@pytest.mark.skipif(not namespaces("--mount"), reason="no mount namespace for this user")
def test_a_cache_on_a_disk_that_is_read_only(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    (cache / "mnist").mkdir(parents=True)
    line = f"exec {shlex.quote(EMLAB)} data fetch mnist_train_60k"
    done = run(mounted(cache, "ro", line), env=environment(EMLAB_CACHE=str(cache), **LONELY))
    assert "cannot write" in one_line(done, 2)
