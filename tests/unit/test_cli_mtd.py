"""`emlab mtd` recovers an image from a user's own file, and refuses what it cannot use."""

import math
import tomllib

import numpy as np
import pytest
import torch

from emlab import weights
from emlab.app.commands.mtd import concerns, random_starts, settings_for, sigma_from_snr
from emlab.errors import InputError
from emlab.io import read_image, write_image
from emlab.methods.mtd import Config, likely_starts, load_config, recover
from emlab.metrics import relative_error
from emlab.physics.mtd import cut_patches, simulate_measurement
from emlab.solvers.expectation_maximization import EMConfig, ExpectationStep

SIZE = 5
TRUTH = torch.tensor(np.random.default_rng(4).integers(0, 5, (SIZE, SIZE)), dtype=torch.float32)


@pytest.fixture
def emlab(command_line, monkeypatch):
    """Run a command line on one thread; returns (exit status, stdout, stderr)."""
    monkeypatch.setenv("EMLAB_THREADS", "1")

    return command_line


@pytest.fixture(scope="module")
def measurement():
    return simulate_measurement(TRUTH, 10.0, torch.Generator().manual_seed(3))


@pytest.fixture
def field(tmp_path, measurement):
    return write_image(tmp_path / "field.mrc", measurement.field.numpy(), 1.25)


def error(path):
    return relative_error(read_image(path).pixels, TRUTH.numpy(), max_shift=1)


def summary(text):
    return {line[:16].strip(): line[16:] for line in text.splitlines()}


def number(text):
    return float(text.split()[0].strip(","))


# Recovering


def test_an_mrc_field_gives_its_image_noise_copies_and_pixel_size(emlab, field, measurement):
    out = field.with_name("image.mrc")
    status, printed, err = emlab("mtd", "recover", field, out, "--size", SIZE)
    assert (status, err) == (0, "")
    assert error(out) < 0.15
    assert read_image(out).pixel_size_angstrom == 1.25
    told = summary(printed)
    assert "estimated" in told["sigma"]
    assert number(told["sigma"]) == pytest.approx(measurement.sigma, rel=0.06)
    assert abs(int(told["occupancy"].split()[-2]) - 12) <= 3
    assert "pixel size 1.25 angstrom" in told["field"]
    assert str(out) in told["written"]


def test_a_field_with_copies_gains_more_than_noise_of_its_size_and_noise_does_not(emlab, field):
    out, options = field.with_name("image.npy"), ("--size", SIZE, "--starts", 4)
    pixels = read_image(field).pixels
    noise = np.random.default_rng(2).normal(0, pixels.std(), pixels.shape).astype(np.float32)
    gains = []
    for source in (field, write_image(field.with_name("noise.npy"), noise)):
        status, printed, _ = emlab("mtd", "recover", source, out, *options)
        told = summary(printed)
        assert status == 0
        gains.append((number(told["log-likelihood"].split(",")[1]), number(told["on pure noise"])))
    (copies, yardstick), (nothing, other) = gains
    assert copies > 5 * yardstick
    assert nothing < 3 * other


def test_a_field_1024_times_brighter_gives_an_image_1024_times_brighter(emlab, field):
    scaled = write_image(field.with_name("f.npy"), 1024 * read_image(field).pixels)
    outs = field.with_name("a.npy"), field.with_name("b.npy")
    options = ("--size", SIZE, "--iterations", 20, "--starts", 1)
    for source, out in zip((field, scaled), outs, strict=True):
        assert emlab("mtd", "recover", source, out, *options)[0] == 0
    first, second = (read_image(out).pixels for out in outs)
    np.testing.assert_allclose(second, 1024 * first, rtol=1e-3, atol=1)


def test_the_exact_prior_may_be_named(emlab, field):
    out = field.with_name("image.tif")
    status, printed, _ = emlab(
        "mtd", "recover", field, out, "--size", SIZE, "--prior", "gaussian", "--snr", 10
    )
    assert status == 0
    assert "from --snr" in printed
    assert read_image(out).pixel_size_angstrom == pytest.approx(1.25)


