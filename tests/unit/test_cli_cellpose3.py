"""emlab cellpose3: restored images, masks of the input's size, and what is refused."""

from __future__ import annotations

import re
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
from PIL import Image as Picture
from scipy import ndimage

from emlab import weights
from emlab.app.commands import cellpose3
from emlab.io import read_array, read_image, write_image
from emlab.methods.estimate import Estimate
from emlab.models import build

NAMES = ("denoise", "deblur", "upsample", "oneclick", "segmenter")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Weights of networks that were never trained."""
    place = tmp_path_factory.mktemp("weights")
    card = {"recipe": "emlab train x", "data": "none", "split": "none", "device": "cpu"}
    card |= {"commit": "none", "limits": "a test", "objective": {"kind": "none"}}
    card |= {"steps": 0, "seconds": 0.0, "seed": 0, "evaluation": {}}
    for name in NAMES:
        outputs = 3 if name == "segmenter" else 1
        model = {"kind": "residual_unet", "widths": [4, 8], "outputs": outputs}
        fields = card | {"model": model}
        weights.save(f"cellpose3_{name}", build(model).state_dict(), fields, place)
    return place


def threshold(image, segmenter, diameter, rescale_intensity):
    """Stands in for the segmenter: bright connected parts are objects."""
    middle = (image.min() + image.max()) / 2
    return SimpleNamespace(labels=ndimage.label(image > middle)[0].astype(np.int32))


@pytest.fixture
def emlab(command_line, monkeypatch, folder):
    """Run `emlab cellpose3 ...`; returns (exit status, stdout, stderr) and notes what was asked."""
    asked = []

    def keep(image, restorer, diameter):
        asked.append((image.shape, diameter))
        found = ((image - image.min()) / np.ptp(image)).astype(np.float32)
        return Estimate(image=found, samples=found[None])

    monkeypatch.setattr(cellpose3, "restore", keep)
    monkeypatch.setattr(cellpose3, "find_objects", threshold)
    monkeypatch.setattr(cellpose3, "estimate_diameter", lambda *_: 12.5)
    monkeypatch.setenv("EMLAB_THREADS", "1")
    monkeypatch.setenv("EMLAB_WEIGHTS", str(folder))

    call = partial(command_line, "cellpose3")
    call.asked = asked
    return call


def nuclei(side=40, wide=48):
    """Three squares on a dark ground, uint8."""
    image = np.full((side, wide), 10, np.uint8)
    for row, column in ((4, 4), (4, 30), (24, 16)):
        image[row : row + 9, column : column + 9] = 200
    return image


@pytest.fixture
def tif(tmp_path):
    return write_image(tmp_path / "in.tif", nuclei(), 2500.0)


def told(text):
    return {line[:16].strip(): line[16:] for line in text.splitlines()}


# Restoring


@pytest.mark.parametrize("task", ["denoise", "deblur"])
def test_an_image_is_restored_and_its_objects_are_labelled(emlab, tif, task):
    out, masks = tif.with_name("out.tif"), tif.with_name("masks.tif")
    status, printed, err = emlab(task, tif, out, "--masks", masks, "--diameter", 9)
    assert status == 0, err
    restored = read_image(out)
    assert restored.pixels.shape == (40, 48)
    assert tifffile.imread(out).dtype == np.float32
    assert restored.pixel_size_angstrom == pytest.approx(2500, rel=1e-4)
    labels, size = read_array(masks)
    assert labels.dtype.kind == "u"
    assert labels.shape == (40, 48)
    assert sorted(np.unique(labels)) == [0, 1, 2, 3]
    assert (labels[4:13, 4:13] > 0).all()
    assert size == pytest.approx(2500, rel=1e-4)
    assert emlab.asked == [((40, 48), 9)]
    rows = told(printed)
    assert rows["diameter"] == "9.0 pixels (given)"
    assert rows["objects"].startswith("3, written to")
    assert rows["network"] == {"denoise": "cellpose3_denoise"}.get(task, f"cellpose3_{task}_strong")
    assert "measure brightness on the input" in err


def test_upsampling_makes_finer_images_and_masks_of_the_inputs_size(emlab, tif):
    out, masks = tif.with_name("out.tif"), tif.with_name("masks.png")
    status, _, err = emlab("upsample", tif, out, "--factor", 3, "--masks", masks, "--diameter", 6)
    assert status == 0, err
    fine = read_image(out)
    assert fine.pixels.shape == (120, 144)
    assert fine.pixel_size_angstrom == pytest.approx(2500 / 3, rel=1e-3)
    assert emlab.asked == [((120, 144), 18)]
    labels = read_array(masks)[0]
    assert labels.shape == (40, 48)
    np.testing.assert_array_equal(labels > 0, nuclei() > 100)


def test_segmenting_alone_and_an_estimated_diameter(emlab, tif):
    masks = tif.with_name("masks.npy")
    status, printed, err = emlab("segment", tif, masks)
    assert status == 0, err
    assert np.load(masks).max() == 3
    assert told(printed)["diameter"] == "12.5 pixels (estimated)"
    assert told(printed)["network"] == "cellpose3_segmenter"
    assert emlab.asked == []


@pytest.mark.parametrize(
    ("task", "options"), [("segment", ["--out", "x.tif"]), ("denoise", ["--factor", 2])]
)
def test_no_command_has_options_of_another(emlab, tif, task, options):
    assert emlab(task, tif, tif.with_name("out.tif"), *options)[0] == 2
    assert not tif.with_name("out.tif").exists()


def test_the_network_can_be_chosen(emlab, tif):
    out = tif.with_name("out.npy")
    status, printed, err = emlab("denoise", tif, out, "--oneclick")
    assert status == 0, err
    assert told(printed)["network"] == "cellpose3_oneclick"
    status, _, err = emlab("denoise", tif, out, "--restorer", "cellpose3_other")
    assert status == 2
    assert "no weights are called 'cellpose3_other'" in err


def test_channels_of_colour_and_of_planes(emlab, tmp_path):
    colour = np.zeros((40, 48, 3), np.uint8)
    colour[..., 1] = nuclei()
    Picture.fromarray(colour).save(tmp_path / "rgb.png")
    np.save(tmp_path / "planes.npy", np.moveaxis(colour, -1, 0))
    for name in ("rgb.png", "planes.npy"):
        status, _, err = emlab("segment", tmp_path / name, tmp_path / "m.tif", "--channel", 2)
        assert status == 0, err
        assert read_array(tmp_path / "m.tif")[0].max() == 3
    status, _, err = emlab("segment", tmp_path / "rgb.png", tmp_path / "m.tif", "--channel", 1)
    assert status == 2
    assert "is constant" in err
    status, _, err = emlab("segment", tmp_path / "rgb.png", tmp_path / "m.tif", "--channel", 4)
    assert status == 2
    assert "has 3 channels; there is no 4" in err


def test_a_stack_is_restored_image_by_image_and_resumed(emlab, tmp_path, monkeypatch):
    stack = np.stack([nuclei(), nuclei()[::-1], nuclei()[:, ::-1]])
    source = write_image(tmp_path / "stack.tif", stack)
    out, masks = tmp_path / "out.tif", tmp_path / "masks.tif"
    call = ("denoise", source, out, "--stack", "--masks", masks)
    inner, seen = cellpose3.restore, []

    def interrupted(*arguments):
        seen.append(1)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return inner(*arguments)

    monkeypatch.setattr(cellpose3, "restore", interrupted)
    assert emlab(*call)[0] == 130
    assert not out.exists()
    status, _, err = emlab(*call)
    assert status == 2
    assert "add --resume" in err
    status, printed, err = emlab(*call, "--resume")
    assert status == 0, err
    assert len(seen) == 4  # the first image was not restored again
    assert read_image(out).pixels.shape == (3, 40, 48)
    labels = read_array(masks)[0]
    np.testing.assert_array_equal(labels > 0, stack > 100)
    assert told(printed)["objects"].startswith("9,")
    assert {file.name for file in tmp_path.iterdir()} == {"stack.tif", "out.tif", "masks.tif"}


# Refusals


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (["--diameter", 0], "--diameter must be positive, got 0"),
        (["--diameter", -5], "--diameter must be positive"),
        (["--diameter", "nan"], "--diameter must be positive"),
        (["--channel", 1], "is one grey image; leave out"),
        (["--stack"], "is one grey image; leave out"),
        (["--masks", "m.jpg"], "cannot write masks as '.jpg'; use .tif"),
        (["--masks", "OUT"], "would hold both results"),
        (["--masks", "IN"], "is the input itself"),
        (["--device", "cuda:9"], "is not here"),
    ],
)
def test_options_that_cannot_work(emlab, tif, options, match):
    out = tif.with_name("out.tif")
    names = {"OUT": out, "IN": tif}
    status, _, err = emlab("denoise", tif, out, *(names.get(item, item) for item in options))
    assert status == 2
    assert re.search(match, err)
    assert err.count("error:") == 1
    assert [file.name for file in tif.parent.iterdir()] == ["in.tif"]


@pytest.mark.parametrize(
    ("pixels", "match"),
    [
        (np.zeros((40, 40, 3), np.uint8), "is in colour.*say which channel with --channel"),
        (np.zeros((9, 40, 40), np.uint8), "volumes are not restored as such; give --stack"),
        (np.zeros((2, 3, 40, 40), np.uint8), "with both a stack of channels"),
        (np.zeros((40, 40), np.uint8), "is constant"),
        (np.zeros((0, 40), np.uint8), "give images of 16 x 16 pixels or more"),
        (np.eye(12, dtype=np.uint8), "give images of 16 x 16 pixels or more"),
        (np.where(np.eye(40), np.nan, 1.0), "NaN or infinite"),
        (np.eye(40) * 1j, "give real-valued pixels"),
    ],
)
def test_images_that_cannot_be_restored(emlab, tmp_path, pixels, match):
    np.save(tmp_path / "in.npy", pixels)
    status, _, err = emlab("denoise", tmp_path / "in.npy", tmp_path / "out.tif")
    assert status == 2
    assert re.search(match, err)


def test_an_empty_file_and_none(emlab, tmp_path):
    (tmp_path / "in.png").write_bytes(b"")
    assert "is empty" in emlab("segment", tmp_path / "in.png", tmp_path / "m.tif")[2]
    assert "there is no file" in emlab("segment", tmp_path / "no.png", tmp_path / "m.tif")[2]
