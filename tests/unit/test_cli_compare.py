"""emlab compare: formats, pixel sizes, halves, an interrupted run, and what is refused."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tifffile
from scipy import ndimage

from emlab.app.commands import compare
from emlab.app.own_image.asked import Answer
from emlab.io import read_image, write_image
from emlab.io.volumes import create_volume, open_volume

SHAPE = (96, 112)
FORMATS = (".mrc", ".mrcs", ".tif", ".ome.tif", ".png", ".npy", ".zarr", ".flat.zarr")
PLAIN = ("--methods", "gaussian,wiener", "--spread", "0")


def picture(seed=0, shape=SHAPE, sigma=8.0):
    random = np.random.default_rng(5)
    smooth = ndimage.gaussian_filter(random.standard_normal(shape), 4, mode="wrap")
    noise = np.random.default_rng(seed).standard_normal(shape)
    return (100 + 25 * smooth / smooth.std() + sigma * noise).astype(np.float32)


@pytest.fixture
def emlab(command_line, monkeypatch):
    """Run `emlab compare ...`; the page is one word, test_own_image makes a whole one."""
    monkeypatch.setenv("EMLAB_THREADS", "1")
    monkeypatch.setattr(compare, "page", lambda *_: "page")

    return partial(command_line, "compare")


@pytest.fixture
def tif(tmp_path):
    return write_image(tmp_path / "in.tif", picture(), 40.0)


def saved_as(folder, suffix):
    path = folder / f"in{suffix}"
    if suffix == ".ome.tif":
        pixels = {"PhysicalSizeX": 4.0, "PhysicalSizeXUnit": "nm"}
        pixels |= {"PhysicalSizeY": 4.0, "PhysicalSizeYUnit": "nm", "axes": "YX"}
        tifffile.imwrite(path, picture(), ome=True, metadata=pixels)
    elif suffix == ".flat.zarr":
        with create_volume(path, SHAPE, "float32", 40.0) as image:
            image[:] = picture()
    elif suffix == ".zarr":
        with create_volume(path, (3, *SHAPE), "float32", 40.0) as volume:
            volume[:] = np.stack([picture()] * 3)
    elif suffix == ".png":
        write_image(path, picture().astype(np.uint8), 40.0)
    else:
        write_image(path, picture(), 40.0)
    return path


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_goes_in_and_restored_images_keep_format_and_pixel_size(
    emlab, tmp_path, suffix
):
    if suffix.endswith(".zarr"):
        pytest.importorskip("zarr")
    source, out = saved_as(tmp_path, suffix), tmp_path / "report.html"
    given = ("--pixel-size-angstrom", 40) if suffix == ".npy" else ()
    status, printed, err = emlab(source, "-o", out, *PLAIN, "--save", tmp_path / "saved", *given)
    assert status == 0, err
    told = json.loads(out.with_suffix(".json").read_text())
    assert told["pixel_size_angstrom"] == pytest.approx(40, rel=1e-3)
    assert [method["name"] for method in told["methods"]] == ["gaussian", "wiener"]
    assert told["noise"]["sigma"] == pytest.approx(8, rel=0.15)
    assert "white" in printed
    last = Path(f"in{suffix}").suffix
    files = sorted(path.name for path in (tmp_path / "saved").iterdir())
    stem = "in.flat" if suffix == ".flat.zarr" else "in"
    assert files == [f"{stem}_{name}{last}" for name in ("gaussian", "wiener")]
    kept = tmp_path / "saved" / files[0]
    image = open_volume(kept) if last == ".zarr" else read_image(kept)
    assert (image.shape[1:] if last == ".zarr" else image.pixels.shape) == SHAPE
    if suffix != ".npy":
        assert image.pixel_size_angstrom == pytest.approx(40, rel=1e-3)
    assert not list(tmp_path.glob(".*"))


def test_two_halves_give_ring_correlation_and_the_error_left(emlab, tif):
    other = write_image(tif.with_name("other.tif"), picture(1), 40.0)
    out = tif.with_name("r.html")
    status, printed, err = emlab(tif, "-o", out, "--half", other, *PLAIN)
    assert status == 0, err
    told = json.loads(out.with_suffix(".json").read_text())
    assert told["input"]["error"] == pytest.approx(1, abs=0.02)
    assert told["methods"][0]["numbers"]["error"] < 0.7
    assert told["methods"][0]["numbers"]["frc"] < told["input"]["frc"]
    assert "error left" in printed


def test_frames_are_averaged_and_their_halves_compared(emlab, tmp_path):
    frames = np.stack([picture(seed) for seed in range(5)])
    source = write_image(tmp_path / "frames.mrcs", frames, 2.0)
    out = tmp_path / "r.html"
    status, _, err = emlab(source, "-o", out, "--frames", *PLAIN)
    assert status == 0, err
    told = json.loads(out.with_suffix(".json").read_text())
    assert told["noise"]["sigma"] == pytest.approx(8 / np.sqrt(5), rel=0.2)
    assert "error" in told["input"]
    assert told["specimen"] == "particles"
    status, _, _ = emlab(source, "-o", out, "--plane", 1, *PLAIN)
    told = json.loads(out.with_suffix(".json").read_text())
    assert told["noise"]["sigma"] == pytest.approx(8, rel=0.15)
    assert told["facts"]["plane"] == "1 of 0 to 4"


def test_upsampling_makes_finer_images(emlab, tif, tmp_path):
    out, saved = tif.with_name("r.html"), tmp_path / "saved"
    asked = ("--task", "upsample", "--factor", 2, "--methods", "cubic", "--save", saved)
    status, _, err = emlab(tif, "-o", out, *asked)
    assert status == 0, err
    fine = read_image(saved / "in_cubic.tif")
    assert fine.pixels.shape == (192, 224)
    assert fine.pixel_size_angstrom == pytest.approx(20, rel=1e-3)
    told = json.loads(out.with_suffix(".json").read_text())
    assert told["input"]["resolution"] >= 2 * 4.0, "repeated pixels are no resolution"


def test_the_window_lies_where_it_is_asked_for(emlab, tif, tmp_path):
    out, saved = tif.with_name("r.html"), tmp_path / "saved"
    where = ("--window", 64, "--centre", "40,0", "--save", saved)
    status, _, err = emlab(tif, "-o", out, *PLAIN, *where)
    assert status == 0, err
    told = json.loads(out.with_suffix(".json").read_text())
    assert told["facts"]["window"].startswith("only 64 x 64 of its 96 x 112 pixels, from row 8 ")
    restored = read_image(saved / "in_gaussian.tif").pixels
    rough = ndimage.gaussian_filter(picture(), 1.5)[8:72, :64]
    assert np.corrcoef(restored.ravel(), rough.ravel())[0, 1] > 0.97


def test_an_interrupted_run_goes_on_where_it_stopped_and_gives_the_same(emlab, tif, monkeypatch):
    whole, out = tif.with_name("whole.html"), tif.with_name("r.html")
    assert emlab(tif, "-o", whole, *PLAIN)[0] == 0
    honest, asked = compare.answer, []

    def stops(entrant, *arguments, **options):
        asked.append(entrant.name)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return honest(entrant, *arguments, **options)

    monkeypatch.setattr(compare, "answer", stops)
    status, _, err = emlab(tif, "-o", out, *PLAIN)
    assert status not in (0, None)
    assert "--resume goes on" in err
    assert not out.exists()
    status, _, err = emlab(tif, "-o", out, *PLAIN)
    assert status == 2
    assert "add --resume" in err
    status, _, err = emlab(tif, "-o", out, *PLAIN, "--resume", "--seed", 3)
    assert status == 2
    assert "seed was 0 and is 3" in err
    status, _, err = emlab(tif, "-o", out, *PLAIN, "--resume")
    assert status == 0, err
    assert asked == ["gaussian", "wiener", "wiener"]
    first, second = (json.loads(path.with_suffix(".json").read_text()) for path in (whole, out))
    for before, after in zip(first["methods"], second["methods"], strict=True):
        for name in ("residual", "resolution", "blank_contrast"):
            assert before["numbers"][name] == after["numbers"][name]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--task", "paint"), "unknown task 'paint'"),
        (("--task", "deblur"), "needs --kernel"),
        (("--kernel", "2"), "other tasks do not"),
        (("--methods", "magic"), "unknown method 'magic'"),
        (("--noise", "-1"), "--noise must be positive"),
        (("--noise", "3", "--coloured"), "give --noise or --coloured"),
        (("--centre", "9000,3"), "is no place in 96 x 112 pixels"),
        (("--plane", "2"), "is one image"),
        (("--frames",), "has no frames"),
        (("--half", "in.tif"), "are the same image"),
        (("--specimen", "plankton"), "choose the task from"),
        (("--spread", "5"), "0 or at least 64"),
        (("-o", "report.pdf"), "cannot write the report as '.pdf'; use .html"),
    ],
)
def test_bad_options_give_one_sentence(emlab, tif, monkeypatch, options, message):
    monkeypatch.chdir(tif.parent)
    status, _, err = emlab("in.tif", "-o", "r.html", *options)
    assert status == 2
    assert message in err
    assert len([line for line in err.splitlines() if "error" in line]) == 1
    assert sorted(path.name for path in tif.parent.iterdir()) == ["in.tif"]


def test_bad_images_give_one_sentence(emlab, tmp_path):
    out = tmp_path / "r.html"
    for name, pixels, message in (
        ("small.tif", picture(shape=(40, 90)), "64 x 64 or more"),
        ("flat.tif", np.ones(SHAPE, np.float32), "constant"),
        ("spot.npy", np.pad(np.ones((1, 1), np.float32), 50), "most of the image is one grey"),
        ("colour.npy", np.zeros((2, 3, 4, 5), np.float32), "shape"),
    ):
        status, _, err = emlab(write_image(tmp_path / name, pixels), "-o", out)
        assert status == 2
        assert message in err
    status, _, err = emlab(tmp_path / "absent.tif", "-o", out)
    assert "there is no file" in err
    status, _, err = emlab(tmp_path, "-o", out)
    assert "is a folder" in err
    inside = tmp_path / "small.tif" / "deeper" / "r.html"
    status, _, err = emlab(write_image(tmp_path / "in.tif", picture()), "-o", inside)
    assert status == 2
    assert "cannot write" in err
    assert not out.exists()


def test_a_run_in_which_nobody_could_help_leaves_nothing(emlab, tif, monkeypatch):
    monkeypatch.setattr(compare, "answer", lambda *_, **__: Answer(problem="too faint"))
    for _ in range(2):
        status, _, err = emlab(tif, "-o", tif.with_name("r.html"), *PLAIN)
        assert status == 2
        assert "no method could restore" in err
        assert "Gaussian: it refused: too faint" in err
    assert [path.name for path in tif.parent.iterdir()] == ["in.tif"]
