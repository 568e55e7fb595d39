"""Full disks, caches and homes that cannot be written, no network: it is said in one line.

A full disk is a tmpfs of one megabyte in a mount namespace of its own; a user who may not have
that skips the test. A limit on the size of files stands in for it.
"""

from __future__ import annotations

import functools
import shlex
import subprocess
import sys
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

WRITERS = """
import resource, signal, sys
from pathlib import Path
import numpy as np
import torch
from emlab import weights
from emlab.errors import EmlabError
from emlab.io import read_image, write_image
from emlab.io.images import write_like
from emlab.io.volumes import create_volume
from emlab.bench import Report
from emlab.app.journal import keep_arrays
from emlab.training import TrainingConfig
from emlab.training.state import State

folder, limited = Path(sys.argv[1]), sys.argv[2] == "limited"
small = np.arange(400, dtype=np.float32).reshape(20, 20)
large = np.random.default_rng(0).random((700, 700)).astype(np.float32)
if limited:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))

def refused(name, write, path):
    before = path.read_bytes() if path.exists() else None
    names = {item.name for item in folder.rglob("*")}
    try:
        write()
    except EmlabError as problem:
        assert str(problem).count("\\n") == 0, name
        said = str(problem)
        assert "no space" in said or "larger than files may be" in said, problem
    else:
        raise AssertionError(f"{name} was written to a full disk")
    assert (path.read_bytes() if path.exists() else None) == before, name
    assert {item.name for item in folder.rglob("*")} == names, name
    print(name)

for suffix in (".mrc", ".tif", ".png", ".npy"):
    path = folder / f"image{suffix}"
    first = small.astype(np.uint8) if suffix == ".png" else small
    write_image(path, first, 2.0)
    # one disk is full from the start, the other after some hundred kilobytes
    pixels = np.tile((large * 65535).astype(np.uint16), (2, 1)) if suffix == ".png" else large
    pixels = np.tile(pixels, (1, 2))
    refused(f"write_image {suffix}", lambda: write_image(path, pixels, 2.0), path)
    assert np.array_equal(read_image(path).pixels, first)
    if suffix in (".mrc", ".tif") and not limited:
        source = Path(sys.argv[3]) / f"source{suffix}"
        refused(f"write_like {suffix}", lambda: write_like(path, pixels, source), path)

def volume(path):
    with create_volume(path, (3, 700, 700), "float32", 2.0) as target:
        target[:] = large

for suffix in (".mrc", ".tif", ".npy", ".zarr"):
    path = folder / f"volume{suffix}"
    if not (limited and suffix == ".zarr"):  # its chunks are small files
        refused(f"volume {suffix}", lambda: volume(path), path)

network = torch.nn.Linear(700, 700)
state = State(network, TrainingConfig(steps=1))
path = folder / "run.checkpoint"
refused("checkpoint", lambda: state.save(path), path)
fields = dict.fromkeys(("recipe", "data", "split", "device", "commit", "limits"), "none")
fields |= {"steps": 0, "seconds": 0.0, "seed": 0, "evaluation": {}, "model": {}, "objective": {}}
(folder / "files").mkdir()
(folder / "cards").mkdir()
path = folder / "files" / "big.safetensors"
refused("weights", lambda: weights.save("big", network.state_dict(), fields, folder), path)
path = folder / "part.npz"
refused("arrays beside a journal", lambda: keep_arrays(path, {"a": np.tile(large, 2)}), path)
path = folder / "00_long" / "metrics.json"
report = Report("00_long", folder, "smoke", 0, "cpu")
for number in range(30):
    report.value(f"value{number}", 0.5, note="long " * 10_000)
path.parent.mkdir()
refused("metrics.json", report.save, path)
"""


@pytest.mark.parametrize("how", ["mounted", "limited"])
def test_a_full_disk_is_one_sentence_and_the_old_files_stay(tmp_path: Path, how: str) -> None:
    disk, source = tmp_path / "disk", tmp_path / "source"
    disk.mkdir()
    for suffix in (".mrc", ".tif"):
        write_image(source / f"source{suffix}", np.ones((700, 1400), np.float32), 2.0)
    script = [sys.executable, "-c", WRITERS, disk, how, source]
    if how == "mounted":
        if not namespaces("--mount"):
            pytest.skip("no mount namespace for this user")
        script = mounted(disk, "size=1m", f"exec {shlex.join(map(str, script))}")
    done = run(script)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == {"mounted": 14, "limited": 11}[how]


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


# No network


def test_without_a_network_fetching_says_what_to_do(tmp_path: Path) -> None:
    command = ["emlab", "data", "fetch", "mnist_train_60k"]
    proxies = {} if namespaces("--net") else LONELY
    variables = environment(EMLAB_CACHE=str(tmp_path / "cache"), **proxies)
    done = run([*namespaces("--net"), *command], env=variables)
    message = one_line(done, 3)
    assert "connect to the network and run `emlab data fetch mnist_train_60k`" in message
    assert "EMLAB_MIRROR" in message
