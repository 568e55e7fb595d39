"""Agreement with cellpose 3.1.1.3 on real labels; see tools/make_cellpose_oracle.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from emlab.data.cells import cells
from emlab.metrics.segmentation import average_precision, intersection_over_union, mean_diameter
from emlab.solvers.mask_flows import flow_error, flow_targets, follow_flows

FIXTURE = Path(__file__).parents[1] / "fixtures" / "cellpose_oracle.npz"

pytestmark = pytest.mark.real_data


@pytest.fixture(scope="module")
def oracle() -> dict[str, np.ndarray]:
    with np.load(FIXTURE) as file:
        return dict(file)


@pytest.fixture(scope="module")
def truth(oracle: dict[str, np.ndarray]) -> dict[int, np.ndarray]:
    images = cells(split="test")
    return {int(number): images[number].labels for number in oracle["images"]}


def noisy_flows(labels: np.ndarray, seed: int) -> np.ndarray:
    """Five times the flows, with the noise that the oracle added to its own."""
    generator = np.random.default_rng(seed)
    count = int((labels > 0).sum())
    generator.choice(count, min(400, count), replace=False)
    flows = flow_targets(labels)
    return (5 * flows + 1.0 * generator.standard_normal(flows.shape)).astype(np.float32)


def test_flow_targets_point_where_those_of_cellpose_do(oracle: dict, truth: dict) -> None:
    for number, labels in truth.items():
        y, x = oracle[f"places_{number}"]
        ours, theirs = flow_targets(labels)[:, y, x], oracle[f"flows_{number}"]
        assert np.abs(ours - theirs).max() < 1e-4


def test_masks_are_those_of_cellpose(oracle: dict, truth: dict) -> None:
    for number, labels in truth.items():
        flows = torch.from_numpy(noisy_flows(labels, number))
        logits = torch.from_numpy(np.where(labels > 0, 4.0, -4.0).astype(np.float32))
        found = follow_flows(flows, logits)
        assert abs(int(found.max()) - int(oracle[f"count_{number}"])) <= 1
        theirs = oracle[f"masks_{number}"].astype(np.int32)
        part = np.ascontiguousarray(found[96:160, 96:160])
        if theirs.any():
            overlap = intersection_over_union(theirs, part).max(1)
            assert np.median(overlap) > 0.95
            assert (overlap > 0.5).mean() > 0.9
        ours = np.sort(np.bincount(found.ravel())[1:])
        assert abs(ours.sum() / oracle[f"areas_{number}"].sum() - 1) < 0.03


def test_precision_is_that_of_cellpose(oracle: dict, truth: dict) -> None:
    for number, labels in truth.items():
        moved = np.roll(labels, (1, 2), axis=(0, 1)) * (labels % 5 != 0)
        ours = average_precision(labels, moved, oracle["thresholds"])
        np.testing.assert_allclose(np.stack(ours), oracle[f"precision_{number}"], atol=1e-6)


def test_flow_errors_and_diameters_are_those_of_cellpose(oracle: dict, truth: dict) -> None:
    for number, labels in truth.items():
        errors = flow_error(labels, noisy_flows(labels, number))
        np.testing.assert_allclose(errors, oracle[f"errors_{number}"], rtol=1e-3, atol=1e-4)
        assert mean_diameter(labels) == pytest.approx(float(oracle[f"diameter_{number}"]), rel=1e-5)