def test_same_seed_same_image_and_another_seed_another_start(emlab, field):
    options = ("--size", SIZE, "--iterations", 2, "--starts", 1, "--seed")
    outs = [field.with_name(f"{i}.npy") for i in range(3)]
    for out, seed in zip(outs, (7, 7, 8), strict=True):
        assert emlab("mtd", "recover", field, out, *options, seed)[0] == 0
    first, again, other = (read_image(out).pixels for out in outs)
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


def test_crop_and_background_are_done_when_asked_for_and_said(emlab, field):
    pixels = np.pad(read_image(field).pixels, ((0, 3), (0, 1))) + 7
    shifted = write_image(field.with_name("shifted.tif"), pixels)
    out = field.with_name("image.npy")
    status, _, err = emlab("mtd", "recover", shifted, out, "--size", SIZE)
    assert status == 2
    assert "add --crop to use its first 55 x 55 pixels" in err
    status, _, err = emlab(
        "mtd", "recover", shifted, out, "--size", SIZE, "--crop", "--subtract-background"
    )
    assert status == 0
    assert "cropped from 58 x 56" in err
    assert "subtracted the median 7" in err
    assert error(out) < 0.25


def test_a_png_result_is_stretched_and_says_so(emlab, field):
    out = field.with_name("image.png")
    options = ("--size", SIZE, "--iterations", 2, "--starts", 1)
    assert "stretched" in emlab("mtd", "recover", field, out, *options)[1]
    assert read_image(out).pixels.max() == 65535


@pytest.mark.parametrize("single", [True, False])
def test_a_stack_of_one_is_an_image_and_of_two_is_not(emlab, field, single):
    pixels = np.stack([read_image(field).pixels] * (1 if single else 2))
    stack, out = write_image(field.with_name("s.mrcs"), pixels, 2.0), field.with_name("o.mrc")
    status, _, err = emlab(
        "mtd", "recover", stack, out, "--size", SIZE, "--starts", 1, "--iterations", 1
    )
    assert (status, out.exists()) == ((0, True) if single else (2, False))
    assert single or "not a stack" in err


def test_digits_are_recovered_with_the_shipped_prior_by_default(emlab, tmp_path):
    if "mtd_mnist_epsilon" not in weights.names():
        pytest.fail("the weights mtd_mnist_epsilon are not shipped")
    field, out = tmp_path / "field.mrc", tmp_path / "digit.mrc"
    assert emlab("mtd", "simulate", field, "--digit", 3, "--snr", 2)[0] == 0
    options = ("--size", 28, "--starts", 4, "--kept", 1, "--iterations", 6)
    status, printed, err = emlab("mtd", "recover", field, out, *options)
    assert (status, err) == (0, "")
    assert "mtd_mnist_epsilon, 1 of 4 starts" in printed
    truth = np.load(tmp_path / "field.truth.npy")
    assert relative_error(read_image(out).pixels, truth, max_shift=8) < 0.5


# Refusing: one line, the exit status, and no file


def truncate_weights(folder, monkeypatch):
    """A folder of weights whose only file is cut in half."""
    card = dict.fromkeys(("recipe", "data", "split", "device", "commit", "limits"), "x")
    card |= {"steps": 1, "seconds": 1.0, "seed": 0, "evaluation": {}, "model": {}, "objective": {}}
    weights.save("mine", {"w": torch.zeros(100)}, card, folder)
    file = folder / "files" / "mine.safetensors"
    file.write_bytes(file.read_bytes()[:200])
    monkeypatch.setenv("EMLAB_WEIGHTS", str(folder))


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (["--size", 6], 2, "no multiples of 6; add --crop"),
        (["--size", 56], 2, "fewer than one patch of 56"),
        (["--size", 5, "--sigma", 0], 2, "--sigma must be positive, got 0"),
        (["--size", 5, "--sigma", -1], 2, "--sigma must be positive, got -1"),
        (["--size", 5, "--sigma", "nan"], 2, "--sigma must be positive"),
        (["--size", 5, "--snr", 0], 2, "--snr must be positive"),
        (["--size", 5, "--snr", 1, "--sigma", 1], 2, "--snr or --sigma, not both"),
        (["--size", 5, "--snr", 1, "--density", 0], 2, "density must be above 0"),
        (["--size", 5, "--memory-mb", 0], 2, "--memory-mb must be positive"),
        (["--size", 5, "--prior", "nonesuch"], 2, "unknown prior 'nonesuch'; choose one of none"),
        (["--size", 5, "--prior", "mtd_mnist_epsilon"], 2, "use --size 28"),
        (["--size", 5, "--config", "theirs"], 2, "unknown configuration 'theirs'; choose one of"),
        (["--size", 5, "--config", "ours_gaussian"], 2, "needs a prior"),
        (["--size", 5, "--starts", 2, "--kept", 3], 2, "1 <= kept <= starts"),
        (["--size", 5, "--device", "tpu"], 2, "device 'tpu' is not here"),
        (["--size", 5, "--prior", "mine"], 3, "truncated or altered"),
    ],
)
def test_bad_options_are_one_clear_line(
    emlab, field, tmp_path, monkeypatch, options, status, words
):
    truncate_weights(tmp_path / "weights", monkeypatch)
    refused(emlab, field, field.with_name("image.mrc"), options, status, words)


