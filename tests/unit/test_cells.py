"""Images of cells: splits that do not meet, grey scale, numbering, simulated nuclei."""

from __future__ import annotations

import numpy as np
import pytest

from emlab.data.cells import DOMAINS, cells, normalised, simulated_cells
from emlab.errors import InputError


def test_simulated_nuclei_repeat_and_are_what_they_say() -> None:
    first, again = simulated_cells(2, seed=3), simulated_cells(2, seed=3)
    other = simulated_cells(1, seed=4)[0]
    for cell, same in zip(first, again, strict=True):
        np.testing.assert_array_equal(cell.image, same.image)
        assert cell.domain == "simulated"
        assert cell.image.dtype == np.float32
        assert cell.image.min() == 0
        assert np.percentile(cell.image, 99) == pytest.approx(1, abs=1e-3)
        assert 10 < cell.labels.max() < 80
        assert set(np.unique(cell.labels)) == set(range(cell.labels.max() + 1))
        assert cell.image[cell.labels > 0].mean() > 3 * cell.image[cell.labels == 0].mean()
    assert not np.array_equal(first[0].image, other.image)


def test_normalisation_of_a_constant_is_zero() -> None:
    assert not normalised(np.full((4, 4), 7, np.uint8)).any()


@pytest.mark.parametrize(("name", "split"), [("mitochondria", "train"), ("dsb2018", "all")])
def test_unknown_domains_and_splits_are_refused(name: str, split: str) -> None:
    with pytest.raises(InputError, match="cells come from"):
        cells(name, split)


def test_other_domains_have_no_validation_images() -> None:
    with pytest.raises(InputError, match="validation"):
        cells("plant", "validation")


def test_simulated_cells_need_room() -> None:
    with pytest.raises(InputError, match="side >= 48"):
        simulated_cells(1, seed=0, side=20)


def test_training_and_validation_share_no_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(name: str) -> dict[str, np.ndarray]:
        count = {"nuclei_train": 433, "nuclei_test": 52}[name]
        images = np.random.default_rng(count).integers(0, 255, (count, 6, 6), np.uint8)
        labels = np.tile(np.arange(6) // 3, (count, 6, 1))
        names = np.array([f"{name}_{k}" for k in range(count)])
        return {"images": images, "labels": labels, "identifiers": names}

    monkeypatch.setattr("emlab.data.cells.load", fake)
    train, validation, test = (
        {cell.name for cell in cells(split=split)} for split in ("train", "validation", "test")
    )
    assert [len(train), len(validation), len(test)] == [385, 48, 52]
    assert not train & validation
    assert len(train | validation | test) == 433 + 52


@pytest.mark.real_data
def test_real_nuclei_of_the_test_set() -> None:
    found = cells(split="test")
    assert len(found) == 52
    assert sum(int(cell.labels.max()) for cell in found) == 2517


@pytest.mark.real_data
@pytest.mark.parametrize("name", DOMAINS[1:])
def test_halves_of_other_domains_do_not_meet(name: str) -> None:
    for left, right in zip(cells(name, "train"), cells(name, "test"), strict=True):
        assert left.name == right.name
        assert left.domain == name
        assert left.image.shape[0] == right.image.shape[0]
        together = left.image.shape[1] + right.image.shape[1]
        assert left.image.shape[1] / 0.6 == pytest.approx(together / 0.95, rel=0.03)
        for cell in (left, right):
            assert cell.labels.max() == len(np.unique(cell.labels[cell.labels > 0]))
