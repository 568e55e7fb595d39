"""Trained networks behind the one interface `Prior`."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from emlab import weights
from emlab.errors import InputError
from emlab.models import MLP, DepthUNet, load, untrained
from emlab.priors.base import FromDenoiser
from emlab.priors.depth import DepthMatching, DepthPrior, levels
from emlab.priors.objectives import EpsilonMatching, FlowMatching, VPSchedule
from emlab.priors.score_matching import ScoreMatching


class EpsilonPrior:
    """A network that predicts the noise at any level (`EpsilonMatching`)."""

    def __init__(self, network: nn.Module, objective: EpsilonMatching) -> None:
        self.network = network.eval().requires_grad_(False)
        self.objective = objective

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Posterior mean; see `Prior.denoise`. Levels outside the trained range are clipped."""
        flat, level, predicted = self._predicted(x, sigma)
        return (flat - level * predicted).reshape(x.shape)

    def score(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Gradient of the log density of the noisy images."""
        _, level, predicted = self._predicted(x, sigma)
        return (-predicted / level).reshape(x.shape)

    def _predicted(self, x: Tensor, sigma: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        flat, level = _flatten(x, sigma)
        level = level.clamp(self.objective.sigma_min, self.objective.sigma_max)
        return flat, level[:, None, None], self.objective.predict(self.network, flat, level)


class VPPrior(FromDenoiser):
    """A variance-preserving diffusion network (`VPDenoisingScoreMatching`), re-scaled.

    Noise of standard deviation ``sigma`` on an image is the diffusion at the time where
    ``sigma(t)/alpha(t) = sigma``, seen through a lens of magnification ``1/alpha(t)``.
    """

    def __init__(self, network: nn.Module, schedule: VPSchedule) -> None:
        self.network = network.eval().requires_grad_(False)
        self.schedule = schedule

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Posterior mean; see `Prior.denoise`."""
        flat, level = _flatten(x, sigma)
        t = self.schedule.time_at(level)
        alpha, noise = self.schedule.alpha(t), self.schedule.sigma(t)
        scaled_score = self.network((alpha[:, None, None] * flat)[:, None], t)[:, 0]
        step = (noise / alpha)[:, None, None]
        return (flat + step * scaled_score).reshape(x.shape)


class FlowPrior(FromDenoiser):
    r"""A velocity network trained by `FlowMatching`, or by `conditional_flow_matching`.

    Noise of standard deviation ``sigma`` on an image is the straight path at the time
    :math:`t = 1/(1+\sigma)`, seen through a lens of magnification :math:`1/t`: with
    :math:`x_t = t\,x = t\,x_1 + (1-t)\,x_0` and :math:`v = E[x_1 - x_0 \mid x_t]` the posterior
    mean is :math:`E[x_1 \mid x_t] = x_t + (1-t)\,v`.

    Parameters
    ----------
    network : nn.Module
        Takes ``(n, 1, H, W)`` and times ``(n,)``.
    objective : FlowMatching, optional
        What surrounds the network; without it the network returns the velocity itself.
    half : bool
        Evaluate the network's convolutions in bfloat16: about half the time where the processor
        has such instructions (`emlab.runtime.has_fast_bfloat16`).
    """

    def __init__(
        self, network: nn.Module, objective: FlowMatching | None = None, half: bool = False
    ) -> None:
        self.network = network.eval().requires_grad_(False)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.objective = objective
        self.half = half

    def velocity(self, x: Tensor, t: float | Tensor) -> Tensor:
        """Velocity at points ``(..., H, W)`` of the straight path at times t in [0, 1]."""
        time = torch.as_tensor(t, dtype=x.dtype, device=x.device)
        flat = x.reshape(-1, *x.shape[-2:])
        time = time.expand(x.shape[:-2]).reshape(-1)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.half):
            if self.objective is None:
                velocity = self.network(flat[:, None], time)[:, 0].to(x.dtype)
            else:
                velocity = self.objective.velocity(self.network, flat, time)
        return velocity.reshape(x.shape)

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Posterior mean; see `Prior.denoise`."""
        flat, level = _flatten(x, sigma)
        t = 1 / (1 + level)
        on_path = t[:, None, None] * flat
        velocity = self.velocity(on_path, t)
        return (on_path + (1 - t)[:, None, None] * velocity).reshape(x.shape)


class MLPScore:
    """The score of clean images, learned by implicit score matching: no noise level at all."""

    def __init__(self, network: MLP) -> None:
        self.network = network.eval().requires_grad_(False)

    def score(self, x: Tensor, _sigma: float | Tensor = 0.0) -> Tensor:
        """Score of clean images ``(..., H, W)``; the noise level is not used."""
        return self.network(x.reshape(-1, self.network.size)).reshape(x.shape)

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """One Tweedie step with the score of clean images: good for small noise only."""
        level = torch.as_tensor(sigma, dtype=x.dtype, device=x.device)
        return x + level.square()[..., None, None] * self.score(x)


class ScorePrior(FromDenoiser):
    """A network trained by `ScoreMatching`, as a prior; see `emlab.priors.base.Prior`.

    Parameters
    ----------
    network : nn.Module
        F; takes ``(n, 1, H, W)`` and ``ln v`` as ``(n,)``.
    half : bool
        Evaluate the convolutions in bfloat16.
    """

    def __init__(self, network: nn.Module, objective: ScoreMatching, half: bool = False) -> None:
        self.network = network.eval().requires_grad_(False)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.objective = objective
        self.half = half

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Posterior mean of ``(..., H, W)``.

        The network is asked at levels from 1, the microscope's noise without any other, which is
        just below the lowest it was trained at, to the highest; images of other levels are scaled.
        """
        flat, level = _flatten(x, sigma)
        highest = math.sqrt(1 + self.objective.sigma_start**2)
        trained = level.clamp(1.0, highest)
        scale = (trained / level)[:, None, None]
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.half):
            found = self.objective.denoise(self.network, scale * flat, trained)
        return (found / scale).reshape(x.shape)


