"""The one training loop: any loss, one process or many, interrupted and resumed without a trace.

Every random number of step *s* on process *r* comes from a generator seeded by (seed, s, r), so a
run that was killed and resumed draws the same batches and the same noise as one that was not.
Checkpoints are safetensors files: nothing is ever unpickled.
"""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from emlab.errors import InputError, IntegrityError
from emlab.runtime import atomic_path

Loss = Callable[[nn.Module, Tensor, torch.Generator], Tensor]
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
        ``"auto"`` (bfloat16 on a GPU that has it, else float32), ``"float32"`` or ``"bfloat16"``.
    evaluate_every, checkpoint_every_seconds : int
        Steps between evaluations (0: only at the end) and seconds between checkpoints.
    seed : int
        Seed of every random number of the run.
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
        if self.steps < 1 or self.batch_size < 1:
            raise InputError("steps and batch_size must be at least 1")
        if not 0 <= self.ema_decay < 1:
            raise InputError(f"ema_decay must lie in [0, 1), got {self.ema_decay}")
        if self.learning_rate <= 0 or self.gradient_clip <= 0:
            raise InputError("learning_rate and gradient_clip must be positive")
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


@dataclass
class TrainingResult:
    """What a run leaves behind.

    Attributes
    ----------
    weights : dict of str to Tensor
        The moving average of the weights, on the CPU.
    history : list of dict
        One entry an evaluation: step, mean training loss since the last, seconds, the metrics.
    seconds : float
        Training time over all sessions of a resumed run.
    """

    weights: dict[str, Tensor]
    history: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0


def train(
    model: nn.Module,
    loss: Loss,
    images: Tensor,
    config: TrainingConfig,
    *,
    device: torch.device | str = "cpu",
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
    evaluate: Evaluate | None = None,
    checkpoint: Path | None = None,
    resume: bool = False,
    progress: bool = True,
) -> TrainingResult:
    """Minimise ``loss(model, batch, generator)`` over batches drawn from `images`.

    Runs under ``torchrun`` or ``accelerate launch`` without change: each process draws its share
    of the batch, gradients are averaged, process 0 evaluates and writes checkpoints.

    Parameters
    ----------
    model : nn.Module
        Trained in place; afterwards it holds the last weights, not their average.
    loss : callable
        Returns a scalar; must draw its random numbers from the generator it is given.
    images : Tensor
        ``(n, ...)``, every batch is a random subset with replacement.
    augment : callable, optional
        Applied to every batch with the same generator.
    evaluate : callable, optional
        Called with the averaged model; returns named numbers for the history.
    checkpoint : Path, optional
        File to write to (atomically) and to resume from.
    resume : bool
        Continue from `checkpoint` if it exists.

    Raises
    ------
    InputError
        No images, or a checkpoint of another configuration.
    IntegrityError
        The checkpoint cannot be read.
    KeyboardInterrupt
        On Ctrl-C or SIGTERM, after a checkpoint was written.
    """
    if len(images) == 0:
        raise InputError("there are no images to train on")
    rank, world = _join_processes()
    if config.batch_size % world:
        raise InputError(f"batch_size {config.batch_size} does not divide over {world} processes")
    device = torch.device(device)
    model.to(device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
    if world > 1:
        for parameter in model.parameters():
            dist.broadcast(parameter.data, src=0)
    state = _State(model, optimizer, config)
    if resume and checkpoint is not None and checkpoint.exists():
        state.load(checkpoint)

    share = config.batch_size // world
    started, last_saved = time.monotonic() - state.seconds, time.monotonic()
    bar = tqdm(
        total=config.steps,
        initial=state.step,
        disable=not progress or rank > 0,
        mininterval=2.0,
        unit="step",
    )
    with torch.random.fork_rng(), _stop_signals() as stop, bar:
        while state.step < config.steps:
            step_seed = _step_seed(config.seed, state.step, rank)
            torch.manual_seed(step_seed)
            generator = torch.Generator().manual_seed(step_seed)
            chosen = torch.randint(len(images), (share,), generator=generator)
            batch = images[chosen]
            if augment is not None:
                batch = augment(batch, generator)
            value = _step(model, loss, batch.to(device), optimizer, generator, config, state.step)
            state.after_step(value)
            state.seconds = time.monotonic() - started
            bar.update()
            bar.set_postfix(loss=f"{value:.4f}", refresh=False)

            last = state.step == config.steps
            due = config.evaluate_every and state.step % config.evaluate_every == 0
            if rank == 0 and (due or last):
                bar.write(state.record(evaluate))
            if rank == 0 and checkpoint is not None:
                if (
                    last
                    or stop()
                    or time.monotonic() - last_saved > config.checkpoint_every_seconds
                ):
                    state.save(checkpoint)
                    last_saved = time.monotonic()
            if stop():
                raise KeyboardInterrupt(f"stopped after step {state.step}")
    return TrainingResult(
        weights={name: value.detach().cpu().clone() for name, value in state.average.items()},
        history=state.history,
        seconds=state.seconds,
    )


def _step(
    model: nn.Module,
    loss: Loss,
    batch: Tensor,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    config: TrainingConfig,
    step: int,
) -> float:
    for group in optimizer.param_groups:
        group["lr"] = config.learning_rate_at(step)
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(batch.device.type, torch.bfloat16, enabled=_use_bfloat16(config, batch)):
        value = loss(model, batch, generator)
    value.backward()
    _average_gradients(model)
    nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip, error_if_nonfinite=True)
    optimizer.step()
    return value.item()


