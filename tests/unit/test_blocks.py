"""Blocks: the same volume whatever the blocks, no seams, nothing computed twice, bounded memory."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from emlab.app.blocks import block_shape_for, process_blocks
from emlab.app.journal import Journal
from emlab.app.volumes import NoiseField
from emlab.errors import EmlabError, InputError
from emlab.io.volumes import create_volume, open_volume

RNG = np.random.default_rng(3)
VOLUME = RNG.normal(size=(13, 21, 18)).astype(np.float32)
LAYOUTS = [  # block, halo
    ((100, 100, 100), 2),
    ((8, 9, 10), 0),
    ((8, 9, 10), 2),
    ((7, 12, 18), (1, 3, 0)),
    ((8, 12, 11), 1),
]


def run(source, block, halo, function, scale=(1, 1, 1), dtype=np.float32, **options):
    """Result over the whole volume, and what the run reports."""
    made = [n * f for n, f in zip(source.shape, scale, strict=True)]
    target = np.full(made, 99, dtype)
    report = process_blocks(source, target, block, halo, function, scale=scale, **options)
    return target, report


@pytest.mark.parametrize(("block", "halo"), LAYOUTS)
def test_pointwise_function_gives_the_same_bits_whatever_the_blocks(block, halo):
    def function(values, origin):
        return np.sin(values) * np.float32(1.7) + 3

    result, report = run(VOLUME, block, halo, function)
    np.testing.assert_array_equal(result, function(VOLUME, None))
    assert report.computed == report.blocks
    assert (report.blocks == 1) == (block[0] > 13)


@pytest.mark.parametrize(("block", "halo"), LAYOUTS)
def test_blocks_are_whole_coarse_slices_and_know_where_they_lie(block, halo):
    def function(values, origin):
        box = tuple(slice(o, o + n) for o, n in zip(origin, values.shape, strict=True))
        np.testing.assert_array_equal(values, VOLUME[box])
        assert all(n <= b for n, b in zip(values.shape, block, strict=True))
        fine = [5 * origin[0], 2 * origin[1], origin[2]]
        shape = [5 * values.shape[0], 2 * values.shape[1], values.shape[2]]
        return torch.from_numpy(np.indices(shape).astype(np.float32)[0] + fine[0])

    result, _ = run(VOLUME, block, halo, function, scale=(5, 2, 1))
    expected = np.indices(result.shape)[0]
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("block", [(9, 10, 11), (13, 9, 18), (8, 30, 9)])
def test_local_filter_with_a_halo_of_its_reach_equals_that_of_the_whole(block):
    def function(values, origin):
        return ndimage.uniform_filter(values.astype(float), 5, mode="reflect")

    result, _ = run(VOLUME, block, 2, function)
    np.testing.assert_allclose(result, function(VOLUME, None), atol=1e-6)
    short, _ = run(VOLUME, block, 1, function)
    assert np.abs(short - function(VOLUME, None)).max() > 1e-2


@pytest.mark.parametrize("scale", [(1, 1, 1), (4, 1, 1)])
def test_blocks_that_disagree_are_blended_without_a_step(scale):
    source = np.zeros((40, 40, 40), np.float32)
    levels = np.random.default_rng(1)

    def function(values, origin):
        return np.full([n * f for n, f in zip(values.shape, scale, strict=True)], levels.random())

    halo = 8
    result, report = run(source, (34, 34, 34), halo, function, scale=scale)
    assert report.blocks == 64
    assert 0 <= result.min() < 0.1
    assert 0.9 < result.max() <= 1
    for axis in range(3):  # the steepest place of sin^2 over so many pixels
        assert np.abs(np.diff(result, axis=axis)).max() < np.pi / 2 / (halo * scale[axis]) * 1.05
    hard, _ = run(source, (10, 10, 10), 0, function, scale=scale)
    assert np.abs(np.diff(hard, axis=0)).max() > 0.5


@pytest.mark.parametrize(("block", "halo"), LAYOUTS)
def test_noise_of_overlapping_blocks_is_one_field(block, halo):
    field = NoiseField(11)

    def function(values, origin):
        return field.at(4, (3 * origin[0], *origin[1:]), (3 * len(values), *values.shape[1:]))

    result, _ = run(VOLUME, block, halo, function, scale=(3, 1, 1))
    np.testing.assert_array_equal(result, field.at(4, (0, 0, 0), result.shape).numpy())


def test_integer_targets_are_rounded_and_clipped():
    result, _ = run(VOLUME, (8, 9, 10), 1, lambda values, _: 200 * values, dtype=np.uint8)
    np.testing.assert_array_equal(result, np.clip(np.rint(200 * VOLUME), 0, 255))


def test_a_function_that_writes_into_its_block_leaves_the_source_alone():
    before = VOLUME.copy()

    def function(values, origin):
        values *= 0
        return values

    run(VOLUME, (8, 9, 10), 2, function)
    np.testing.assert_array_equal(VOLUME, before)


# Interruptions


def make_different(values, origin):
    """A result that depends on the block, so that blending matters."""
    return values + np.float32(sum(origin))


@pytest.mark.parametrize("place", ["function", "keep", "close_block", "setitem"])
def test_a_run_that_fails_anywhere_goes_on_and_ends_with_the_same_bytes(
    tmp_path, monkeypatch, place
):
    block, halo, options = (10, 11, 12), 2, {"settings": {"noise": 0.1}}
    expected, report = run(VOLUME, block, halo, make_different, **options)
    calls, fuse = [], [2]

    def burn(where):
        fuse[0] -= where == place
        if fuse[0] < 0:
            fuse[0] = 2
            raise KeyboardInterrupt

    class Target(np.ndarray):
        def __setitem__(self, index, values):
            super().__setitem__(index, 7)
            burn("setitem")
            super().__setitem__(index, values)

    def function(values, origin):
        burn("function")
        calls.append(origin)
        return make_different(values, origin)

    for name in ("keep", "close_block"):

        def wrapped(self, *arguments, original=getattr(Journal, name), name=name):
            burn(name)
            original(self, *arguments)

        monkeypatch.setattr(Journal, name, wrapped)
    target = np.zeros(VOLUME.shape, np.float32).view(Target)
    interruptions = 0
    while True:
        try:
            process_blocks(
                VOLUME, target, block, halo, function, journal=tmp_path / "journal", **options
            )
            break
        except KeyboardInterrupt:
            interruptions += 1
    assert interruptions > 3
    np.testing.assert_array_equal(np.asarray(target), expected)
    if place == "function":
        assert len(calls) == len(set(calls)) == report.blocks
    again = process_blocks(
        VOLUME, target, block, halo, function, journal=tmp_path / "journal", **options
    )
    assert again.computed == 0
    assert not list((tmp_path / "journal").glob("*.npy"))


KILLED = """
import sys, time
from pathlib import Path
from emlab.io.volumes import create_volume, open_volume
from emlab.app.blocks import process_blocks

