"""A cluster of two processes of which one is killed: nothing is lost, nothing is done again."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import mrcfile
import numpy as np
import pytest

from emlab.app import cli
from emlab.io import write_image
from emlab.io.volumes import create_volume, open_volume

distributed = pytest.importorskip("distributed")

# What every worker loads first: the functions that compute then leave a line before and after.
COUNTING = """
import os, time
from emlab.app import blocks
from emlab.app.commands import tsm

def note(word, what):
    with open(os.environ["EMLAB_TEST_LOG"], "a") as log:
        log.write(f"{word} {os.getpid()} {what}\\n")

def count(module, name, what):
    inner = getattr(module, name)
    if inner.__name__ == "counted":  # a worker may load this twice
        return

    def counted(*arguments):
        note("begun", what(*arguments))
        time.sleep(0.4)  # so that a worker can be killed in the middle of it
        result = inner(*arguments)
        note("ended", what(*arguments))
        return result

    setattr(module, name, counted)

count(tsm, "denoise_file", lambda source, *_: source.name)
count(blocks, "_compute", lambda source, function, box: "-".join(map(str, box.origin)))
"""


class Log:
    """What the workers wrote: (begun or ended, process, what)."""

    def __init__(self, path):
        self.path = path

    def lines(self):
        text = self.path.read_text() if self.path.exists() else ""
        return [tuple(line.split()) for line in text.splitlines()]

    def count(self, word):
        return Counter(what for kind, _, what in self.lines() if kind == word)

    def open_tasks(self):
        """What was begun and not ended, by process."""
        open_ = {}
        for kind, process, what in self.lines():
            if kind == "begun":
                open_[process] = what
            else:
                open_.pop(process, None)
        return open_


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Address of a scheduler with two workers, and the log that they write."""
    log = Log(tmp_path / "log.txt")
    preload = tmp_path / "counting.py"
    preload.write_text(COUNTING)
    for name, value in (("EMLAB_TEST_LOG", str(log.path)), ("EMLAB_THREADS", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, preload=[str(preload)]
    ) as found:
        yield found.scheduler_address, log


def run_and_kill(address, log, *words):
    """Run a command; kill a worker while it computes, after both have finished something."""
    command = [sys.executable, "-c", "import sys; from emlab.app.cli import main; sys.exit(main())"]
    with subprocess.Popen(
        [*command, *map(str, words), "--scheduler", address],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as run:  # fmt: skip
        victim = None
        while victim is None:
            assert run.poll() is None, run.communicate()
            victim = kill_one(log)
            time.sleep(0.02)
        out, err = run.communicate()
    assert run.returncode == 0, err[-3000:]
    return victim, out


def kill_one(log):
    """End a worker that is in the middle of a task, once both have done one; who it was."""
    ended = {process for kind, process, _ in log.lines() if kind == "ended"}
    for process in log.open_tasks() if len(ended) == 2 else ():
        if process in ended:
            os.kill(int(process), signal.SIGSTOP)
            if process in log.open_tasks():  # it was not quicker than this process
                os.kill(int(process), signal.SIGKILL)
                return process
            os.kill(int(process), signal.SIGCONT)
    return None


def assert_nothing_twice(log, victim, expected):
    """All was computed, once; but for the task that the killed worker had begun."""
    lost = log.open_tasks().get(victim)
    assert lost is not None, "the worker was killed between two tasks"
    begun, ended = log.count("begun"), log.count("ended")
    assert set(ended) == set(begun) == set(expected)
    assert set(ended.values()) == {1}
    assert begun.pop(lost) == 2
    assert set(begun.values()) == {1}


def test_folder_of_micrographs(cluster, tmp_path):
    address, log = cluster
    generator = np.random.default_rng(0)
    (tmp_path / "raw").mkdir()
    names = [f"{number}.mrc" for number in range(8)]
    for name in names:
        counts = generator.poisson(100, (96, 80)).astype(np.float32)
        write_image(tmp_path / "raw" / name, counts, 2.63)
    victim, out = run_and_kill(address, log, "tsm", "denoise", tmp_path / "raw", tmp_path / "out")
    assert_nothing_twice(log, victim, names)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert [line.split()[0] for line in out.splitlines()] == [
        str(tmp_path / "out" / name) for name in names
    ]
    assert cli.main(["tsm", "denoise", str(tmp_path / "raw"), str(tmp_path / "alone")]) == 0
    for name in names:
        with (
            mrcfile.open(tmp_path / "out" / name) as theirs,
            mrcfile.open(tmp_path / "alone" / name) as ours,
        ):
            np.testing.assert_array_equal(theirs.data, ours.data)


def test_volume_block_by_block(cluster, tmp_path):
    address, log = cluster
    source, shape = tmp_path / "in.npy", (2, 96, 120)
    waves = 40 * np.sin(np.arange(shape[2]) / 5)
    values = np.random.default_rng(1).normal(120 + waves, 20, shape).astype(np.float32)
    with create_volume(source, shape, "float32") as volume:
        volume[:] = values
    words = "generalist", "denoise", source
    options = "--memory", "1", "--noise", "20"
    victim, out = run_and_kill(address, log, *words, tmp_path / "out.zarr", *options)
    alone = tmp_path / "alone.zarr"
    assert cli.main([str(word) for word in (*words, alone, *options)]) == 0
    places = set(log.count("ended"))
    assert len(places) > 8
    assert_nothing_twice(log, victim, places)
    assert f"{len(places)}, {len(places)} of them now" in out
    with open_volume(tmp_path / "out.zarr") as theirs, open_volume(alone) as ours:
        np.testing.assert_array_equal(theirs[:], ours[:])
    assert not list(tmp_path.glob(".*partial*"))


def test_a_recipe_is_trained_by_two_processes(tmp_path):
    """`torchrun` starts the command as it is; the first process writes."""
    emlab = Path(sys.executable).with_name("emlab")
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *("--local-addr", "127.0.0.1", "--nproc-per-node", "2", str(emlab), "train"),
        *("mtd_gaussian_mlp", "--profile", "smoke", "--device", "cpu", "--out", str(tmp_path)),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "EMLAB_THREADS": "1"}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("written to") == 1
    assert [path.stem for path in tmp_path.rglob("*.safetensors")] == ["mtd_gaussian_mlp"]
