"""The prior of tissue goes on with a user's images, and says what that gained where it was not."""

import numpy as np
import pytest
import torch

from emlab import weights
from emlab.data.phantoms import neuropil
from emlab.errors import InputError
from emlab.io import write_image
from emlab.models import build
from emlab.recipes import generalist_own
from emlab.recipes.generalist import NAME, Material

MODEL = {"kind": "depth_unet", "widths": [8], "embedding": 16}
MATERIAL = {"patch": 32, "stacks": 12, "validation": 6}


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A tiny network in place of the shipped one."""
    torch.manual_seed(0)
    card = dict.fromkeys(("recipe", "data", "split", "device", "commit", "limits"), "none")
    card |= {"steps": 0, "seconds": 0.0, "seed": 0, "evaluation": {}, "model": MODEL}
    card |= {"objective": {"kind": "depth", "mean": 0.0135, "std": 0.3}}
    weights.save(NAME, build(MODEL).state_dict(), card, tmp_path / "weights")
    monkeypatch.setenv("EMLAB_WEIGHTS", str(tmp_path / "weights"))


def folder(place, *shapes, size=100.0):
    place.mkdir()
    for number, shape in enumerate(shapes):
        write_image(place / f"{number}.tif", 1000 + 3 * neuropil(shape, number), size)
    return place


def test_training_goes_on_and_the_card_says_what_it_gained(shipped, tmp_path):
    mine = folder(tmp_path / "mine", (80, 64), (90, 72))
    card = generalist_own.train_on(mine, "smoke", "cpu", tmp_path / "out")
    assert card.recipe == f"emlab train {NAME} --images mine --profile smoke"
    assert card.model == weights.card(NAME).model
    assert {"gain_at_0.1", "gain_at_0.25"} <= set(card.evaluation)
    assert (tmp_path / "out" / "files" / f"{NAME}.safetensors").is_file()


def test_before_the_first_step_nothing_is_gained(shipped, tmp_path):
    lesson = generalist_own.prepare_own(folder(tmp_path / "mine", (80, 64)), {}, MATERIAL)
    network = build(MODEL)
    network.load_state_dict(weights.load(lesson.initial)[0])
    found = lesson.evaluate(network, torch.device("cpu"))
    assert found["gain_at_0.1"] == pytest.approx(0, abs=1e-5)
    network.leave[2].bias.data += 0.5
    assert lesson.evaluate(network, torch.device("cpu"))["gain_at_0.1"] < -0.1


def test_what_is_held_out_is_not_trained_on(shipped, tmp_path):
    place = tmp_path / "mine"
    place.mkdir()
    image = neuropil((120, 64), 1)
    image[80:] = 255 - image[80:]  # what is held out has another look
    write_image(place / "a.npy", image)
    lesson = generalist_own.prepare_own(place, {}, MATERIAL)
    cut = lesson.images[:, 0].numpy()
    upper = generalist_own._units(place / "a.npy", Material(**MATERIAL))[0][0, :80]
    windows = np.lib.stride_tricks.sliding_window_view(upper, (32, 32)).reshape(-1, 32, 32)
    known = {window.tobytes() for window in windows}
    assert all(one.tobytes() in known for one in cut)


@pytest.mark.parametrize(
    ("shapes", "size", "alone", "nameless"),
    [
        (((80, 64),), 100.0, 1.0, 0.2),
        (((6, 80, 64),), 100.0, 0.4, 0.2),
        (((6, 80, 64), (80, 64)), 100.0, 1.0, 0.2),
        (((80, 64),), None, 1.0, 1.0),
        (((80, 64),), 5.0, 1.0, 1.0),  # finer than any training
    ],
)
def test_neighbours_and_pixel_sizes_are_told_where_there_are(
    shipped, tmp_path, shapes, size, alone, nameless
):
    place = folder(tmp_path / "mine", *shapes, size=size)
    loss = generalist_own.prepare_own(place, {}, MATERIAL).loss
    assert (loss.alone, loss.nameless) == (alone, nameless)


def test_folders_that_cannot_be_trained_on_are_refused(shipped, tmp_path):
    with pytest.raises(InputError, match="is no folder"):
        generalist_own.prepare_own(tmp_path / "none", {}, MATERIAL)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no images"):
        generalist_own.prepare_own(tmp_path / "empty", {}, MATERIAL)
    with pytest.raises(InputError, match="at least 72 rows"):
        generalist_own.prepare_own(folder(tmp_path / "small", (60, 64)), {}, MATERIAL)
