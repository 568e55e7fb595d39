"""What the chapter runs: how much of it, on which images, every row of its table."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from emlab import chapters
from emlab.bench.study import Column, Study, each
from emlab.bench.tissue import Specimen, crops
from emlab.methods import template_method as method
from emlab.metrics.image import psnr
from emlab.physics.noise import GaussianNoise
from emlab.solvers import classical

SLUG = "99_template_method"
GREY_RANGE = 255.0
COLUMNS = (Column("psnr", "PSNR [dB]", show="{mean:.2f} [{low:.2f}, {high:.2f}]", unit="dB"),)
LABELS = {
    "input": "the noisy image",
    "constant": "one grey level",
    "gaussian": "Gaussian",
    "untrained": "ours, white spectrum",
    "ours": "ours",
}

Grey = NDArray[np.float32]
Case = tuple[Grey, Grey]


def specimens(profile: str, split: str = "test") -> Specimen:
    """Clean images ``(n, H, W)`` in 0..255 of the profile's number and size."""
    table = chapters.settings(SLUG, profile)
    return crops(split, table["images"], table["size"])


def compare(clean: Grey, prior: method.SpectralPrior, sigma: float, seed: int = 0) -> Study:
    """Every row of the table on images ``(n, H, W)`` with noise of so many grey levels."""
    generator = torch.Generator().manual_seed(seed)
    noisy = GaussianNoise(sigma).sample(torch.from_numpy(clean), generator).numpy()
    flat = method.SpectralPrior(prior.mean, np.full_like(prior.power, prior.power.mean()))
    rows = {
        "input": lambda noisy: noisy,
        "constant": lambda noisy: np.full_like(noisy, prior.mean),
        "gaussian": lambda noisy: classical.gaussian(noisy, 1.0),
        "untrained": partial(method.restore, prior=flat, sigma=sigma),
        "ours": partial(method.restore, prior=prior, sigma=sigma),
    }
    seen = {name: each(lambda case, row=row: row(case[1])) for name, row in rows.items()}
    return Study(list(zip(clean, noisy, strict=True)), COLUMNS, LABELS).run(seen, _score)


def _score(cases: list[Case], restored: list[Grey]) -> dict[str, list[float]]:
    pairs = zip(restored, (clean for clean, _ in cases), strict=True)
    return {"psnr": [psnr(*pair, GREY_RANGE) for pair in pairs]}
