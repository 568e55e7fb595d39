r"""What a network is asked to minimise so that it becomes a prior.

Several losses, one answer: each has the score of the (noisy) data as its minimiser.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from emlab.checks import check_fields
from emlab.errors import InputError
from emlab.models import MLP


def implicit_score_matching(model: nn.Module, x: Tensor, _generator: torch.Generator) -> Tensor:
    r"""Score matching without noise, :math:`E[\mathrm{tr}\,\nabla s(x) + \|s(x)\|^2/2]`.

    Integration by parts removes the unknown score from :math:`E\|s - \nabla\log p\|^2/2`
    (Hyvarinen 2005, eq. 4). `x` is ``(n, H, W)`` or ``(n, size)``; the trace is exact, which
    takes an `MLP`.
    """
    if not isinstance(model, MLP):
        raise InputError("implicit score matching needs an MLP, whose divergence is exact")
    score, divergence = model.forward_with_divergence(x.flatten(1))
    return (divergence + score.square().sum(-1) / 2).mean()


@dataclass(frozen=True)
class VPSchedule:
    r"""Variance-preserving diffusion, :math:`dx = -\beta_t x\,dt/2 + \sqrt{\beta_t}\,dw`.

    ``x_t = alpha(t) x_0 + sigma(t) noise`` with ``alpha^2 + sigma^2 = 1`` (Song et al. 2021,
    eq. 33); t in [0, 1].
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 < self.beta_min < self.beta_max:
            raise InputError("the schedule needs 0 < beta_min < beta_max")

    def alpha(self, t: Tensor) -> Tensor:
        """Return what is left of the image at times t."""
        return torch.exp(-0.5 * self._integral(t))

    def sigma(self, t: Tensor) -> Tensor:
        """Return the standard deviation of the noise at times t."""
        return torch.sqrt(-torch.expm1(-self._integral(t)))

    def time_at(self, relative_sigma: Tensor) -> Tensor:
        """The t at which ``sigma(t) / alpha(t)`` equals `relative_sigma` (clipped to [0, 1])."""
        integral = torch.log1p(relative_sigma.square())
        slope = self.beta_max - self.beta_min
        t = (torch.sqrt(self.beta_min**2 + 2 * slope * integral) - self.beta_min) / slope
        return t.clamp(0.0, 1.0)

    def _integral(self, t: Tensor) -> Tensor:
        return self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * t.square()


@dataclass(frozen=True)
class VPDenoisingScoreMatching:
    r"""Denoising score matching along the VP diffusion, :math:`E\|\sigma_t s(x_t, t) + z\|^2`.

    The weight :math:`\sigma_t^2` makes the target of unit variance at every time (Song et al.
    2021, eq. 7). The network returns :math:`\sigma_t s`; t is uniform in [`t_min`, 1].
    """

    schedule: VPSchedule = VPSchedule()
    t_min: float = 1e-3

    def __call__(self, model: nn.Module, x: Tensor, generator: torch.Generator) -> Tensor:
        t = torch.rand(len(x), generator=generator).to(x.device)
        t = self.t_min + (1 - self.t_min) * t
        noise = torch.randn(x.shape, generator=generator).to(x.device)
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        x_t = alpha[:, None, None] * x + sigma[:, None, None] * noise
        return (model(x_t[:, None], t)[:, 0] + noise).square().mean()


