"""Choose which part of a misfit tells another protein best, on validation poses, and write it down.

``python -m tools.tune_misfit`` takes some minutes on one core and needs the data mirror.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import torch

from emlab.data.metadata import Metadata, Particles
from emlab.data.phase_maps import PIXEL_ANGSTROM
from emlab.methods import flowdps
from emlab.methods.flowdps_cases import Cases, make_cases
from emlab.methods.flowdps_observation import misfit
from emlab.methods.flowdps_rows import Answer, Sampling, hurried
from emlab.metrics.sampled import auc
from emlab.physics import Poisson
from emlab.runtime import atomic_path, make_generator
from emlab.weights.toml import dump_toml

TARGET = Path(flowdps.__file__).parent / "profiles" / "flowdps_misfit.toml"
HEAD = """\
# Which part of the misfit tells another protein from the prior's: the length of the best AUC, and
# among equals of the widest gap, on 16 validation poses each of 6BDF, 5A1A and 4V1W, seed 21.
# Above warn_above lie 5 % of the prior's own particles, normalised, gain and offset fitted, the
# envelope unknown, as a user's are; normalised_auc is the AUC for such. By tools/tune_misfit.py.

"""
LENGTHS = (20.0, 25.0, 33.0, 45.0, 60.0)
OWN, STRANGERS = "t20s", ("beta_galactosidase", "apoferritin")
POSES, SEED = 16, 21


def coarse(cases: Cases, answer: Answer, length: float) -> np.ndarray:
    """Misfit ``(n,)`` coarser than a length, mean over samples."""
    assert answer.samples is not None
    instrument = cases.instrument()
    each = [
        misfit(cases.counts, instrument.A(one), Poisson(), PIXEL_ANGSTROM, length)[1]
        for one in torch.from_numpy(answer.samples)
    ]
    return torch.stack(each).mean(0).numpy()


def normalised(cases: Cases) -> Particles:
    """Counts as a user extracts them: mean 0, deviation 1, the protein dark."""
    images = cases.counts.numpy()
    images = (images - images.mean((1, 2), keepdims=True)) / images.std((1, 2), keepdims=True)
    table = {item.name: getattr(cases.optics, item.name) for item in fields(Metadata)}
    table |= {"pixel_size_angstrom": PIXEL_ANGSTROM, "shifts_angstrom": None}
    return Particles(images=images.astype(np.float32), **table)


def main() -> None:
    """Retrieve, compare, write."""
    config, sampling = hurried("ours", 8, 4, 8), Sampling.load(flowdps.load_config("ours"))
    names = (OWN, *STRANGERS)
    cases = {name: make_cases(name, POSES, SEED, split="validation") for name in names}
    answers = {name: sampling.retrieve(cases[name], config, SEED) for name in names}

    def worst(length: float) -> tuple[float, float]:
        own, *others = (coarse(cases[name], answers[name], length) for name in names)
        gaps = [(other.mean() - own.mean()) / np.hypot(other.std(), own.std()) for other in others]
        return min(auc(own, other) for other in others), float(min(gaps))

    scores = {length: worst(length) for length in LENGTHS}
    best = max(LENGTHS, key=lambda length: scores[length])
    print(scores)
    table: dict[str, object] = {"coarser_than_angstrom": best}
    with atomic_path(TARGET) as path:
        path.write_text(HEAD + dump_toml(table), encoding="utf-8")
    low = {
        name: flowdps.retrieve(
            normalised(cases[name]), None, config, make_generator(SEED), prior=sampling.prior,
            spread=sampling.spread, crop=True, contrast="dark",
        ).chi2_low
        for name in names
    }  # fmt: skip
    table["warn_above"] = round(float(np.quantile(low[OWN], 0.95)), 2)
    table["normalised_auc"] = {name: round(auc(low[OWN], low[name]), 3) for name in STRANGERS}
    with atomic_path(TARGET) as path:
        path.write_text(HEAD + dump_toml(table), encoding="utf-8")


if __name__ == "__main__":
    main()
