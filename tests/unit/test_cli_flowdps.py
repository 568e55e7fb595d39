"""`emlab flowdps retrieve` restores a user's own particles, and refuses what it cannot use."""

import csv
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from emlab import data, weights
from emlab.app import cli
from emlab.data.metadata import Metadata
from emlab.data.particles import read_metadata, write_star
from emlab.io import read_image, write_image
from emlab.methods import flowdps
from emlab.methods.flowdps_config import load_config
from emlab.models import build

MODEL = {"kind": "unet", "widths": [8], "embedding": 16, "patch": 4}
PIXEL = 2.63
KNOWN = (
    "--voltage-kv", 300, "--cs-mm", 2.7, "--amplitude-contrast", 0.1, "--defocus", 15000,
    "--pixel-size", PIXEL,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Weights that were never trained: near the best linear denoiser; and an empty cache."""
    torch.manual_seed(0)
    card = dict.fromkeys(("recipe", "data", "split", "device", "commit", "limits"), "none")
    card |= {"steps": 0, "seconds": 0.0, "seed": 0, "evaluation": {}}
    card |= {"model": MODEL, "objective": {"kind": "flow", "mean": 0.0, "std": 1.0}}
    place = tmp_path_factory.mktemp("weights")
    weights.save("flowdps_flow", build(MODEL).state_dict(), card, place)
    return place


def few_steps(name):
    config = load_config(name)
    sampler = replace(config.sampler, steps=2)
    return replace(config, sampler=sampler, samples=2, batch=2, fit_rounds=1, fit_steps=2)


@pytest.fixture
def emlab(capsys, monkeypatch, folder):
    """Run `emlab flowdps retrieve ...` in few steps; returns (exit status, stdout, stderr)."""
    monkeypatch.setattr("emlab.app.commands.flowdps.load_config", few_steps)
    monkeypatch.setenv("EMLAB_THREADS", "1")
    monkeypatch.setenv("EMLAB_WEIGHTS", str(folder))
    monkeypatch.setenv("EMLAB_CACHE", str(folder / "cache"))

    def call(*arguments):
        status = cli.main(["flowdps", "retrieve", *(str(item) for item in arguments)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def images(n=5, side=64, seed=0):
    axis = np.arange(side) - side / 2
    disc = np.hypot(axis[:, None], axis) < 20
    noise = np.random.default_rng(seed).normal(size=(n, side, side))
    return (noise + disc).astype(np.float32)


def table(n=5, **changes):
    values = {
        "pixel_size_angstrom": PIXEL,
        "voltage_kv": 300.0,
        "cs_mm": 2.7,
        "amplitude_contrast": 0.1,
        "defocus_u_angstrom": np.linspace(12000.0, 16000.0, n),
        "defocus_v_angstrom": np.linspace(11000.0, 15000.0, n),
        "astigmatism_deg": np.full(n, 20.0),
        "phase_shift_deg": np.zeros(n),
        "optics_group": np.ones(n, np.int64),
        "rotations": np.stack([np.eye(3)] * n),
        "shifts_angstrom": np.full((n, 2), 2.63),
    }
    return Metadata(**values | changes)


@pytest.fixture
def star(tmp_path):
    write_image(tmp_path / "stack.mrcs", images(), PIXEL)
    write_star(tmp_path / "particles.star", table(), "stack.mrcs", 64)
    return tmp_path / "particles.star"


@pytest.fixture
def stack(tmp_path):
    return write_image(tmp_path / "bare.mrcs", images(2))


def told(text):
    return {line[:16].strip(): line[16:] for line in text.splitlines()}


# Retrieving


def test_a_star_file_gives_phases_spread_star_and_table(emlab, star):
    out, spread = star.with_name("phases.mrcs"), star.with_name("doubt.mrcs")
    status, printed, err = emlab(star, out, "--spread", spread)
    assert status == 0, err
    phases = read_image(out)
    assert phases.pixels.shape == (5, 64, 64)
    assert phases.pixel_size_angstrom == pytest.approx(PIXEL)
    assert np.abs(phases.pixels.mean((1, 2))).max() < 1e-5
    doubt = read_image(spread)
    assert doubt.pixel_size_angstrom == pytest.approx(PIXEL)
    assert doubt.pixels.min() >= 0
    assert doubt.pixels.mean() > 0
    again = read_metadata(star.with_name("phases.star"))
    assert again.images_at == tuple(("phases.mrcs", i) for i in range(5))
    assert again.defocus_u_angstrom == pytest.approx(table().defocus_u_angstrom)
    assert again.pixel_size_angstrom == pytest.approx(PIXEL)
    assert again.shifts_angstrom is None
    assert again.rotations is not None
    rows = list(csv.DictReader(star.with_name("phases.csv").open()))
    assert [row["image"] for row in rows] == [f"{i + 1:06d}@stack.mrcs" for i in range(5)]
    assert all(float(row["chi2"]) > 0 > float(row["gain"]) for row in rows)
    assert all(float(row["chi2_low"]) > 0 for row in rows)
    assert "matter is bright" in err
    assert "1.15 to 1.55 um" in told(printed)["optics"]
    assert "5 particles now" in told(printed)["seconds"]
    assert "pixel size 2.63 angstrom" in told(printed)["written"]
    left = {file.name for file in star.parent.iterdir()}
    assert left == {
        "stack.mrcs", "particles.star", "phases.mrcs", "phases.star", "phases.csv", "doubt.mrcs",
    }  # fmt: skip


def test_other_pixels_keep_their_scale(emlab, tmp_path):
    fine = write_image(tmp_path / "fine.mrcs", images(2, 128), PIXEL / 2)
    out = tmp_path / "out.mrc"
    status, printed, err = emlab(fine, out, *KNOWN[:-2], "--samples", 1)
    assert status == 0, err
    assert read_image(out).pixels.shape == (2, 64, 64)
    assert read_image(out).pixel_size_angstrom == pytest.approx(PIXEL, rel=1e-3)
    assert "mean of 1 sample (" in told(printed)["prior"]


def test_a_cryosparc_table(emlab, tmp_path):
    write_image(tmp_path / "stack.mrc", images(2), PIXEL)
    columns = {
        "blob/path": ("S20", b">stack.mrc"),
        "blob/idx": ("u4", np.arange(2)),
        "blob/psize_A": ("f4", PIXEL),
        "ctf/accel_kv": ("f4", 300),
        "ctf/cs_mm": ("f4", 2.7),
        "ctf/amp_contrast": ("f4", 0.1),
        "ctf/df1_A": ("f4", 12000),
        "ctf/df2_A": ("f4", 11000),
    }
    rows = np.zeros(2, [(name, kind) for name, (kind, _) in columns.items()])
    for name, (_, value) in columns.items():
        rows[name] = value
    with open(tmp_path / "particles.cs", "wb") as file:
        np.save(file, rows)
    status, _, err = emlab(tmp_path / "particles.cs", tmp_path / "out.mrcs", "--contrast", "bright")
    assert status == 0, err
    assert read_image(tmp_path / "out.mrcs").pixels.shape == (2, 64, 64)


def test_options_count_more_than_the_file_and_electrons_are_not_fitted(emlab, star):
    status, printed, err = emlab(
        star, star.with_name("out.mrcs"), "--defocus", 20000, "--dose", 40, "--config", "paper"
    )
    assert status == 0, err
    assert "2.00 to 2.00 um" in told(printed)["optics"]
    assert told(printed)["dose"] == "40 electrons per square angstrom, median (given)"
    assert "(paper)" in told(printed)["prior"]
    assert "matter is" not in err


def test_the_spread_of_unknown_weights_is_measured_once(emlab, stack, folder, monkeypatch):
    assert emlab(stack, stack.with_name("a.mrcs"), *KNOWN)[0] == 0
    assert len(list((folder / "cache" / "spread").glob("flowdps_flow_*.npy"))) == 1
    monkeypatch.setattr("emlab.methods.flowdps_config.on_own_draws", lambda *_: 1 / 0)
    assert emlab(stack, stack.with_name("b.mrcs"), *KNOWN)[0] == 0
    first, again = (read_image(stack.with_name(f"{name}.mrcs")).pixels for name in "ab")
    assert np.array_equal(first, again)


# Interruptions


def interrupt(monkeypatch, batch):
    """Ctrl-C at the start of a batch, once; returns the calls."""
    calls = []

    def counted(*arguments, **options):
        calls.append(1)
        if len(calls) == batch:
            raise KeyboardInterrupt
        return flowdps.retrieve(*arguments, **options)

    monkeypatch.setattr("emlab.app.commands.flowdps.retrieve", counted)
    return calls


def test_a_killed_run_is_resumed_without_what_was_done_and_ends_the_same(emlab, star, monkeypatch):
    outs = [star.with_name(f"{name}.mrcs") for name in ("whole", "killed")]
    assert emlab(star, outs[0])[0] == 0
    calls = interrupt(monkeypatch, 3)
    assert emlab(star, outs[1])[0] == 130
    assert not outs[1].exists()
    partial = star.with_name(".killed.partial")
    assert {file.name for file in partial.glob("*.npz")} == {"0.npz", "1.npz"}
    status, _, err = emlab(star, outs[1])
    assert status == 2
    assert "add --resume to go on with it, or delete it" in err
    status, _, err = emlab(star, outs[1], "--resume", "--seed", 1)
    assert status == 2
    assert "seed was 0 and is 1" in err
    status, printed, err = emlab(star, outs[1], "--resume")
    assert status == 0, err
    assert len(calls) == 4
    assert "1 particles now" in told(printed)["seconds"]
    assert not partial.exists()
    assert np.array_equal(*(read_image(out).pixels for out in outs))
    tables = [out.with_suffix(".csv").read_text() for out in outs]
    assert tables[0] == tables[1]


def test_a_damaged_batch_of_an_interrupted_run_is_told(emlab, star, monkeypatch):
    out, partial = star.with_name("out.mrcs"), star.with_name(".out.partial")
    interrupt(monkeypatch, 2)
    assert emlab(star, out, "--resume")[0] == 130  # nothing to go on with is no error
    (partial / "0.npz").write_bytes(b"half")
    status, _, err = emlab(star, out, "--resume")
    assert status == 2
    assert "0.npz is lost or damaged; delete" in err


# Refusals


def test_missing_optics_are_asked_for_by_the_names_of_the_options(emlab, stack):
    status, _, err = emlab(stack, stack.with_name("out.mrcs"), "--cs-mm", 2.7)
    assert status == 2
    assert "give --pixel-size, --voltage-kv, --amplitude-contrast, --defocus, or a STAR" in err
    status, _, err = emlab(stack, stack.with_name("out.mrcs"), *KNOWN[:-2])
    assert "give --pixel-size, or a STAR" in err


def replaced(*change):
    """KNOWN with one value changed."""
    given = list(KNOWN)
    given[given.index(change[0]) + 1] = change[1]
    return given


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (replaced("--defocus", 2), r"is 2; give angstrom \(1 micrometre is 10000\)"),
        (replaced("--defocus", 1.5e-6), "give angstrom"),
        (replaced("--defocus", 1.5e6), "give angstrom"),
        (replaced("--defocus", -15000), "underfocus is positive, change the sign"),
        (replaced("--defocus", float("nan")), "NaN"),
        (replaced("--voltage-kv", 300000), "voltage in kV, for example 300"),
        (replaced("--pixel-size", 0), "give the pixel size in angstrom"),
        (replaced("--pixel-size", 3.4), "coarser than the prior's 2.63 A; extract"),
        (replaced("--pixel-size", 2.8), r"box of 179 A is larger than the 168 A.*--crop"),
        (replaced("--amplitude-contrast", 7), "amplitude contrast as a share"),
        ([*KNOWN, "--contrast", "grey"], "--contrast is auto, bright, dark, not 'grey'"),
        ([*KNOWN, "--dose", -3], "dose must be a positive"),
        ([*KNOWN, "--config", "best"], "unknown configuration 'best'"),
        ([*KNOWN, "--prior", "other"], "no weights are called 'other'"),
        ([*KNOWN, "--samples", 1, "--spread", "s.mrcs"], "give --samples 2 or more"),
        ([*KNOWN, "--spread", "OUT"], "would hold both results; give one another name"),
        ([*KNOWN, "--spread", "s.tif"], r"cannot write phases as '.tif'; use .mrcs, .mrc"),
        ([*KNOWN, "--device", "cuda:9"], "is not here"),
    ],
)
def test_options_that_cannot_work(emlab, stack, options, match):
    out = stack.with_name("out.mrcs")
    status, _, err = emlab(stack, out, *(out if item == "OUT" else item for item in options))
    assert status == 2
    assert re.search(match, err)
    assert err.count("error:") == 1
    assert [file.name for file in stack.parent.iterdir()] == ["bare.mrcs"]


@pytest.mark.filterwarnings("ignore:Data array contains NaN")
@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda x: np.where(np.arange(2)[:, None, None] == 1, 3.0, x), "image 2 of .* is constant"),
        (lambda x: np.where(x > 2, np.nan, x), "NaN or infinite; replace"),
        (lambda x: x[:, :, :60], "give square ones of one size"),
    ],
)
def test_images_that_cannot_be_restored(emlab, stack, change, match):
    import mrcfile

    with mrcfile.new(stack, overwrite=True) as file:
        file.set_data(change(images(2)).astype(np.float32))
    status, _, err = emlab(stack, stack.with_name("out.mrcs"), *KNOWN)
    assert status == 2
    assert re.search(match, err)


def test_truncated_empty_and_absent_files(emlab, star, stack):
    out = star.with_name("out.mrcs")
    content = stack.read_bytes()
    for cut, match in ((len(content) - 5000, "truncated"), (700, "truncated"), (0, "is empty")):
        stack.write_bytes(content[:cut])
        status, _, err = emlab(stack, out, *KNOWN)
        assert status == 2
        assert match in err
    header = bytearray(content[:1024])
    header[8:12] = (0).to_bytes(4, "little")  # no sections
    stack.write_bytes(header)
    assert emlab(stack, out, *KNOWN)[0] == 2
    text = star.read_text()
    star.write_text(re.sub(r"(?m)^0000\d\d@.*\n", "", text))
    status, _, err = emlab(star, out)
    assert status == 2
    assert "particles.star" in err
    star.with_name("stack.mrcs").unlink()
    star.write_text(text)
    status, _, err = emlab(star, out)
    assert status == 2
    assert "names the stack stack.mrcs, which is not there" in err
    status, _, err = emlab(star.with_name("none.star"), out)
    assert status == 2
    assert "there is no file" in err


def test_mixed_pixel_sizes_and_missing_ctf(emlab, star):
    out, text = star.with_name("out.mrcs"), star.read_text()
    line = next(line for line in text.splitlines() if "opticsGroup1" in line)
    other = line.replace("1 opticsGroup1", "2 opticsGroup2").replace("2.630000", "1.300000")
    rows = text.replace(line, f"{line}\n{other}").replace(
        "000002@stack.mrcs 1", "000002@stack.mrcs 2"
    )
    star.write_text(rows)
    status, _, err = emlab(star, out)
    assert status == 2
    assert "mixes particles of pixel_size_angstrom 1.3 and 2.63; split it" in err
    star.write_text(text.replace("_rlnDefocusU", "_rlnOther"))
    status, _, err = emlab(star, out)
    assert status == 2
    assert "does not say the defocus; give --defocus" in err
    star.write_text(text.replace("_rlnImagePixelSize", "_rlnOther"))
    status, _, err = emlab(star, out)
    assert status == 2
    assert "does not say the --pixel-size" in err
    assert not out.exists()


def test_no_input_is_overwritten(emlab, star):
    stack = star.with_name("stack.mrcs")
    before = stack.read_bytes(), star.read_bytes()
    for out in (star.with_suffix(".mrcs"), stack):
        status, _, err = emlab(star, out)
        assert status == 2
        assert "is the input itself; give the result another name" in err
    status, _, err = emlab(star, star.parent)
    assert status == 2
    assert (stack.read_bytes(), star.read_bytes()) == before


# Real particles


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        ("particles_relion31", (), 5),
        ("particles_10076", (*KNOWN[:-2], "--pixel-size", 1.31), 7),
    ],
)
def test_real_particles_run_once_cropping_is_asked_for(
    emlab, mirror, tmp_path, name, options, count
):
    files = list(data.paths(name).values())
    source = next((file for file in files if file.suffix == ".star"), files[0])
    status, _, err = emlab(source, tmp_path / "out.mrcs", *options)
    assert status == 2
    assert "larger than the 168 A of the prior" in err
    status, printed, err = emlab(source, tmp_path / "out.mrcs", *options, "--crop")
    assert status == 0, err
    assert read_image(tmp_path / "out.mrcs").pixels.shape == (count, 64, 64)
    assert f"{count} particles" in told(printed)["input"]


def test_the_lines_of_the_chapter_run(emlab, star):
    """As they stand in the notebook, in a folder that holds its files."""
    notebook = Path(__file__).resolve().parents[2] / "notebooks" / "03_flowdps.ipynb"
    text = "".join("".join(cell["source"]) for cell in json.loads(notebook.read_text())["cells"])
    lines = re.findall(r"^emlab flowdps retrieve ((?:.*\\\n)*.*)$", text, flags=re.MULTILINE)
    assert len(lines) == 2
    write_image(star.with_name("stack.mrcs"), images(), 2.63)
    for line in lines:
        words = shlex.split(line.replace("\\\n", " "))
        files = [star.parent / word if Path(word).suffix else word for word in words]
        paths = [f if isinstance(f, Path) and f.suffix in (".star", ".mrcs") else w
                 for f, w in zip(files, words, strict=True)]  # fmt: skip
        status, _, err = emlab(*paths)
        assert status == 0, err


def test_next_to_no_defocus_is_asked_about(emlab, stack):
    options = [150 if word == 15000 else word for word in KNOWN]
    _, _, err = emlab(stack, stack.with_name("phases.mrcs"), *options)
    assert "150 angstrom is next to none" in err
    _, _, err = emlab(stack, stack.with_name("phases.mrcs"), *KNOWN[:-3], 2, *KNOWN[-2:])
    assert "--defocus is 2" in err


# From Python


def test_the_lines_of_the_book_run(emlab, star, monkeypatch, capsys):
    monkeypatch.setattr("emlab.methods.flowdps.load_config", few_steps)
    monkeypatch.chdir(star.parent)
    page = (Path(__file__).resolve().parents[2] / "book" / "own_particles.md").read_text()
    (lines,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    exec(lines, {})
    assert "(5, 64, 64)" in capsys.readouterr().out
