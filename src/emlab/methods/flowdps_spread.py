"""How far the truth lies from the prior's answers, at each noise level and frequency.

The guided sampler needs it. For shipped weights it was recorded on views that the network was not
trained on (recorded). For other weights the prior is asked about draws of its own, once: the result
is kept in the user's cache.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from emlab import weights
from emlab.data import cache_folder
from emlab.data.phase_maps import FIELD
from emlab.methods.flowdps_config import phase_scale
from emlab.priors import Prior
from emlab.priors.base import ScaledPrior
from emlab.recorded import kept
from emlab.runtime import atomic_path, make_generator
from emlab.solvers.denoiser_spread import MeasuredSpread, Spread, measure_spread
from emlab.solvers.sampling import sample_prior

LEVELS = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6)  # in units of the prior
DRAWS, STEPS = 16, 10


def spread_of(name: str, prior: Prior, device: torch.device | str = "cpu") -> tuple[Spread, str]:
    """Spread of shipped or other weights by name, in squared radians, and where it is from.

    Parameters
    ----------
    name : str
        A name of `emlab weights list`.
    prior : Prior
        The prior of these weights in radians.
    """
    digest, known = weights.card(name).sha256, kept("03_flowdps", "spread")
    if known["sha256"].get(name) == digest:
        return _spread(np.array(known["rings"][name])), "measured on held-out views"
    file = cache_folder() / "spread" / f"{name}_{digest[:16]}.npy"
    if not file.is_file():
        found = on_own_draws(prior, device)
        with atomic_path(file) as temporary, open(temporary, "wb") as stream:
            np.save(stream, rings_of(found))
    return _spread(np.load(file, allow_pickle=False)), "measured on draws of the prior itself"


def on_own_draws(prior: Prior, device: torch.device | str = "cpu") -> MeasuredSpread:
    """Spread around the answers of a prior in radians, asked about images that it drew itself."""
    scale, generator = phase_scale(), make_generator(0)
    inner = ScaledPrior(prior, 1 / scale.std, -scale.mean / scale.std)
    with torch.no_grad():
        draws = sample_prior(
            inner, (DRAWS, FIELD, FIELD), generator, steps=STEPS, sigma_max=40.0, device=device
        )
    return on_images(prior, scale.to_radians(draws))


def on_images(prior: Prior, images: Tensor) -> MeasuredSpread:
    """Spread around the answers of a prior in radians, asked about images ``(n, H, W)``."""
    std = phase_scale().std
    return measure_spread(prior, images, [std * level for level in LEVELS], make_generator(1))


def rings_of(spread: MeasuredSpread) -> np.ndarray:
    """Its variances ``(levels, rings)``, one for each whole spatial frequency."""
    rings = _rings()
    return np.stack(
        [
            np.bincount(rings.flatten(), level.flatten()) / np.bincount(rings.flatten())
            for level in spread.variances.double().numpy()
        ]
    )


def _spread(rings: np.ndarray) -> MeasuredSpread:
    levels = torch.tensor(LEVELS) * phase_scale().std
    return MeasuredSpread(levels, torch.from_numpy(rings[:, _rings()]).float())


def _rings() -> np.ndarray:
    rows = np.fft.fftfreq(FIELD, 1 / FIELD)
    return np.round(np.hypot(rows[:, None], np.arange(FIELD // 2 + 1))).astype(int)