@dataclass(frozen=True)
class EpsilonMatching:
    r"""Noise prediction at a log-uniform noise level, with the Gaussian answer built in.

    For data of mean m and standard deviation s the best *linear* prediction of the noise in
    :math:`x = x_0 + \sigma\epsilon` is :math:`\sigma (x - m)/(\sigma^2 + s^2)`. The network F only
    learns what that leaves (Karras et al. 2022, table 1, in terms of the noise):

    .. math:: \hat\epsilon = \frac{\sigma\,c\,(x-m)}{r} - \frac{s}{r}\,F(c\,(x-m), \ln\sigma/4),
              \quad r = \sqrt{\sigma^2+s^2},\; c = 1/r .

    The loss weights :math:`\|\hat\epsilon-\epsilon\|^2` by :math:`r^2/s^2`: F has a target of unit
    variance at every level.
    """

    mean: float
    std: float
    sigma_min: float = 0.02
    sigma_max: float = 10.0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.std <= 0 or not 0 < self.sigma_min < self.sigma_max:
            raise InputError("noise prediction needs std > 0 and 0 < sigma_min < sigma_max")

    def __call__(self, model: nn.Module, x: Tensor, generator: torch.Generator) -> Tensor:
        level = torch.rand(len(x), generator=generator).to(x.device)
        sigma = self.sigma_min * (self.sigma_max / self.sigma_min) ** level
        noise = torch.randn(x.shape, generator=generator).to(x.device)
        predicted = self.predict(model, x + sigma[:, None, None] * noise, sigma)
        weight = (sigma.square() + self.std**2) / self.std**2
        return (weight[:, None, None] * (predicted - noise).square()).mean()

    def predict(self, model: nn.Module, x: Tensor, sigma: Tensor) -> Tensor:
        """Predicted noise ``(n, H, W)`` in images ``(n, H, W)`` of noise levels ``(n,)``."""
        radius = torch.sqrt(sigma.square() + self.std**2)[:, None, None]
        scaled = (x - self.mean) / radius
        output = model(scaled[:, None], sigma.log() / 4)[:, 0]
        return (sigma[:, None, None] * scaled - self.std * output) / radius


def conditional_flow_matching(model: nn.Module, x: Tensor, generator: torch.Generator) -> Tensor:
    r"""Regress the straight path's velocity, :math:`E\|v(x_t, t) - (x_1 - x_0)\|^2`.

    t = 0 is noise, t = 1 data, :math:`x_t = (1-t) x_0 + t x_1` (Lipman et al. 2023, eq. 23 with
    zero end width). `x` is ``(n, ...)``; the model takes ``(x_t, t)``.
    """
    t = torch.rand(len(x), generator=generator).to(x.device)
    noise = torch.randn(x.shape, generator=generator).to(x.device)
    weight = t.reshape(-1, *[1] * (x.ndim - 1))
    return (model((1 - weight) * noise + weight * x, t) - (x - noise)).square().mean()


@dataclass(frozen=True)
class FlowMatching:
    r"""Conditional flow matching with the Gaussian answer built into the network.

    For data of mean m and standard deviation s the best *linear* prediction of the velocity at
    :math:`x_t = (1-t)\,x_0 + t\,x_1` is
    :math:`m + (t s^2 - (1-t))(x_t - t m)/r^2` with :math:`r^2 = t^2 s^2 + (1-t)^2`. The network F
    only learns what that leaves, a target of unit variance at every time:

    .. math:: v(x_t, t) = m + \frac{t s^2 - (1-t)}{r}\,u + \frac{s}{r}\,F(u, t),
              \quad u = \frac{x_t - t m}{r} .

    The loss is that of `conditional_flow_matching`.
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.std <= 0:
            raise InputError(f"flow matching needs std > 0, got {self.std}")

    def __call__(self, model: nn.Module, x: Tensor, generator: torch.Generator) -> Tensor:
        t = torch.rand(len(x), generator=generator).to(x.device)
        noise = torch.randn(x.shape, generator=generator).to(x.device)
        time = t[:, None, None]
        velocity = self.velocity(model, (1 - time) * noise + time * x, t)
        return (velocity - (x - noise)).square().mean()

    def velocity(self, model: nn.Module, x: Tensor, t: Tensor) -> Tensor:
        """Velocity ``(n, H, W)`` at points ``(n, H, W)`` of the path at times ``(n,)``."""
        time = t[:, None, None]
        radius = torch.sqrt((time * self.std).square() + (1 - time).square())
        scaled = (x - time * self.mean) / radius
        learned = model(scaled[:, None], t)[:, 0].float()
        linear = (time * self.std**2 - (1 - time)) * scaled
        return self.mean + (linear + self.std * learned) / radius