NetworkPrior = DepthPrior | EpsilonPrior | VPPrior | FlowPrior | MLPScore | ScorePrior


def load_prior(name: str, device: torch.device | str = "cpu", half: bool = False) -> NetworkPrior:
    """Rebuild a shipped prior from its weights and card.

    Parameters
    ----------
    name : str
        A name of `emlab weights list`.
    half : bool
        Evaluate a flow or a score in bfloat16, see `FlowPrior`; others stay in float32.

    Raises
    ------
    InputError
        Unknown name, or a card whose objective is not a prior.
    IntegrityError
        The weights file does not match its card.
    """
    network, card = load(name, device)
    prior = wrap(network, card.objective)
    if half and isinstance(prior, DepthPrior | FlowPrior | ScorePrior):
        prior.half = True
    return prior


def untrained_prior(name: str, seed: int = 0, device: torch.device | str = "cpu") -> NetworkPrior:
    """The network of a shipped prior before its training: the baseline that it has to beat."""
    card = weights.card(name)
    return wrap(untrained(card.model, seed).to(device), card.objective)


def wrap(network: nn.Module, objective: dict) -> NetworkPrior:
    """Put a network behind the interface that its ``[objective]`` table names.

    Parameters
    ----------
    network : nn.Module
        Put into evaluation mode; its parameters no longer ask for gradients.
    objective : dict
        ``{"kind": "depth" | "epsilon" | "vp" | "flow" | "score_matching" | ``
        ``"implicit_score_matching", ...}``; the other keys are those of `DepthMatching`,
        `EpsilonMatching`, `VPSchedule`, `FlowMatching` or `ScoreMatching`.
    """
    arguments = dict(objective)
    kind = arguments.pop("kind", None)
    try:
        if kind == "depth" and isinstance(network, DepthUNet):
            return DepthPrior(network, DepthMatching(**arguments))
        if kind == "epsilon":
            return EpsilonPrior(network, EpsilonMatching(**arguments))
        if kind == "vp":
            return VPPrior(network, VPSchedule(**arguments))
        if kind == "flow":
            return FlowPrior(network, FlowMatching(**arguments) if arguments else None)
        if kind == "score_matching":
            return ScorePrior(network, ScoreMatching(**arguments))
    except TypeError as error:
        raise InputError(f"objective {kind!r} cannot be read: {error}") from error
    if kind == "implicit_score_matching" and isinstance(network, MLP):
        return MLPScore(network)
    raise InputError(f"objective {kind!r} does not make a prior of a {type(network).__name__}")


def _flatten(x: Tensor, sigma: float | Tensor) -> tuple[Tensor, Tensor]:
    """Images as ``(n, H, W)`` and one noise level for each, ``(n,)``."""
    return x.reshape(-1, *x.shape[-2:]), levels(x, sigma)
