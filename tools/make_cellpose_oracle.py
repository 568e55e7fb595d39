"""Numbers of cellpose 3.1.1.3 that the tests compare emlab's with; its environment is its own.

cellpose caps numpy below 2.1, so it cannot live beside emlab. Make the fixture again with:

    python3.11 -m venv /tmp/venv-cellpose
    /tmp/venv-cellpose/bin/pip install torch==2.13.0 "numpy<2.1" cellpose==3.1.1.3
    /tmp/venv-cellpose/bin/python tools/make_cellpose_oracle.py ../shared/data

The fixture holds derived numbers only, no image and no label image of the data set: flows at
places drawn at random, what cellpose's masks are when it follows its own flows after noise was
added to them (as crops of 64 x 64 pixels), average precisions, and the answer of a small network
with random weights to a random image.
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import cv2
import numpy as np
import torch
from cellpose import dynamics, metrics, utils
from cellpose.resnet_torch import CPnet

TARGET = Path(__file__).resolve().parents[1] / "tests" / "fixtures" / "cellpose_oracle.npz"
IMAGES = (0, 7, 19, 33, 46)
PLACES = 400
NOISE = 1.0  # standard deviation added to flows of length 5
THRESHOLDS = [0.5, 0.6, 0.7, 0.8, 0.9]


def main(mirror: Path) -> None:
    """Write the fixture from the label images of the test nuclei."""
    fixture: dict[str, np.ndarray] = {"images": np.array(IMAGES), "thresholds": THRESHOLDS}
    with zipfile.ZipFile(mirror / "cells" / "dsb2018_fluo_test.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.startswith("labels/"))
        for number in IMAGES:
            encoded = np.frombuffer(archive.read(names[number]), np.uint8)
            raw = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED)
            values = _numbers(np.unique(raw, return_inverse=True)[1].reshape(raw.shape), number)
            fixture.update({f"{key}_{number}": value for key, value in values.items()})
    fixture.update(_network())
    np.savez_compressed(TARGET, **fixture)
    print(f"{TARGET}: {TARGET.stat().st_size} bytes")


def _numbers(labels: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    flows = dynamics.masks_to_flows(labels.astype(np.int32))
    y, x = np.nonzero(labels)
    chosen = generator.choice(len(y), min(PLACES, len(y)), replace=False)
    noisy = (5 * flows + NOISE * generator.standard_normal(flows.shape)).astype(np.float32)
    logits = np.where(labels > 0, 4.0, -4.0).astype(np.float32)
    masks = dynamics.resize_and_compute_masks(noisy, logits, min_size=15, flow_threshold=0.4)
    if isinstance(masks, tuple):
        masks = masks[0]
    moved = np.roll(labels, (1, 2), axis=(0, 1)) * (labels % 5 != 0)
    moved = np.unique(moved, return_inverse=True)[1].reshape(moved.shape)  # it counts gaps as masks
    precision = metrics.average_precision(labels, moved, THRESHOLDS)
    errors, _ = metrics.flow_error(labels.astype(np.int32), noisy, torch.device("cpu"))
    return {
        "places": np.stack([y[chosen], x[chosen]]).astype(np.int16),
        "flows": flows[:, y[chosen], x[chosen]].astype(np.float32),
        "masks": masks[96:160, 96:160].astype(np.uint16),
        "count": np.array(int(masks.max())),
        "areas": np.bincount(masks.ravel())[1:].astype(np.int32),
        "precision": np.stack([np.asarray(part, float) for part in precision]),
        "errors": errors.astype(np.float32),
        "diameter": np.array(utils.diameters(labels)[0]),
    }


def _network() -> dict[str, np.ndarray]:
    """A small network with random weights and statistics, and its answer to a random image."""
    torch.manual_seed(0)
    network = CPnet([2, 3, 4], nout=3, sz=3, max_pool=True, diam_mean=17.0).eval()
    for name, value in network.state_dict().items():
        if "running" in name or name.endswith((".0.weight", ".0.bias")):
            value.copy_(torch.rand_like(value) + 0.5)
    image = torch.rand(1, 24, 32)
    with torch.no_grad():
        answer = network(torch.stack([image, torch.zeros_like(image)], dim=1))[0]
    state = {f"net.{name}": value.numpy() for name, value in network.state_dict().items()}
    return {**state, "net_image": image.numpy(), "net_answer": answer.numpy()}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
