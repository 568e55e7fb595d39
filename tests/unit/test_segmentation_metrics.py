"""Average precision and diameter on label images that can be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from emlab.errors import InputError
from emlab.metrics.segmentation import (
    THRESHOLDS,
    average_precision,
    intersection_over_union,
    mean_diameter,
)


def squares(shift: int = 0, numbers: tuple[int, ...] = (1, 2, 3)) -> np.ndarray:
    labels = np.zeros((40, 64), np.int32)
    for place, number in enumerate(numbers):
        labels[5:15, 5 + 20 * place + shift : 15 + 20 * place + shift] = number
    return labels


def test_perfect_labels_whatever_their_numbers() -> None:
    found = average_precision(squares(), squares(numbers=(9, 4, 70)))
    assert (found.ap == 1).all()
    assert (found.tp == 3).all()
    assert len(found.ap) == len(THRESHOLDS) == 11


def test_shifted_squares_pass_up_to_their_overlap() -> None:
    found = average_precision(squares(), squares(shift=2), (0.5, 0.65, 0.7))
    # 80 of 120 pixels are shared: 2/3
    assert found.tp.tolist() == [3, 3, 0]
    assert found.fp.tolist() == found.fn.tolist() == [0, 0, 3]


def test_missed_and_invented_objects_are_counted() -> None:
    predicted = squares(numbers=(1, 2, 0))
    predicted[25:35, 5:15] = 8
    found = average_precision(squares(), predicted, (0.5,))
    assert [int(part[0]) for part in found[1:]] == [2, 1, 1]
    assert found.ap[0] == 0.5


def test_assignment_is_one_to_one_and_the_best() -> None:
    truth = np.zeros((10, 30), np.int32)
    truth[:, :10], truth[:, 10:20] = 1, 2
    predicted = np.zeros_like(truth)
    predicted[:, 2:16] = 1  # overlaps both; only one of them can be its partner
    found = average_precision(truth, predicted, (0.25,))
    assert [int(part[0]) for part in found[1:]] == [1, 0, 1]


def test_nothing_in_either_image_has_no_precision() -> None:
    empty = np.zeros((8, 8), int)
    assert np.isnan(average_precision(empty, empty, (0.5,)).ap[0])
    only_false = average_precision(empty, squares()[:8, :8] + 1, (0.5,))
    assert only_false.ap[0] == 0


def test_overlap_matrix() -> None:
    overlap = intersection_over_union(squares(), squares(shift=5))
    np.testing.assert_allclose(overlap, np.eye(3) / 3)


def test_diameter_of_discs() -> None:
    y, x = np.mgrid[:60, :60]
    labels = ((y - 30) ** 2 + (x - 30) ** 2 < 12**2).astype(int)
    assert mean_diameter(labels) == pytest.approx(24, rel=0.02)
    assert mean_diameter(np.zeros((5, 5), int)) == 0


@pytest.mark.parametrize(
    "bad",
    [np.zeros((3, 3)), np.zeros((2, 3, 3), int), -np.ones((3, 3), int), np.zeros((0, 3), int)],
)
def test_bad_labels_are_refused(bad: np.ndarray) -> None:
    with pytest.raises(InputError):
        mean_diameter(bad)


def test_bad_thresholds_and_shapes_are_refused() -> None:
    with pytest.raises(InputError, match="thresholds"):
        average_precision(squares(), squares(), (0.0,))
    with pytest.raises(InputError, match="one shape"):
        average_precision(squares(), squares()[:-1], (0.5,))