def refused(emlab, field, out, options, status, words):
    found, printed, err = emlab("mtd", "recover", field, out, *options)
    assert (found, printed) == (status, "")
    assert err.startswith("emlab: error: ")
    assert err.count("\n") == 1
    assert words in err
    assert not out.exists()
    assert not list(out.parent.glob(".*"))


def nan_field(path):
    pixels = np.zeros((10, 10), np.float32)
    pixels[2, 3] = np.nan
    np.save(path, pixels)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (nan_field, "NaN or infinite"),
        (lambda path: np.save(path, np.ones((10, 10))), "is it constant?"),
        (lambda path: np.save(path, np.ones((3, 10, 10))), "not a stack or volume"),
        (lambda path: path.write_bytes(b""), "empty"),
        (lambda path: path.write_bytes(b"\x93NUMPY\x01\x00v\x00"), "cannot be read"),
        (lambda path: None, "there is no file"),
    ],
)
def test_bad_fields_are_one_clear_line(emlab, tmp_path, make, words):
    make(tmp_path / "field.npy")
    refused(emlab, tmp_path / "field.npy", tmp_path / "out.npy", ["--size", 5], 2, words)


def test_an_output_that_cannot_be_written_is_refused_before_the_work(emlab, field):
    for out, words in (
        (field.with_name("image.jpg"), "cannot write an image as '.jpg'"),
        (field, "is the input itself"),
        (field / "image.mrc", "give a file name in a folder"),
    ):
        status, _, err = emlab("mtd", "recover", field, out, "--size", SIZE)
        assert status == 2
        assert words in err


# Noise, grey levels, settings


@pytest.mark.parametrize("snr", [0.1, 1.0, 5.0])
def test_sigma_follows_from_the_snr(snr):
    generator = torch.Generator().manual_seed(1)
    measurement = simulate_measurement(TRUTH, snr, generator, field_size=330, rotations=1)
    assert sigma_from_snr(measurement.field, snr, 0.1) == pytest.approx(measurement.sigma, rel=0.02)


def test_random_starts_have_the_mean_and_energy_of_a_copy():
    generator = torch.Generator().manual_seed(2)
    measurement = simulate_measurement(TRUTH, 5.0, generator, field_size=330)
    config = Config(SIZE, starts=400)
    starts = random_starts(measurement.field, measurement.sigma, config, generator, 0.1)
    assert starts.shape == (400, SIZE, SIZE)
    assert starts.mean().item() == pytest.approx(TRUTH.mean().item(), rel=0.1)
    assert starts.square().mean().item() == pytest.approx(TRUTH.square().mean().item(), rel=0.1)


