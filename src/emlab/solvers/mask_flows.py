"""Between instance labels and the flows that a Cellpose network predicts, in both directions."""

from __future__ import annotations

import numpy as np
import scipy
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from emlab.errors import InputError

FLOW_SCALE = 5.0  # a network predicts five times the unit flows
_STEPS_Y = np.array([0, -1, 1, 0, 0, -1, -1, 1, 1])
_STEPS_X = np.array([0, 0, 0, -1, 1, -1, 1, -1, 1])


def flow_targets(labels: NDArray[np.integer]) -> NDArray[np.float32]:
    """Unit vectors that lead every pixel of an object to its middle (Cellpose, 2021, methods).

    Heat enters at the pixel nearest to the centre of mass and spreads by the mean of the nine
    nearest pixels of the same object, for twice as many steps as the object is high and wide; the
    flow is the direction in which it rises.

    Parameters
    ----------
    labels : ndarray
        ``(H, W)``, 0 is background.

    Returns
    -------
    ndarray
        ``(2, H, W)``: y and x part, zero on the background.
    """
    if labels.ndim != 2 or labels.dtype.kind not in "iu":
        raise InputError(
            f"flows need a 2-D label image of integers, got {labels.dtype} {labels.shape}"
        )
    flows = np.zeros((2, *labels.shape), np.float32)
    padded = np.pad(labels, 1)
    y, x = np.nonzero(padded)
    if len(y) == 0:
        return flows
    keys, owner = np.unique(padded[y, x], return_inverse=True)
    middles, steps = _middles(y, x, owner, len(keys))
    place = np.full(padded.shape, len(y))  # one extra place that always stays cold
    place[y, x] = np.arange(len(y))
    near_y, near_x = y + _STEPS_Y[:, None], x + _STEPS_X[:, None]
    near = np.where(padded[near_y, near_x] == padded[y, x], place[near_y, near_x], len(y))
    heat, done = np.zeros(len(y) + 1), 0
    for last in np.unique(steps):
        warming, spreading = middles[steps >= last], np.flatnonzero(steps[owner] >= last)
        around = near[:, spreading]
        for _ in range(last - done):
            heat[warming] += 1
            heat[spreading] = heat[around].sum(0) / 9
        done = last
    direction = np.stack([heat[near[2]] - heat[near[1]], heat[near[4]] - heat[near[3]]])
    length = np.sqrt((direction**2).sum(0))
    flows[:, y - 1, x - 1] = direction / np.where(length > 0, length, 1)
    return flows


def follow_flows(
    flows: Tensor,
    cell_probability: Tensor,
    probability_threshold: float = 0.0,
    flow_threshold: float = 0.4,
    steps: int = 200,
    smallest: int = 15,
) -> NDArray[np.int32]:
    """Labels from the flows and logits that a network predicts.

    Every pixel that is likely cell walks along the flows; pixels that end in one place are one
    object. Objects whose flows are not those of their own shape are dropped.

    Parameters
    ----------
    flows : Tensor
        ``(2, H, W)``, five times the unit vectors; the work is done on its device.
    cell_probability : Tensor
        ``(H, W)`` logits.
    probability_threshold : float
        Logit above which a pixel is a cell.
    flow_threshold : float
        Largest :func:`flow_error` of an object; 0 keeps all.
    steps : int
        Steps of the walk, each at most a pixel or so.
    smallest : int
        Objects of fewer pixels are dropped.
    """
    if flows.ndim != 3 or len(flows) != 2 or flows.shape[1:] != cell_probability.shape:
        raise InputError(
            f"flows (2, H, W) and cell probability (H, W) are needed, got {tuple(flows.shape)} "
            f"and {tuple(cell_probability.shape)}"
        )
    inside = cell_probability > probability_threshold
    if not inside.any():
        return np.zeros(inside.shape, np.int32)
    start = inside.nonzero()
    end = _walk(flows.float() * inside / FLOW_SCALE, start, steps)
    sinks = _sinks(end, inside.shape)
    labels = torch.zeros(inside.shape, dtype=torch.int32, device=flows.device)
    labels[start[:, 0], start[:, 1]] = sinks[end[:, 0], end[:, 1]]
    found = _without_small(labels.cpu().numpy(), smallest, largest=int(0.4 * labels.numel()))
    if flow_threshold > 0 and found.any():
        errors = flow_error(found, flows.float().cpu().numpy())
        found[np.isin(found, 1 + np.flatnonzero(errors > flow_threshold))] = 0
    return _without_small(_filled(found), smallest)