folder = Path(sys.argv[1])

def function(values, origin):
    with open(folder / "log", "a") as log:
        print(*origin, file=log, flush=True)
    time.sleep(0.03)
    return values.repeat(3, 0) + sum(origin)

with (
    open_volume(folder / "in.npy") as source,
    create_volume(folder / "out.tif", (39, 21, 18), resume=True) as target,
):
    process_blocks(source, target, (9, 12, 11), 1, function, scale=(3, 1, 1))
"""


@pytest.mark.posix
def test_a_killed_process_is_resumed_without_computing_a_finished_block_again(tmp_path):
    np.save(tmp_path / "in.npy", VOLUME)
    log = tmp_path / "log"
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)])
    while child.poll() is None and not (log.exists() and len(log.read_text().split("\n")) > 6):
        time.sleep(0.005)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert not (tmp_path / "out.tif").exists()
    journal = tmp_path / ".out.partial.tif.journal"
    finished = json.loads((journal / "journal.json").read_text())["written"]
    assert finished >= 4
    before = log.read_text().splitlines()
    after = []

    def function(values, origin):
        after.append(" ".join(map(str, origin)))
        return values.repeat(3, 0) + sum(origin)

    with (
        open_volume(tmp_path / "in.npy") as source,
        create_volume(tmp_path / "out.tif", (39, 21, 18), resume=True) as target,
    ):
        report = process_blocks(source, target, (9, 12, 11), 1, function, scale=(3, 1, 1))
    assert not set(before[:finished]) & set(after)
    assert len(set(before + after)) == report.blocks > 10
    assert report.computed == len(after) in (report.blocks - finished, report.blocks - finished - 1)
    expected, _ = run(VOLUME, (9, 12, 11), 1, function, scale=(3, 1, 1))
    np.testing.assert_array_equal(open_volume(tmp_path / "out.tif")[:], expected)
    assert {path.name for path in tmp_path.iterdir()} == {"in.npy", "log", "out.tif"}


def test_a_run_with_other_settings_is_not_resumed(tmp_path):
    def stop(done, total):
        if done == 3:
            raise KeyboardInterrupt

    def start(settings, block=(10, 11, 12), source=VOLUME, **options):
        target = np.zeros(VOLUME.shape, np.float32)
        options = {"journal": tmp_path, "settings": settings, **options}
        return process_blocks(source, target, block, 1, make_different, **options)

    settings = {"noise": 0.1, "prior": "generalist_depth"}
    with pytest.raises(KeyboardInterrupt):
        start(settings, progress=stop)
    with pytest.raises(InputError, match=r"noise was 0\.1 and is 0\.2\); repeat those, or delete"):
        start({**settings, "noise": 0.2})
    with pytest.raises(InputError, match="block shape was"):
        start(settings, (9, 9, 10))
    with pytest.raises(InputError, match="prior was generalist_depth and is None"):
        start({"noise": 0.1})
    assert start(dict(reversed(settings.items()))).computed > 0


def test_a_source_that_changed_is_noticed(tmp_path):
    np.save(tmp_path / "in.npy", VOLUME)
    target = np.zeros(VOLUME.shape, np.float32)
    for _ in range(2):
        source = open_volume(tmp_path / "in.npy")
        process_blocks(source, target, (10, 11, 12), 1, make_different, journal=tmp_path / "j")
    np.save(tmp_path / "in.npy", VOLUME + 1)
    os.utime(tmp_path / "in.npy", ns=(1, 1))
    source = open_volume(tmp_path / "in.npy")
    with pytest.raises(InputError, match="source file was"):
        process_blocks(source, target, (10, 11, 12), 1, make_different, journal=tmp_path / "j")


def test_a_new_target_does_not_trust_an_old_journal(tmp_path):
    options = {"journal": tmp_path / "journal"}
    for name in ("a.npy", "b.npy"):
        with create_volume(tmp_path / name, VOLUME.shape) as target:
            report = process_blocks(VOLUME, target, (10, 11, 12), 1, make_different, **options)
        assert report.computed == report.blocks
    np.testing.assert_array_equal(open_volume(tmp_path / "b.npy")[:], np.load(tmp_path / "a.npy"))


def test_a_journal_in_use_or_damaged_is_refused(tmp_path):
    target = np.zeros(VOLUME.shape, np.float32)

    def function(values, origin):
        with pytest.raises(InputError, match="another process"):
            process_blocks(VOLUME, target, (20, 30, 30), 1, make_different, journal=tmp_path)
        return values

    process_blocks(VOLUME, target, (20, 30, 30), 1, function, journal=tmp_path)
    (tmp_path / "journal.json").write_text("{")
    with pytest.raises(InputError, match=r"delete .* to start again"):
        process_blocks(VOLUME, target, (20, 30, 30), 1, make_different, journal=tmp_path)


def test_what_waits_on_the_disk_is_little_more_than_a_layer_of_blocks(tmp_path):
    waiting = []

    def progress(done, total):
        waiting.append(len(list(tmp_path.glob("*.npy"))))

    source = np.zeros((36, 12, 12), np.float32)
    target = np.zeros_like(source)
    options = {"journal": tmp_path, "progress": progress}
    report = process_blocks(source, target, (8, 8, 8), 1, make_different, **options)
    layer = 9
    assert report.blocks == 7 * layer
    assert max(waiting) <= layer + 4
    assert waiting[-1] == 0


# Bad input


def test_bad_input_is_one_clear_error():
    bad = VOLUME.copy()
    bad[3, 4, 5] = np.nan
    cases = [
        (bad, (8, 9, 10), 1, {}, "NaN or infinite in the block"),
        (VOLUME, (4, 9, 10), 2, {}, "along z blocks of 4 are too small"),
        (VOLUME, (9, 9, 10), 3, {}, "take blocks above 9"),
        (VOLUME, (8, 9), 1, {}, "three numbers"),
        (VOLUME, (8, 9, 10), -1, {}, "too small"),
        (VOLUME[0], (8, 9, 10), 1, {}, r"volumes \(D, H, W\)"),
        (VOLUME, (8, 9, 10), 1, {"scale": (2, 1, 1)}, "shape .* instead of"),
    ]
    for source, block, halo, options, words in cases:
        with pytest.raises(InputError, match=words):
            process_blocks(
                source, np.zeros(source.shape), block, halo, lambda values, _: values, **options
            )
    with pytest.raises(InputError, match="make scale and function agree"):
        run(VOLUME, (8, 9, 10), 1, lambda values, _: values[1:])
    with pytest.raises(EmlabError, match="not finite"):
        run(VOLUME, (8, 9, 10), 1, lambda values, _: values * np.nan)


def test_a_disk_that_fills_up_is_one_clear_error_and_the_run_can_go_on(tmp_path):
    source = np.ones((8, 30, 30), np.float32)
    expected, report = run(source, (8, 12, 12), 1, make_different)
    space = [20]

    class Filling(io.FileIO):
        def write(self, row):
            space[0] -= 1
            if space[0] < 0:
                raise OSError(28, "No space left on device")
            return super().write(row)

    def attempt():
        with create_volume(tmp_path / "a.npy", source.shape, resume=True) as target:
            target._array._file = Filling(target.partial, "r+b")
            return process_blocks(source, target, (8, 12, 12), 1, make_different)

    with pytest.raises(EmlabError, match="no space left on the disk"):
        attempt()
    space[0] = 10**9
    assert attempt().computed == report.blocks - 1
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), expected)


# Memory

CLEAR = Path("/proc/self/clear_refs")
MEASURED = """
import sys
from pathlib import Path
import numpy as np
from emlab.io.volumes import create_volume, open_volume
from emlab.app.blocks import block_shape_for, process_blocks