def test_the_density_decides_which_starts_are_likely():
    generator = torch.Generator().manual_seed(6)
    rare = simulate_measurement(TRUTH, 1.0, generator, field_size=110, density=0.05)
    starts = torch.stack([TRUTH, TRUTH / 2])
    patches = cut_patches(rare.field, SIZE)
    expectation = ExpectationStep(patches, rare.operator.rotations, rare.sigma)
    assert torch.equal(likely_starts(expectation, starts, 1, 0.05), starts[:1])
    # So many copies would have to be faint.
    assert torch.equal(likely_starts(expectation, starts, 1, 0.4), starts[1:])
    assert torch.equal(likely_starts(expectation, starts, 2), starts)


def test_recover_compares_starts_at_the_density_it_is_told():
    generator = torch.Generator().manual_seed(6)
    rare = simulate_measurement(TRUTH, 1.0, generator, field_size=110, density=0.05)
    starts = torch.stack([TRUTH, TRUTH / 2])
    stays = EMConfig(iterations=1, m_step="gradient", step_size=1e-9)
    config = Config(SIZE, starts=2, em=stays)
    for density, kept in ((0.05, starts[0]), (0.4, starts[1])):
        found = recover(rare.field, config, generator, None, rare.sigma, starts, density)
        assert torch.allclose(found.image, kept, atol=1e-3)
    with pytest.raises(InputError, match="density must be above 0"):
        recover(rare.field, config, generator, None, rare.sigma, starts, 1.5)


def test_settings_scale_with_the_size():
    assert settings_for("none", 40).size == 40
    assert settings_for("mtd_mnist_epsilon", 28) == load_config("ours_mnist")
    assert settings_for("my_own_prior", 40).centre == (20.0, 20.0)


def test_concerns_are_raised_for_a_background_wrong_noise_and_foreign_grey_levels(measurement):
    field, sigma = measurement.field, measurement.sigma
    assert concerns(field, sigma, "none") == []
    assert "--subtract-background" in concerns(field + 3 * sigma, sigma, "none")[0]
    assert "exceeds" in concerns(field, 5 * sigma, "none")[0]
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(300, 300, generator=generator)
    for brightness, words in ((1.0, 0), (255.0, 1), (0.001, 1)):
        digit_like = brightness * (torch.rand(28, 28, generator=generator) > 0.9).float()
        placed = 0.3 * brightness * noise
        for row in (0, 100, 200):
            for column in (0, 100, 200):
                placed[row : row + 28, column : column + 28] += digit_like
        assert len(concerns(placed, 0.3 * brightness, "mtd_mnist_epsilon")) == words


# Simulating


def test_a_simulated_field_is_labelled_and_comes_with_its_truth(emlab, tmp_path):
    image = write_image(tmp_path / "image.tif", TRUTH.numpy(), 2.5)
    out = tmp_path / "field.mrc"
    status, printed, _ = emlab("mtd", "simulate", out, "--image", image, "--snr", 4, "--seed", 3)
    assert status == 0
    assert printed.startswith("simulated       12 copies of image.tif in 55 x 55 pixels")
    facts = tomllib.loads((tmp_path / "field.simulated.toml").read_text())
    field = read_image(out)
    assert facts["simulated"] is True
    assert field.pixel_size_angstrom == 2.5
    np.testing.assert_array_equal(np.load(tmp_path / "field.truth.npy"), TRUTH.numpy())
    clean = np.zeros((55, 55))
    for (row, column), k in zip(facts["positions"], facts["turns"], strict=True):
        clean[row : row + SIZE, column : column + SIZE] += np.rot90(TRUTH.numpy(), k)
    assert facts["sigma"] == pytest.approx(math.sqrt(TRUTH.square().mean().item() / 4))
    assert np.std(field.pixels - clean) == pytest.approx(facts["sigma"], rel=0.05)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "either --image FILE or --digit"),
        (["--image", "x.npy", "--digit", 1], "either --image FILE or --digit"),
        (["--image", "x.npy"], "there is no file x.npy"),
        (["--digit", 1, "--snr", 0], "snr must be positive"),
        (["--digit", 1, "--field-size", 70, "--density", 0.9], "no room"),
    ],
)
def test_a_field_that_cannot_be_simulated_leaves_nothing(emlab, tmp_path, options, words):
    status, _, err = emlab("mtd", "simulate", tmp_path / "field.mrc", *options)
    assert status == 2
    assert words in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
