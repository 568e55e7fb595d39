"""Runtime: devices, seeds, threads, stamps, and files that appear whole or not at all."""

import errno
import json
import os
import subprocess
import sys
import time

import pytest
import torch

from emlab import runtime
from emlab.errors import EmlabError, InputError


@pytest.fixture
def torch_settings():
    """Leave threads and determinism as they were."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


def test_cpu_is_always_there_and_auto_is_a_device_that_works():
    assert runtime.choose_device("cpu") == torch.device("cpu")
    assert torch.zeros(1, device=runtime.choose_device("auto")).item() == 0


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "", "tpu"])
def test_absent_device_is_refused_and_the_message_says_what_exists(name):
    with pytest.raises(InputError, match="cpu"):
        runtime.choose_device(name)


def test_cuda_without_gpu_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(InputError, match="use auto or one of: cpu"):
        runtime.choose_device("cuda")


def test_cuda_means_the_first_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert runtime.choose_device("cuda") == torch.device("cuda:0")
    assert runtime.choose_device("cuda:1") == torch.device("cuda:1")
    assert runtime.choose_device("auto") == torch.device("cuda:0")


def test_same_seed_same_numbers():
    first, second, other = (
        torch.randn(5, generator=runtime.make_generator(seed)) for seed in (3, 3, 4)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("seed", [-1, 1.5, True, 2**63])
def test_bad_seed_is_refused(seed):
    with pytest.raises(InputError, match="seed"):
        runtime.make_generator(seed)


def test_threads_from_argument_environment_and_default(monkeypatch, torch_settings):
    monkeypatch.setenv("EMLAB_THREADS", "1")
    assert runtime.choose_threads() == torch.get_num_threads() == 1
    assert runtime.choose_threads(2) == torch.get_num_threads() == 2
    monkeypatch.delenv("EMLAB_THREADS")
    assert 1 <= runtime.choose_threads() <= runtime.MAX_DEFAULT_THREADS
    monkeypatch.setattr(runtime, "usable_cores", lambda: 64)
    assert runtime.choose_threads() == 4


def test_choosing_threads_flushes_denormals(torch_settings):
    torch.set_flush_denormal(False)
    runtime.choose_threads(1)
    assert (torch.tensor([1e-39]) * 1.0 + 0.0).item() == 0.0
    torch.set_flush_denormal(False)


@pytest.mark.parametrize("text", ["0", "-2", "many"])
def test_bad_thread_count_is_refused(monkeypatch, text):
    monkeypatch.setenv("EMLAB_THREADS", text)
    with pytest.raises(InputError, match="1"):
        runtime.choose_threads()


def test_hyperthreads_are_not_counted_as_cores(monkeypatch):
    two_by_two = {"physical id": ["0", "0", "0", "0"], "core id": ["0", "1", "0", "1"]}
    monkeypatch.setattr(runtime, "_cpuinfo", lambda key: two_by_two.get(key, []))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(4)), raising=False)
    assert runtime.usable_cores() == 2
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0}, raising=False)
    assert runtime.usable_cores() == 1


def test_stamp_is_json_and_says_where(monkeypatch):
    stamp = json.loads(json.dumps(runtime.environment_stamp()))
    assert stamp["torch"] == torch.__version__
    assert stamp["threads"] >= 1
    assert stamp["cpu"]
    assert stamp["utc"].endswith("+00:00")
    assert stamp["commit"] == "unknown" or len(stamp["commit"].removesuffix("+dirty")) == 40


def test_stamp_survives_a_machine_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert runtime.environment_stamp()["commit"] == "unknown"


def test_stopwatch_stops_and_memory_is_plausible():
    with runtime.Stopwatch() as watch:
        time.sleep(0.02)
        inside = watch.seconds
    after = watch.seconds
    time.sleep(0.01)
    assert 0.02 <= inside <= after == watch.seconds < 5
    assert 10 < runtime.peak_memory_mb() < 1e6


def test_atomic_write_replaces_and_makes_folders(tmp_path):
    target = tmp_path / "new" / "a.txt"
    for text in ("one", "two"):
        with runtime.atomic_path(target) as temporary:
            assert temporary.parent == target.parent
            assert temporary.suffix == ".txt"
            temporary.write_text(text)
            assert not target.exists() or target.read_text() == "one"
        assert target.read_text() == text
    assert [p.name for p in target.parent.iterdir()] == ["a.txt"]
    assert target.stat().st_mode & 0o777 == 0o666 & ~runtime._umask()


@pytest.mark.parametrize("problem", [ValueError("x"), KeyboardInterrupt()])
def test_failed_or_interrupted_write_keeps_the_old_file(tmp_path, problem):
    target = tmp_path / "a.txt"
    target.write_text("old")

    def write_half():
        with runtime.atomic_path(target) as temporary:
            temporary.write_text("half")
            raise problem

    with pytest.raises(type(problem)):
        write_half()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_terminated_write_leaves_no_half_file(tmp_path):
    code = (
        "import sys, time; from emlab.runtime import atomic_path\n"
        "with atomic_path(sys.argv[1]) as t:\n"
        "    t.write_text('half'); print('in', flush=True); time.sleep(60)"
    )
    target = tmp_path / "a.txt"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(target)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout.readline() == b"in\n"
        process.kill()
    assert not target.exists()


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [(errno.ENOSPC, EmlabError, "no space left"), (errno.EACCES, InputError, "cannot write")],
)
def test_disk_trouble_is_one_clear_error(tmp_path, monkeypatch, number, kind, words):
    def fail(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(runtime.os, "fsync", fail)
    target = tmp_path / "a.txt"
    with pytest.raises(kind, match=words) as caught, runtime.atomic_path(target) as temporary:
        temporary.write_text("x")
    assert str(tmp_path) in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_file_in_place_of_a_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InputError, match="choose another place"),
        runtime.atomic_path(tmp_path / "file" / "a.txt"),
    ):
        pass
