"""How long and how fast to train."""

from __future__ import annotations

import math
from dataclasses import dataclass

from emlab.checks import check_fields
from emlab.errors import InputError


@dataclass(frozen=True)
class TrainingConfig:
    """How long and how fast to train.

    Attributes
    ----------
    steps, batch_size : int
        Optimiser steps and images per step (over all processes together).
    learning_rate : float
        Peak of the schedule: linear warm-up over `warmup_steps`, then a cosine down to zero.
    ema_decay : float
        Decay of the exponential moving average of the weights, in [0, 1). The average starts
        short (1/10 of the steps taken so far) so that early evaluations mean something.
    gradient_clip : float
        Largest 2-norm of the gradient.
    precision : str
        ``"auto"`` (bfloat16 where the device multiplies it faster than float32), ``"float32"`` or
        ``"bfloat16"``.
    evaluate_every, checkpoint_every_seconds : int
        Steps between evaluations (0: only at the end) and seconds between checkpoints.
    """

    steps: int
    batch_size: int = 64
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    ema_decay: float = 0.999
    gradient_clip: float = 1.0
    precision: str = "auto"
    evaluate_every: int = 0
    checkpoint_every_seconds: int = 180
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.steps < 1 or self.batch_size < 1:
            raise InputError("steps and batch_size must be at least 1")
        if not 0 <= self.ema_decay < 1:
            raise InputError(f"ema_decay must lie in [0, 1), got {self.ema_decay}")
        if self.learning_rate <= 0 or self.gradient_clip <= 0:
            raise InputError("learning_rate and gradient_clip must be positive")
        if min(self.warmup_steps, self.evaluate_every, self.checkpoint_every_seconds) < 0:
            raise InputError(
                "warmup_steps, evaluate_every and checkpoint_every_seconds must not be negative"
            )
        if not 0 <= self.seed < 2**31:
            raise InputError(f"seed must lie in [0, 2**31), got {self.seed}")
        if self.precision not in ("auto", "float32", "bfloat16"):
            raise InputError("precision must be 'auto', 'float32' or 'bfloat16'")

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of step `step` (0-based)."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))

    def ema_decay_at(self, step: int) -> float:
        """Decay of the moving average at step `step` (0-based)."""
        return min(self.ema_decay, (step + 1) / (step + 10))