folder, memory = Path(sys.argv[1]), float(sys.argv[2])

def function(values, origin):
    fine = values.repeat(2, 0)
    return fine + np.sqrt(np.abs(fine))  # 4 arrays of the size of the result at once

def process(shape, name):
    block = block_shape_for(memory, shape, halo=(1, 4, 4), scale=(2, 1, 1), copies=4)
    with (
        open_volume(folder / "in.npy") as source,
        create_volume(folder / name, (2 * shape[0], *shape[1:])) as target,
    ):
        return process_blocks(source, target, block, (1, 4, 4), function, scale=(2, 1, 1)).blocks

def memory_of(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 2**10

memory, limit = 1.0, memory
np.lib.format.open_memmap(folder / "in.npy", "w+", np.float32, (8, 40, 40))
process((8, 40, 40), "small.tif")
memory, before = limit, memory_of("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
shape = (32, 384, 384)
np.lib.format.open_memmap(folder / "in.npy", "w+", np.float32, shape)
print(process(shape, "large.tif"), memory_of("VmHWM") - before)
"""


@pytest.mark.skipif(not CLEAR.exists(), reason="the peak of memory cannot be reset here")
def test_memory_stays_below_the_argument_for_a_volume_that_is_larger(tmp_path):
    """18 MB in, 36 MB out, 12 MB allowed."""
    command = [sys.executable, "-c", MEASURED, str(tmp_path), "12"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    blocks, grown = map(float, done.stdout.split())
    assert blocks > 8
    assert 2 < grown < 12


def test_block_shape_uses_the_memory_and_no_more():
    shape = (500, 3000, 4000)
    for memory in (100, 400, 3000):
        block = block_shape_for(memory, shape, halo=(2, 8, 8), scale=(6, 1, 1), copies=10)
        used = np.prod(block) * 6 * 4 * 16 / 2**20
        assert 0.8 * memory < used <= memory
        assert block[1] == block[2]
        assert block[0] * 6 <= block[1] < (block[0] + 1) * 6
    assert block_shape_for(100, (3, 3000, 4000))[0] == 3
    assert block_shape_for(10**6, (3, 50, 60)) == (3, 50, 60)
    with pytest.raises(InputError, match="need at least") as caught:
        block_shape_for(1, shape, halo=(2, 8, 8), scale=(6, 1, 1))
    needed = float(str(caught.value).split(" MB")[0].split()[-1])
    block = block_shape_for(needed, shape, halo=(2, 8, 8), scale=(6, 1, 1))
    assert all(n > 3 * halo for n, halo in zip(block, (2, 8, 8), strict=True))