def _use_bfloat16(config: TrainingConfig, batch: Tensor) -> bool:
    if config.precision == "auto":
        return batch.device.type == "cuda" and torch.cuda.is_bf16_supported()
    return config.precision == "bfloat16"


class _State:
    """Everything that a resumed run needs, and nothing else."""

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, config: TrainingConfig
    ) -> None:
        self.model, self.optimizer, self.config = model, optimizer, config
        self.average = {name: value.detach().clone() for name, value in model.state_dict().items()}
        self.step = 0
        self.seconds = 0.0
        self.losses: list[float] = []
        self.history: list[dict[str, float]] = []

    @torch.no_grad()
    def after_step(self, value: float) -> None:
        decay = self.config.ema_decay_at(self.step)
        for name, current in self.model.state_dict().items():
            self.average[name].lerp_(current, 1 - decay)
        self.losses.append(value)
        self.step += 1

    def record(self, evaluate: Evaluate | None) -> str:
        """Evaluate the averaged weights, append to the history and return a line about it."""
        entry = {"step": float(self.step), "loss": sum(self.losses) / len(self.losses)}
        entry["seconds"] = round(self.seconds, 1)
        if evaluate is not None:
            current = {name: v.clone() for name, v in self.model.state_dict().items()}
            self.model.load_state_dict(self.average)
            self.model.eval()
            with torch.no_grad():
                entry.update(evaluate(self.model))
            self.model.load_state_dict(current)
            self.model.train()
        self.losses = []
        self.history.append(entry)
        return "  ".join(f"{name} {value:.5g}" for name, value in entry.items())

    def save(self, path: Path) -> None:
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
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            save_file(
                {name: v.detach().cpu().contiguous().clone() for name, v in tensors.items()},
                temporary,
                metadata={"progress": json.dumps(progress)},
            )

    def load(self, path: Path) -> None:
        try:
            with safe_open(path, framework="pt") as file:
                progress = json.loads(file.metadata()["progress"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, TypeError, KeyError, ValueError) as error:
            raise IntegrityError(
                f"checkpoint {path} cannot be read ({error}); delete it to start again"
            ) from error
        if progress["config"] != asdict(self.config):
            raise InputError(
                f"checkpoint {path} belongs to another configuration; delete it or use that one"
            )
        model = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
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
        self.step, self.seconds = progress["step"], progress["seconds"]
        self.losses, self.history = progress["losses"], progress["history"]


def _step_seed(seed: int, step: int, rank: int) -> int:
    return (seed * 1_000_003 + step) * 1009 + rank


def _join_processes() -> tuple[int, int]:
    """Rank and number of processes, joining the group that the launcher announced."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return 0, 1
    if not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return dist.get_rank(), dist.get_world_size()


def _average_gradients(model: nn.Module) -> None:
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


@contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
    """Turn Ctrl-C and SIGTERM into a question asked between steps (main thread only)."""
    received: list[int] = []
    previous = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, lambda n, _frame: received.append(n))
    except ValueError:  # not the main thread: signals stay as they are
        pass
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