def flow_error(labels: NDArray[np.integer], flows: NDArray[np.floating]) -> NDArray[np.float64]:
    """Mean squared difference, for each label 1..n, of its own flows and those predicted.

    Parameters
    ----------
    labels : ndarray
        ``(H, W)``.
    flows : ndarray
        ``(2, H, W)``, five times the unit vectors.
    """
    difference = flow_targets(labels) - np.asarray(flows, np.float64) / FLOW_SCALE
    number = int(labels.max(initial=0))
    areas = np.bincount(labels.ravel(), minlength=number + 1)
    total = np.bincount(labels.ravel(), (difference**2).sum(0).ravel(), minlength=number + 1)
    return (total / np.maximum(areas, 1))[1:]


def _middles(
    y: NDArray[np.intp], x: NDArray[np.intp], owner: NDArray[np.intp], number: int
) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """Index of the pixel of each object nearest its centre of mass, and its steps of diffusion."""
    areas = np.bincount(owner, minlength=number)
    centre_y = np.bincount(owner, y, minlength=number) / areas
    centre_x = np.bincount(owner, x, minlength=number) / areas
    distance = (y - centre_y[owner]) ** 2 + (x - centre_x[owner]) ** 2
    order = np.lexsort((distance, owner))
    first = order[np.searchsorted(owner[order], np.arange(number))]
    sides = np.zeros(number, np.int64)
    for coordinate in (y, x):
        sides += scipy.ndimage.labeled_comprehension(
            coordinate, owner, np.arange(number), np.ptp, np.int64, 0
        )
    return first, 2 * (sides + 6)


def _walk(unit_flows: Tensor, start: Tensor, steps: int) -> Tensor:
    """Pixels ``(n, 2)`` where walks along bilinearly read flows end, rounded."""
    sides = torch.tensor(unit_flows.shape[1:], device=start.device)
    largest = (sides - 1).float()
    position = start.float()
    fields = unit_flows.flip(0)[None]  # grid_sample counts x before y
    scale = 2 / largest.clamp(min=1)
    for _ in range(steps):
        grid = (position * scale - 1).flip(-1)[None, :, None]
        step = functional.grid_sample(fields, grid, padding_mode="border", align_corners=True)
        position = (position + step[0, :, :, 0].T.flip(-1)).clamp(min=0).minimum(largest)
    return position.round().long()


def _sinks(end: Tensor, shape: torch.Size) -> Tensor:
    """Number the places where walks gather: peaks of their count, grown over what is near."""
    count = torch.zeros(shape, device=end.device)
    ones = torch.ones(len(end), device=end.device)
    count.index_put_((end[:, 0], end[:, 1]), ones, accumulate=True)
    peaks = (count == functional.max_pool2d(count[None], 5, 1, 2)[0]) & (count > 10)
    y, x = peaks.nonzero(as_tuple=True)
    sinks = torch.zeros(shape, device=end.device)
    order = count[y, x].argsort(stable=True)
    sinks[y[order], x[order]] = torch.arange(1.0, len(order) + 1, device=end.device)
    for _ in range(5):
        grown = functional.max_pool2d(sinks[None], 3, 1, 1)[0] * (count > 2)
        sinks = torch.where(sinks > 0, sinks, grown)
    return sinks.int()


def _without_small(
    labels: NDArray[np.int32], smallest: int, largest: float = np.inf
) -> NDArray[np.int32]:
    """Drop objects by their area and number the rest from 1 without gaps."""
    areas = np.bincount(labels.ravel())
    keep = (areas >= smallest) & (areas <= largest)
    keep[0] = False
    return (np.cumsum(keep) * keep).astype(np.int32)[labels]


def _filled(labels: NDArray[np.int32]) -> NDArray[np.int32]:
    """Fill the holes of every object."""
    for number, box in enumerate(scipy.ndimage.find_objects(labels), start=1):
        if box is not None:
            part = labels[box]
            part[scipy.ndimage.binary_fill_holes(part == number) & (part == 0)] = number
    return labels
