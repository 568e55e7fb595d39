"""Flow targets, following flows and quality control on shapes whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from emlab.data.cells import simulated_cells
from emlab.errors import InputError
from emlab.metrics.segmentation import average_precision
from emlab.solvers.mask_flows import FLOW_SCALE, flow_error, flow_targets, follow_flows


def disc(side: int = 31, radius: float = 11.0) -> np.ndarray:
    y, x = np.mgrid[:side, :side] - side // 2
    return (np.hypot(y, x) < radius).astype(np.int32)


def predicted(labels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    logits = np.where(labels > 0, 5.0, -5.0).astype(np.float32)
    return torch.from_numpy(FLOW_SCALE * flow_targets(labels)), torch.from_numpy(logits)


def test_flows_of_a_disc_point_to_its_middle() -> None:
    labels = disc()
    flows = flow_targets(labels)
    y, x = np.nonzero(labels)
    towards = np.stack([15.0 - y, 15.0 - x])
    distance = np.hypot(*towards)
    far = distance > 2
    along = (flows[:, y, x] * towards).sum(0)[far] / distance[far]
    assert along.min() > 0.95
    assert np.abs(flows[:, labels == 0]).max() == 0
    np.testing.assert_allclose(np.hypot(*flows[:, y, x])[far], 1, rtol=1e-5)


def test_flows_do_not_leak_between_objects_that_touch() -> None:
    labels = np.zeros((20, 40), np.int32)
    labels[3:17, 4:20], labels[3:17, 20:36] = 1, 2
    alone = np.where(labels == 1, 1, 0)
    both = flow_targets(labels)
    np.testing.assert_array_equal(both[:, labels == 1], flow_targets(alone)[:, labels == 1])
    assert (both[1][8:12, 17:20] < 0).all()
    assert (both[1][8:12, 20:23] > 0).all()


def test_flows_of_one_pixel_and_of_none_are_zero() -> None:
    one = np.zeros((5, 5), np.int32)
    one[2, 2] = 4
    assert not flow_targets(one).any()
    assert not flow_targets(np.zeros((4, 6), np.int32)).any()


def test_flows_need_integer_labels() -> None:
    with pytest.raises(InputError, match="integers"):
        flow_targets(np.zeros((4, 4)))


def test_labels_come_back_from_their_flows() -> None:
    for cell in simulated_cells(2, seed=5, side=96):
        found = follow_flows(*predicted(cell.labels))
        scores = average_precision(cell.labels, found, (0.5, 0.9))
        assert scores.ap[0] == 1
        assert scores.ap[1] > 0.9


def test_following_ignores_improbable_pixels() -> None:
    flows, logits = predicted(disc())
    assert follow_flows(flows, logits, probability_threshold=6.0).max() == 0
    assert follow_flows(flows, torch.full_like(logits, -1.0)).max() == 0


def test_quality_control_drops_an_object_with_wrong_flows() -> None:
    labels = np.zeros((40, 80), np.int32)
    labels[5:35, 5:35], labels[5:35, 45:75] = disc(30), 2 * disc(30)
    flows, logits = predicted(labels)
    wrong = flows.clone()
    wrong[:, :, 40:] *= 0.2  # still lead to the middle, but are not unit vectors
    kept = follow_flows(wrong, logits, flow_threshold=0.4)
    assert kept[20, 20] == 1
    assert not kept[:, 40:].any()
    assert follow_flows(wrong, logits, flow_threshold=0).max() == 2


def test_flow_error_is_the_mean_squared_difference() -> None:
    labels = disc()
    flows = FLOW_SCALE * flow_targets(labels)
    assert flow_error(labels, flows) == pytest.approx([0.0], abs=1e-6)
    expected = (flow_targets(labels)[:, labels > 0] ** 2).sum(0).mean()
    assert flow_error(labels, 0 * flows) == pytest.approx([expected])


def test_small_objects_go_and_holes_are_filled() -> None:
    labels = np.zeros((40, 40), np.int32)
    labels[2:5, 2:5], labels[12:34, 12:34] = 1, 2
    flows, logits = predicted(labels)
    logits[20, 16] = -5.0
    found = follow_flows(flows, logits)
    assert found.max() == 1
    assert found[12:34, 12:34].all()


def test_shapes_must_fit() -> None:
    flows, logits = predicted(disc())
    with pytest.raises(InputError, match="cell probability"):
        follow_flows(flows, logits[:-1])
