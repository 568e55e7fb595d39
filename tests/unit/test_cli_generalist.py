"""`emlab generalist` restores a user's own files, and refuses what it cannot use."""

import re
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from emlab import weights
from emlab.app.volumes import NoiseField
from emlab.data.phantoms import neuropil
from emlab.io import read_image, write_image
from emlab.io.volumes import create_volume, open_volume
from emlab.methods import generalist
from emlab.methods.generalist import load_config
from emlab.models import build
from emlab.solvers.one_step import DiffuseBackConfig
from emlab.solvers.plug_and_play import HalfQuadraticConfig, RestoreConfig

ITERATIVE = RestoreConfig | HalfQuadraticConfig | DiffuseBackConfig

MODEL = {"kind": "depth_unet", "widths": [8], "embedding": 16}
OBJECTIVE = {"kind": "depth", "mean": 0.0135, "std": 0.30}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of weights with one tiny network that was never trained.

    It stays close to the best linear denoiser, the part of `DepthMatching` that is not learned.
    """
    torch.manual_seed(0)
    network = build(MODEL)
    for parameter in network.parameters():
        parameter.data += 0.01 * torch.randn(parameter.shape)
    card = dict.fromkeys(("recipe", "data", "split", "device", "commit", "limits"), "none")
    card |= {"steps": 0, "seconds": 0.0, "seed": 0, "evaluation": {}}
    card |= {"model": MODEL, "objective": OBJECTIVE}
    place = tmp_path_factory.mktemp("weights")
    weights.save("generalist_depth", network.state_dict(), card, place)
    return place


def few_steps(name):
    """A configuration with its samplers cut to four steps."""
    config = load_config(name)
    solvers = {
        task: replace(solver, steps=4) if isinstance(solver, ITERATIVE) else solver
        for task, solver in config.solvers.items()
    }
    return replace(config, solvers=solvers)


@pytest.fixture
def emlab(command_line, monkeypatch, folder):
    """Run `emlab generalist ...` in few steps; returns (exit status, stdout, stderr)."""
    monkeypatch.setattr("emlab.app.commands.generalist.load_config", few_steps)
    monkeypatch.setenv("EMLAB_THREADS", "1")
    monkeypatch.setenv("EMLAB_WEIGHTS", str(folder))

    return partial(command_line, "generalist")


@pytest.fixture(scope="module")
def noisy():
    """Simulated tissue ``(72, 80)`` with white noise, grey levels around 1000."""
    clean = neuropil((72, 80), 1)
    return (1000 + clean + np.random.default_rng(2).normal(0, 25, clean.shape)).astype(np.float32)


@pytest.fixture
def image(tmp_path, noisy):
    return write_image(tmp_path / "in.tif", noisy, 40.0)


@pytest.fixture(scope="module")
def sections():
    """Sections ``(6, 64, 72)``, four planes of simulated tissue each."""
    clean = neuropil((24, 64, 72), 3)
    return clean.reshape(6, 4, 64, 72).mean(1).astype(np.float32)


@pytest.fixture
def volume(tmp_path, sections):
    return write_image(tmp_path / "in.mrc", sections, (160.0, 40.0, 40.0))


def told(text):
    return {line[:16].strip(): line[16:] for line in text.splitlines()}


# Restoring


def test_denoising_keeps_grey_levels_and_pixel_size_and_tells_the_noise(emlab, image, noisy):
    out = image.with_name("out.tif")
    status, printed, err = emlab("denoise", image, out)
    result = read_image(out)
    assert status == 0
    assert "noise estimated" in err
    assert result.pixels.shape == noisy.shape
    assert result.pixel_size_angstrom == pytest.approx(40)
    assert result.pixels.mean() == pytest.approx(noisy.mean(), abs=10)
    assert 0.2 * noisy.std() < result.pixels.std() < noisy.std()
    assert float(told(printed)["noise sigma"].split()[0]) == pytest.approx(25, rel=0.15)
    assert "pixel size 40 angstrom" in told(printed)["written"]


def test_other_grey_levels_give_the_same_image_in_those(emlab, tmp_path, noisy):
    plain = write_image(tmp_path / "plain.npy", noisy)
    scaled = write_image(tmp_path / "scaled.npy", 512 * noisy + 4096)
    outs = tmp_path / "a.npy", tmp_path / "b.npy"
    for task, options in (("denoise", []), ("upsample", ["--samples", 1])):
        for source, out, gain in ((plain, outs[0], 1), (scaled, outs[1], 512)):
            assert emlab(task, source, out, "--noise", 25 * gain, *options)[0] == 0
        small, large = (read_image(out).pixels for out in outs)
        np.testing.assert_allclose(large - 4096, 512 * small, rtol=1e-2)


@pytest.mark.parametrize("suffix", [".tif", ".mrc", ".png", ".npy"])
def test_every_format_goes_in_and_comes_out(emlab, tmp_path, noisy, suffix):
    levels = (noisy - noisy.min()).astype(np.uint8) if suffix == ".png" else noisy
    source = write_image(tmp_path / f"in{suffix}", levels, 40.0)
    out = tmp_path / f"out{suffix}"
    status, printed, _ = emlab("denoise", source, out)
    assert status == 0
    result = read_image(out)
    assert result.pixels.shape == noisy.shape
    assert result.pixel_size_angstrom == (None if suffix == ".npy" else pytest.approx(40))
    assert ("stretched to 0..65535 for PNG" in printed) == (suffix == ".png")


def test_the_pixel_size_is_divided_by_the_factor(emlab, image):
    out, spread = image.with_name("out.mrc"), image.with_name("spread.mrc")
    options = ("--factor", 2, "--samples", 2, "--spread", spread)
    status, printed, _ = emlab("upsample", image, out, *options)
    assert status == 0
    for path in (out, spread):
        assert read_image(path).pixels.shape == (144, 160)
        assert read_image(path).pixel_size_angstrom == pytest.approx(20)
    assert read_image(spread).pixels.min() >= 0
    assert read_image(spread).pixels.mean() > 0
    assert "mean of 2 samples" in told(printed)["prior"]


def test_slices_become_planes_and_voxels_cubes(emlab, volume, sections):
    out = volume.with_name("out.tif")
    status, _, err = emlab("isotropic", volume, out, "--samples", 1)
    result = read_image(out)
    assert status == 0
    assert "no cubes" not in err
    assert result.pixels.shape == (24, 64, 72)
    assert result.pixel_size_angstrom == pytest.approx(40)
    again = result.pixels.reshape(6, 4, 64, 72).mean(1)
    assert np.corrcoef(again.ravel(), sections.ravel())[0, 1] > 0.97


def test_a_factor_that_makes_no_cubes_is_said(emlab, volume):
    out = volume.with_name("out.mrc")
    status, _, err = emlab("isotropic", volume, out, "--factor", 2, "--samples", 1)
    assert status == 0
    assert "no cubes, pixel size 80 x 40 x 40 angstrom" in err
    assert read_image(out).pixel_size_angstrom == pytest.approx((80, 40, 40))


def test_planes_of_a_stack_see_their_neighbours(emlab, tmp_path, noisy):
    pixels = np.stack([noisy, noisy[::-1]])
    stack = write_image(tmp_path / "in.tif", pixels, 40.0)
    single = write_image(tmp_path / "one.tif", noisy, 40.0)
    outs = tmp_path / "out.tif", tmp_path / "alone.tif"
    assert emlab("denoise", stack, outs[0], "--noise", 25)[0] == 0
    assert emlab("denoise", single, outs[1], "--noise", 25)[0] == 0
    both, alone = (read_image(out).pixels for out in outs)
    assert np.abs(both[0] - alone).max() > 0.1
    told = {"noise_sigma": 25.0, "prior": generalist.load("generalist_depth", pixel_angstrom=40.0)}
    config = generalist.load_config()
    here = generalist.denoise(pixels, config, torch.Generator(), **told).image
    np.testing.assert_allclose(both, here, rtol=1e-4)


def test_same_seed_same_result_and_another_seed_another_one(emlab, image):
    outs = [image.with_name(f"{i}.npy") for i in range(3)]
    for out, seed in zip(outs, (7, 7, 8), strict=True):
        options = ("--kernel", 1.5, "--samples", 1, "--seed", seed)
        assert emlab("deblur", image, out, *options)[0] == 0
    first, again, other = (read_image(out).pixels for out in outs)
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "one estimate, 1 evaluation"),
        (("--coloured",), "one estimate, 4 evaluations"),
        (("--samples", 2), "mean of 2 samples, 8 evaluations"),
        (("--spread", "OUT"), "mean of 4 samples, 16 evaluations"),
    ],
)
def test_one_estimate_unless_samples_are_asked_for(emlab, image, options, words):
    options = [str(image.with_name("spread.tif")) if item == "OUT" else item for item in options]
    status, printed, _ = emlab("denoise", image, image.with_name("out.npy"), *options)
    assert status == 0
    assert words in told(printed)["prior"]


def test_a_small_image_is_padded_and_that_is_said(emlab, tmp_path, noisy):
    source = write_image(tmp_path / "in.tif", noisy[:40, :50], 10.0)
    out = tmp_path / "out.tif"
    status, _, err = emlab("upsample", source, out, "--noise", 25, "--samples", 1)
    assert status == 0
    assert "40 x 50 pixels are less than a patch; mirrored" in err
    result = read_image(out).pixels
    coarse = result.reshape(40, 2, 50, 2).mean((1, 3))
    assert np.corrcoef(coarse.ravel(), noisy[:40, :50].ravel())[0, 1] > 0.5
    status, _, err = emlab("denoise", source, out)
    assert status == 2
    assert "too small to estimate its noise" in err


def test_a_blind_run_writes_the_kernel_too(emlab, image):
    out = image.with_name("out.tif")
    status, printed, _ = emlab("deblur", image, out, "--blind", "--noise", 25)
    assert status == 0
    kernel = read_image(image.with_name("out.kernel.tif"))
    assert kernel.pixels.sum() == pytest.approx(1, abs=1e-3)
    assert kernel.pixels.min() >= 0
    assert "out.kernel.tif" in told(printed)["kernel"]


# Kernels


def test_kernels_are_widths_in_pixels_or_nanometres_discs_or_files(emlab, image):
    kernel = np.zeros((5, 5), np.float32)
    kernel[2, 1:4] = 3
    write_image(image.with_name("kernel.tif"), kernel)
    options = ("--samples", 1, "--noise", 25)
    results = {}
    for text in ("2", "8nm", "disc:2", str(image.with_name("kernel.tif"))):
        out = image.with_name("out.npy")
        assert emlab("deblur", image, out, "--kernel", text, *options)[0] == 0
        results[text] = read_image(out).pixels
    np.testing.assert_array_equal(results["2"], results["8nm"])
    assert not np.allclose(results["2"], results["disc:2"])


# Volumes larger than memory


@pytest.fixture
def long_volume(tmp_path):
    """Sections ``(4, 64, 112)`` of two planes each."""
    clean = neuropil((8, 64, 112), 5).reshape(4, 2, 64, 112).mean(1)
    return write_image(tmp_path / "long.mrc", clean.astype(np.float32), (80.0, 40.0, 40.0))


def test_a_volume_larger_than_memory_goes_block_by_block(emlab, long_volume):
    out, spread = long_volume.with_name("out.npy"), long_volume.with_name("spread.npy")
    options = ("--samples", 2, "--noise", 5, "--spread", spread, "--memory", 6.9, "--seed", 3)
    status, printed, _ = emlab("isotropic", long_volume, out, *options)
    assert status == 0
    assert int(told(printed)["blocks"].split(",")[0]) > 1
    assert not list(out.parent.glob(".*"))
    samples = np.stack([whole(long_volume, 3, stream) for stream in (0, 1)])
    blocks, doubt = read_image(out).pixels, read_image(spread).pixels
    assert blocks.shape == doubt.shape == (8, 64, 112)
    assert np.abs(blocks - samples.mean(0)).max() < 0.05 * blocks.std()
    assert np.abs(doubt - samples.std(0)).max() < 0.05 * blocks.std()


def whole(path, seed, sample):
    """The same sample without blocks."""
    volume, field = read_image(path).pixels, NoiseField(seed, sample)
    return generalist.isotropic(
        volume,
        2,
        few_steps("samples"),
        torch.Generator().manual_seed(seed + sample),
        noise_sigma=5.0,
        samples=1,
        noise=lambda step, shape: field.at(step, (0, 0, 0), shape[1:])[None],
    ).image


def test_denoising_block_by_block_equals_denoising_at_once(emlab, long_volume):
    outs = long_volume.with_name("a.npy"), long_volume.with_name("b.npy")
    options = ("--noise", 25, "--tile", 32)
    assert emlab("denoise", long_volume, outs[0], *options)[0] == 0
    status, printed, _ = emlab("denoise", long_volume, outs[1], *options, "--memory", 1.73)
    assert status == 0
    assert int(told(printed)["blocks"].split(",")[0]) > 1
    first, second = (read_image(out).pixels for out in outs)
    assert np.abs(first - second).max() < 0.05 * first.std()


def test_samples_of_noisy_planes_agree_across_blocks(emlab, long_volume):
    out = long_volume.with_name("a.npy")
    options = ("--noise", 25, "--samples", 1, "--seed", 2, "--memory", 1.73)
    status, printed, _ = emlab("denoise", long_volume, out, *options)
    assert status == 0
    assert int(told(printed)["blocks"].split(",")[0]) > 1
    field = NoiseField(2)
    once = generalist.denoise(
        read_image(long_volume).pixels,
        few_steps("samples"),
        torch.Generator().manual_seed(2),
        noise_sigma=25.0,
        samples=1,
        noise=lambda step, shape: field.at(step, (0, 0, 0), shape[1:])[None],
    ).image
    assert np.abs(read_image(out).pixels - once).max() < 0.05 * once.std()


def test_an_interrupted_run_is_resumed_and_ends_with_the_same_bytes(
    emlab, long_volume, monkeypatch
):
    outs = long_volume.with_name("whole.npy"), long_volume.with_name("broken.npy")
    options = ("--noise", 25, "--memory", 3.45)
    assert emlab("isotropic", long_volume, outs[0], *options)[0] == 0
    real, calls = generalist.isotropic, []

    def dies(*arguments, **named):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **named)

    monkeypatch.setattr(generalist, "isotropic", dies)
    assert emlab("isotropic", long_volume, outs[1], *options)[0] == 130
    assert not outs[1].exists()
    status, _, err = emlab("isotropic", long_volume, outs[1], *options)
    assert status == 2
    assert "add --resume" in err
    status, _, err = emlab("isotropic", long_volume, outs[1], *options, "--seed", 1, "--resume")
    assert status == 2
    assert err.count("\n") == 1
    status, printed, _ = emlab("isotropic", long_volume, outs[1], *options, "--resume")
    assert status == 0
    blocks, now = re.match(r"(\d+), (\d+)", told(printed)["blocks"]).groups()
    assert int(now) == int(blocks) - 1
    assert outs[0].read_bytes() == outs[1].read_bytes()


def test_zarr_goes_in_and_comes_out(emlab, tmp_path, sections):
    pytest.importorskip("zarr")
    source, out = tmp_path / "in.zarr", tmp_path / "out.zarr"
    with create_volume(source, sections.shape, "float32", (160.0, 40.0, 40.0)) as target:
        target[:] = sections
    assert emlab("isotropic", source, out, "--samples", 1)[0] == 0
    result = open_volume(out)
    assert result.shape == (24, 64, 72)
    assert result.pixel_size_angstrom == pytest.approx(40)


def test_without_zarr_the_extra_is_named(emlab, volume, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refused(emlab, "isotropic", volume, "out.zarr", [], "pip install 'emlab-book[volumes]'")


# Refusing: one line, exit status 2, and no file


def refused(emlab, task, source, name, options, words):
    out = source.with_name(name)
    status, printed, err = emlab(task, source, out, *options)
    assert (status, printed) == (2, "")
    assert err.startswith("emlab: error: ")
    assert err.count("\n") == 1
    assert words in err
    assert not out.exists()
    assert not list(out.parent.glob(".*"))


@pytest.mark.parametrize(
    ("task", "options", "words"),
    [
        ("denoise", ["--noise", -1], "--noise must be 0 or more"),
        ("denoise", ["--noise", "nan"], "--noise must be 0 or more"),
        ("denoise", ["--noise", 1e6], "nothing but noise"),
        ("denoise", ["--noise", 5, "--coloured"], "--noise or --coloured"),
        ("denoise", ["--prior", "nonesuch"], "no weights are called 'nonesuch'"),
        ("denoise", ["--config", "theirs"], "unknown configuration 'theirs'"),
        ("denoise", ["--device", "tpu"], "device 'tpu' is not here"),
        ("denoise", ["--memory", 0], "--memory must be positive"),
        ("denoise", ["--resume"], "leave it out"),
        ("denoise", ["--spread", "OUT", "--samples", 1], "--samples 2 or more"),
        ("deblur", [], "either --kernel KERNEL or --blind"),
        ("deblur", ["--kernel", 2, "--blind"], "either --kernel KERNEL or --blind"),
        ("deblur", ["--blind", "--samples", 2], "leave out --samples"),
        ("deblur", ["--kernel", 0], "give a width from 0 to 64"),
        ("deblur", ["--kernel", "2e9"], "give a width from 0 to 64"),
        ("deblur", ["--kernel", "1.2.3"], "is no width"),
        ("deblur", ["--kernel", "soft"], "'soft' is unknown"),
        ("deblur", ["--kernel", "disc:soft"], "is unknown"),
        ("deblur", ["--kernel", "absent.tif"], "there is no file absent.tif"),
        ("upsample", ["--factor", 2.5], "a whole number from 2 to 64, got 2.5"),
        ("upsample", ["--factor", 1], "a whole number from 2 to 64, got 1"),
        ("upsample", ["--factor", "nan"], "a whole number from 2 to 64"),
        ("isotropic", ["--factor", 4], "isotropic takes a volume (D, H, W)"),
        ("isotropic", ["--sampling", "sum"], "--sampling is average or decimate"),
    ],
)
def test_bad_options_are_one_clear_line(emlab, image, task, options, words):
    options = [str(image.with_name("spread.tif")) if item == "OUT" else item for item in options]
    refused(emlab, task, image, "out.tif", options, words)


def bad_pixel(path):
    pixels = np.random.default_rng(0).normal(size=(70, 70))
    pixels[2, 3] = np.nan
    np.save(path, pixels)


@pytest.mark.parametrize(
    ("task", "make", "words"),
    [
        ("denoise", bad_pixel, "NaN or infinite"),
        ("denoise", lambda path: np.save(path, np.ones((70, 70))), "is constant, 1 everywhere"),
        ("denoise", lambda path: np.save(path, np.zeros((2, 3, 70, 70))), "denoise takes one"),
        ("denoise", lambda path: np.save(path, np.zeros(70)), "with rows and columns"),
        ("denoise", lambda path: path.write_bytes(b""), "empty"),
        ("denoise", lambda path: path.write_bytes(b"\x93NUMPY\x01\x00v\x00"), "cannot be read"),
        ("denoise", lambda path: None, "there is no file"),
        ("upsample", lambda path: np.save(path, np.zeros((3, 70, 70))), "takes one image (H, W)"),
        ("isotropic", lambda path: np.save(path, np.zeros((3, 70, 70))), "give --factor"),
    ],
)
def test_bad_files_are_one_clear_line(emlab, tmp_path, task, make, words):
    make(tmp_path / "in.npy")
    refused(emlab, task, tmp_path / "in.npy", "out.npy", [], words)


def test_nanometres_need_a_pixel_size(emlab, tmp_path, noisy):
    source = write_image(tmp_path / "in.npy", noisy)
    refused(emlab, "deblur", source, "out.npy", ["--kernel", "8nm"], "give --kernel in pixels")


@pytest.mark.parametrize(
    ("size", "words"),
    [((100.0, 40.0, 40.0), "2.5 pixels thick"), (40.0, "does not tell how thick a slice is")],
)
def test_a_factor_is_asked_for_where_the_header_has_none(emlab, tmp_path, sections, size, words):
    source = write_image(tmp_path / "in.mrc", sections, size)
    refused(emlab, "isotropic", source, "out.mrc", [], words)


def test_kernels_that_are_none_are_refused(emlab, image):
    for pixels, words in (
        (np.ones((4, 4)), "square with odd sides"),
        (np.ones((3, 5)), "square with odd sides"),
        (-np.ones((3, 3)), "must be 0 or more"),
    ):
        kernel = write_image(image.with_name("kernel.npy"), pixels)
        refused(emlab, "deblur", image, "out.tif", ["--kernel", kernel], words)


def test_an_output_that_cannot_be_written_is_refused_before_the_work(emlab, image, volume):
    refused(emlab, "denoise", image, "out.jpg", [], "cannot write an image as '.jpg'")
    refused(emlab, "isotropic", volume, "out.png", [], "cannot write a volume as '.png'")
    assert "is the input itself" in emlab("denoise", image, image)[2]
    assert "another name" in emlab("denoise", image, "out.tif", "--spread", "out.tif")[2]


def test_help_teaches_with_an_example_for_every_task(emlab):
    assert emlab("--help")[0] == 0
    for task in ("denoise", "deblur", "upsample", "isotropic"):
        status, printed, _ = emlab(task, "--help")
        assert status == 0
        assert f"emlab generalist {task} " in " ".join(printed.split())
