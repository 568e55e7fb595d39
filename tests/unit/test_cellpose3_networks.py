"""Segmenting and restoring with shipped weights, tiles, material and recipes of Cellpose3."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from emlab import weights
from emlab.data.cells import simulated_cells
from emlab.errors import InputError
from emlab.methods.cellpose3 import (
    DIAMETER,
    SEGMENTER,
    Config,
    load_restorer,
    load_segmenter,
    resize,
    restore,
    segment,
)
from emlab.metrics.segmentation import average_precision, mean_diameter
from emlab.models.residual_unet import ResidualUNet
from emlab.recipes import recipes
from emlab.recipes.cellpose3 import (
    Augmentation,
    Material,
    at_working_size,
    drawing_order,
    spoilt,
    training_windows,
)
from emlab.settings import PROFILES, read_profile, read_settings
from emlab.solvers.mask_flows import flow_targets
from emlab.solvers.tiling import apply_tiled


@pytest.fixture(scope="module")
def segmenter() -> ResidualUNet:
    return load_segmenter()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EMLAB_CACHE", str(tmp_path))
    return tmp_path


def precision(cell_labels: np.ndarray, found: np.ndarray) -> float:
    return float(average_precision(cell_labels, found, (0.5,)).ap[0])


def test_shipped_segmenter_finds_simulated_nuclei_it_never_saw(segmenter: ResidualUNet) -> None:
    cell = at_working_size(simulated_cells(1, seed=11)[0])
    found = segment(cell.image, segmenter)
    assert found.labels.shape == cell.labels.shape
    assert found.labels.dtype == np.int32
    assert found.flows.shape == (2, *cell.labels.shape)
    assert precision(cell.labels, found.labels) > 0.7


def test_diameter_brings_an_image_to_size_and_the_labels_back(segmenter: ResidualUNet) -> None:
    cell = at_working_size(simulated_cells(1, seed=12)[0], factor=2.0)
    diameter = mean_diameter(cell.labels)
    assert diameter == pytest.approx(2 * DIAMETER, rel=0.05)
    found = segment(cell.image, segmenter, diameter)
    assert found.labels.shape == cell.labels.shape
    assert precision(cell.labels, found.labels) > 0.7


def test_walks_are_as_long_as_large_objects_need(segmenter, monkeypatch):
    labels = np.zeros((16, 40), np.int32)
    labels[3:9, 3:37] = 1
    predicted = np.concatenate([5 * flow_targets(labels), 10.0 * labels[None] - 5])
    outcome = torch.tensor(predicted, dtype=torch.float32)
    monkeypatch.setattr("emlab.methods.cellpose3.apply_tiled", lambda *_: outcome)
    image = np.arange(48 * 120, dtype=np.float32).reshape(48, 120)  # three pixels for one
    found = segment(image, segmenter, 3 * DIAMETER, Config(steps=10, flow_threshold=0)).labels
    assert found.max() == 1
    assert (found[12:24, 15:105] == 1).all()


def test_shipped_restorer_makes_noisy_nuclei_findable(segmenter: ResidualUNet) -> None:
    restorer = load_restorer("cellpose3_denoise")
    cell = at_working_size(simulated_cells(1, seed=13)[0])
    noisy = spoilt([cell], "denoise", 4.0)[0]
    restored = restore(noisy, restorer).image
    assert restored.dtype == np.float32
    assert restored.shape == noisy.shape
    before = precision(cell.labels, segment(noisy, segmenter).labels)
    after = precision(cell.labels, segment(restored, segmenter, rescale_intensity=False).labels)
    assert after > before + 0.3
    assert ((restored - cell.image) ** 2).mean() < 0.5 * ((noisy - cell.image) ** 2).mean()


def test_restoration_does_not_depend_on_the_grey_scale() -> None:
    restorer = load_restorer("cellpose3_denoise")
    image = spoilt(simulated_cells(1, seed=14, side=64), "denoise", 6.0)[0]
    np.testing.assert_allclose(
        restore(300 * image + 40, restorer).image, restore(image, restorer).image, atol=2e-3
    )


def test_tiles_leave_no_seam(segmenter: ResidualUNet) -> None:
    cell = at_working_size(simulated_cells(1, seed=15, side=160)[0])
    whole = segment(cell.image, segmenter)
    tiled = segment(cell.image, segmenter, config=Config(tile=96, overlap=48))
    assert precision(whole.labels, tiled.labels) > 0.95


def test_tiles_of_a_pointwise_network_change_nothing() -> None:
    image = torch.rand(37, 61, generator=torch.Generator().manual_seed(0))
    found = apply_tiled(lambda x: torch.stack([x, 2 * x], 1), image, tile=16, overlap=4)
    torch.testing.assert_close(found, torch.stack([image, 2 * image]), atol=1e-5, rtol=0)
    with pytest.raises(InputError, match="H, W"):
        apply_tiled(lambda x: x[:, None], torch.zeros(0, 4))


@pytest.mark.parametrize(
    "image",
    [np.zeros((20, 20, 3)), np.zeros((4, 40)), np.full((20, 20), np.nan), np.zeros((20, 20), bool)],
)
def test_images_that_cannot_be_segmented_are_refused(
    image: np.ndarray, segmenter: ResidualUNet
) -> None:
    with pytest.raises(InputError):
        segment(image, segmenter)


@pytest.mark.parametrize("diameter", [0.0, -3.0, float("nan"), 5000.0])
def test_impossible_diameters_are_refused(diameter: float, segmenter: ResidualUNet) -> None:
    with pytest.raises(InputError, match="diameter"):
        segment(np.zeros((20, 20)), segmenter, diameter)


def test_a_segmenter_is_no_restorer() -> None:
    with pytest.raises(InputError, match="no Cellpose3 network"):
        load_restorer(SEGMENTER)


def test_empty_image_has_no_objects(segmenter: ResidualUNet) -> None:
    assert not segment(np.zeros((32, 32)), segmenter).labels.any()


def test_resizing_keeps_the_mean_and_undoes_itself_roughly() -> None:
    image = torch.from_numpy(simulated_cells(1, seed=1, side=64)[0].image)
    small = resize(image, (40, 40))
    assert small.mean().item() == pytest.approx(image.mean().item(), rel=0.02)
    assert (resize(small, (64, 64)) - image).abs().mean() < 0.05


def test_windows_hold_flows_of_their_own_labels_and_are_cached(cache: Path) -> None:
    material = Material(windows=4, side=64, simulated=2, validation=1)
    windows = training_windows(material).float()
    assert windows.shape == (4, 4, 64, 64)
    assert len(list(cache.rglob("*.npy"))) == 1
    torch.testing.assert_close(training_windows(material).float(), windows)
    length = windows[:, 1:3].norm(dim=1)
    assert not length[windows[:, 3] == 0].any()
    assert length[windows[:, 3] > 0].median() == pytest.approx(1, abs=1e-3)


def test_turned_windows_hold_the_flows_of_the_turned_labels(cache: Path) -> None:
    y, x = np.mgrid[:64, :64]
    labels = (((y - 20) / 9) ** 2 + ((x - 36) / 14) ** 2 < 1).astype(np.int32)
    window = np.concatenate([labels[None], flow_targets(labels), labels[None]])
    augment = Augmentation(torch.from_numpy(window)[None].float())
    for seed in range(8):
        batch = augment(torch.tensor([0]), torch.Generator().manual_seed(seed))
        inside = batch[0, 4].numpy() > 0.5
        expected = flow_targets(inside.astype(np.int32))[:, inside]
        assert (expected * batch[0, 2:4].numpy()[:, inside]).sum(0).mean() > 0.9


def test_domains_are_drawn_as_asked() -> None:
    material = Material(windows=100, others=10)
    assert drawing_order(material, "nuclei").tolist() == list(range(100))
    assert len(drawing_order(material, "all")) == 130
    balanced = drawing_order(material, "balanced")
    counts = np.histogram(balanced, [0, 100, 110, 120, 130])[0]
    assert counts.tolist() == [100, 100, 100, 100]
    with pytest.raises(InputError, match="domains"):
        drawing_order(material, "some")


def test_every_recipe_has_a_training_in_every_profile() -> None:
    names = set(read_settings("recipes/cellpose3")["recipes"])
    for profile in PROFILES:
        assert set(read_profile("recipes/cellpose3", profile)["training"]) == names


@pytest.mark.parametrize("name", ["cellpose3_segmenter", "cellpose3_start"])
def test_recipe_trains_in_seconds_and_writes_half_precision(
    name: str, cache: Path, tmp_path: Path
) -> None:
    card = recipes()[name](profile="smoke", device="cpu", out=tmp_path, resume=False)
    assert card is not None
    assert card.steps == 4
    assert card.data == "simulated nuclei"
    content = (tmp_path / "files" / f"{name}.safetensors").read_bytes()
    assert b'"F16"' in content
    assert b'"F32"' not in content


def test_networks_of_one_kind_start_alike_and_take_as_many_steps() -> None:
    """Losses are compared between restorers that differ in nothing else."""
    settings = read_settings("recipes/cellpose3")
    table = settings["cpu"]["training"]
    for task in ("denoise", "deblur", "upsample"):
        strong = f"cellpose3_{task}_strong"  # continues where cellpose3_TASK ends
        group = [name for name in table if name.startswith(f"cellpose3_{task}") and name != strong]
        objectives = [settings["recipes"][name]["objective"] for name in group]
        assert len({table[name]["steps"] for name in group} - {200}) == 1  # 200: its limits say so
        assert {o["initial"] for o in objectives} == {"cellpose3_start"}


def test_shipped_networks_together_take_little_room() -> None:
    sizes = [weights.path(n).stat().st_size for n in weights.names() if n.startswith("cellpose3_")]
    assert sizes
    assert sum(sizes) <= 14e6
