"""How long and how fast to train, what a run has come to, and the checkpoint that keeps it."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from torch import nn

from emlab.checks import check_fields
from emlab.errors import InputError, IntegrityError
from emlab.runtime import atomic_path

Evaluate = Callable[[nn.Module], dict[str, float]]


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
    batch_size: int = 64  #: images a step, over all processes together
    learning_rate: float = 1e-3  #: peak of the schedule, which ends with a cosine down to zero
    warmup_steps: int = 100  #: steps of its linear beginning
    #: decay of the exponential moving average of the weights, in [0, 1); the average starts short
    #: (1/10 of the steps taken so far) so that early evaluations mean something
    ema_decay: float = 0.999
    gradient_clip: float = 1.0  #: largest 2-norm of the gradient
    #: "float32", "bfloat16" or "auto": bfloat16 where the device multiplies it faster than float32
    precision: str = "auto"
    evaluate_every: int = 0  #: steps; 0 is only at the end
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


class State:
    """Everything that a resumed run needs, and nothing else."""

    def __init__(self, model: nn.Module, config: TrainingConfig) -> None:
        self.model, self.config = model, config
        self.optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
        self.average = {name: value.detach().clone() for name, value in model.state_dict().items()}
        self.step = 0
        self.seconds = 0.0
        self.losses: list[float] = []
        self.history: list[dict[str, float]] = []

    @torch.no_grad()
    def after_step(self, value: float) -> None:
        """Move the average towards the model and note the loss."""
        decay = self.config.ema_decay_at(self.step)
        for name, current in self.model.state_dict().items():
            if current.is_floating_point():
                self.average[name].lerp_(current, 1 - decay)
            else:
                self.average[name].copy_(current)
        self.losses.append(value)
        self.step += 1

    def record(self, evaluate: Evaluate | None) -> str:
        """Evaluate the averaged weights, append to the history and return a line about it."""
        entry = {"step": float(self.step), "loss": sum(self.losses) / len(self.losses)}
        entry["seconds"] = round(self.seconds, 1)
        if evaluate is not None:
            averaged = copy.deepcopy(self.model).eval()
            averaged.load_state_dict(self.average)
            with torch.no_grad():
                entry.update(evaluate(averaged))
        self.losses = []
        self.history.append(entry)
        return "  ".join(f"{name} {value:.5g}" for name, value in entry.items())

    def save(self, path: Path) -> None:
        """Write everything to a safetensors file."""
        tensors = {f"model.{name}": v for name, v in self.model.state_dict().items()}
        tensors |= {f"average.{name}": v for name, v in self.average.items()}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"adam.{name}.{key}"] = torch.as_tensor(value)
        progress = {
            "config": asdict(self.config),
            "step": self.step,
            "seconds": self.seconds,
            "losses": self.losses,
            "history": self.history,
        }
        with atomic_path(path) as temporary:
            content = serialise(
                {name: v.detach().cpu().contiguous().clone() for name, v in tensors.items()},
                metadata={"progress": json.dumps(progress)},
            )
            temporary.write_bytes(content)

    def load(self, path: Path) -> None:
        """Read what `save` wrote; an error if it is damaged or of another configuration."""
        try:
            with safe_open(path, framework="pt") as file:
                progress = json.loads(file.metadata()["progress"])
                config, step, seconds, losses, history = (
                    progress[key] for key in ("config", "step", "seconds", "losses", "history")
                )
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, TypeError, KeyError, ValueError) as error:
            raise IntegrityError(
                f"checkpoint {path} cannot be read ({error}); delete it to start again"
            ) from error
        model = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
        shapes = {name: value.shape for name, value in self.average.items()}
        for what, same in (
            ("configuration", config == asdict(self.config)),
            ("network", {name: value.shape for name, value in model.items()} == shapes),
        ):
            if not same:
                raise InputError(
                    f"checkpoint {path} belongs to another {what}; delete it or use that one"
                )
        self.model.load_state_dict(model)
        for name, value in self.average.items():
            value.copy_(tensors[f"average.{name}"])
        for name, parameter in self.model.named_parameters():
            prefix = f"adam.{name}."
            self.optimizer.state[parameter] = {
                key.removeprefix(prefix): value.to(parameter.device if value.ndim else "cpu")
                for key, value in tensors.items()
                if key.startswith(prefix) and "." not in key.removeprefix(prefix)
            }
        self.step, self.seconds = step, seconds
        self.losses, self.history = losses, history
