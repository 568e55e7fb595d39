"""The training loop."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from emlab.errors import EmlabError, InputError
from emlab.runtime import has_fast_bfloat16
from emlab.training.processes import Team, join_processes, stop_signals
from emlab.training.state import Evaluate, State, TrainingConfig

Loss = Callable[[nn.Module, Tensor, torch.Generator], Tensor]


@dataclass
class TrainingResult:
    """What a run leaves behind.

    Attributes
    ----------
    weights : dict of str to Tensor
        The moving average of the weights, on the CPU.
    history : list of dict
        One entry an evaluation: step, mean training loss since the last, seconds, the metrics.
        Empty on processes other than the first.
    seconds : float
        Training time over all sessions of a resumed run.
    rank : int
        The process that holds this result; 0 is the one that writes files.
    precision : str
        What the network computed in, ``"float32"`` or ``"bfloat16"``.
    """

    weights: dict[str, Tensor]  #: the moving average, on the CPU
    history: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0  #: over all sessions of a resumed run
    rank: int = 0  #: the process that holds this result; 0 is the one that writes files
    precision: str = "float32"  #: what the network computed in, or "bfloat16"


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

    Runs under ``torchrun`` without change: each process draws its share
    of the batch, gradients are averaged, process 0 evaluates and writes checkpoints, all of them
    stop after the same step. Resuming bit for bit needs the same number of processes.

    Parameters
    ----------
    model : nn.Module
        Trained in place; afterwards it holds the last weights, not their average.
    loss : callable
        Returns a scalar; must draw its random numbers from the generator it is given. If it has a
        method ``begin_step(step, steps, model)``, that is called before each step: for losses that
        change over the training, or that look at the network now and then.
    images : Tensor
        ``(n, ...)``, every batch is a random subset with replacement.
    augment : callable, optional
        Applied to every batch with the same generator.
    evaluate : callable, optional
        Called with a copy of the model that holds the averaged weights; returns named numbers for
        the history.
    checkpoint : Path, optional
        File to write to (atomically) and to resume from.

    Raises
    ------
    InputError
        No images, or a checkpoint of another configuration or network.
    IntegrityError
        The checkpoint cannot be read.
    EmlabError
        The loss or its gradient is no longer finite; the last checkpoint is still good.
    KeyboardInterrupt
        On Ctrl-C or SIGTERM, after a checkpoint was written.
    """
    if len(images) == 0:
        raise InputError("there are no images to train on")
    team = join_processes(torch.device(device))
    if config.batch_size % team.size:
        raise InputError(
            f"batch_size {config.batch_size} does not divide over {team.size} processes"
        )
    precision = _precision(config, team.device)
    model.to(team.device).train()
    team.copy_from_first(model)
    state = State(model, config)
    if resume and checkpoint is not None and checkpoint.exists():
        state.load(checkpoint)
    started, last_saved = time.monotonic() - state.seconds, time.monotonic()
    bar = tqdm(
        total=config.steps,
        initial=state.step,
        disable=not progress or team.rank > 0,
        mininterval=2.0,
        unit="step",
    )
    with torch.random.fork_rng(), stop_signals() as stop_asked, bar:
        while state.step < config.steps:
            step_seed = _step_seed(config.seed, state.step, team.rank)
            if team.device.type == "cpu":  # manual_seed keeps a stack trace for all other kinds
                torch.default_generator.manual_seed(step_seed)
            else:
                torch.manual_seed(step_seed)
            generator = torch.Generator().manual_seed(step_seed)
            share = config.batch_size // team.size
            batch = images[torch.randint(len(images), (share,), generator=generator)]
            if augment is not None:
                batch = augment(batch, generator)
            begin_step = getattr(loss, "begin_step", None)
            if begin_step is not None:
                begin_step(state.step, config.steps, state.model)
            value, stop = _step(
                state, loss, batch.to(team.device), generator, team, stop_asked, precision
            )
            state.after_step(value)
            state.seconds = time.monotonic() - started
            bar.update()
            bar.set_postfix(loss=f"{value:.4f}", refresh=False)

            last = state.step == config.steps
            due = config.evaluate_every and state.step % config.evaluate_every == 0
            if team.rank == 0 and (due or last):
                line = state.record(evaluate)
                if progress:
                    bar.write(line)
            overdue = time.monotonic() - last_saved > config.checkpoint_every_seconds
            if team.rank == 0 and checkpoint is not None and (last or stop or overdue):
                state.save(checkpoint)
                last_saved = time.monotonic()
            if stop:
                raise KeyboardInterrupt(f"stopped after step {state.step}")
    return TrainingResult(
        weights={name: value.detach().cpu().clone() for name, value in state.average.items()},
        history=state.history if team.rank == 0 else [],
        seconds=state.seconds,
        rank=team.rank,
        precision=precision,
    )


def _step(
    state: State,
    loss: Loss,
    batch: Tensor,
    generator: torch.Generator,
    team: Team,
    stop_asked: Callable[[], bool],
    precision: str,
) -> tuple[float, bool]:
    """One optimiser step: the loss, and whether any process was asked to stop."""
    model, optimizer, config = state.model, state.optimizer, state.config
    for group in optimizer.param_groups:
        group["lr"] = config.learning_rate_at(state.step)
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(batch.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        value = loss(model, batch, generator)
    value.backward()
    shared = torch.stack([value.detach().float(), torch.full_like(value, stop_asked()).float()])
    team.average([*(p.grad for p in model.parameters() if p.grad is not None), shared])
    mean_loss, stop = shared.tolist()
    norm = nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip)
    if not (math.isfinite(mean_loss) and torch.isfinite(norm)):
        raise EmlabError(
            f"training diverged at step {state.step}: loss {mean_loss:g}, gradient norm {norm:g}; "
            f"check that the images are finite, or use a learning_rate below "
            f"{config.learning_rate:g} or more warmup_steps"
        )
    optimizer.step()
    return mean_loss, stop > 0


def _precision(config: TrainingConfig, device: torch.device) -> str:
    fast = has_fast_bfloat16(device)
    if config.precision == "bfloat16" and not fast:
        warnings.warn(
            f"bfloat16 is slow on this {device.type}: without AVX512-BF16 a step took 20 times as "
            f'long as in float32; precision = "auto" chooses what is fast',
            stacklevel=3,
        )
    return config.precision if config.precision != "auto" else "bfloat16" if fast else "float32"


def _step_seed(seed: int, step: int, rank: int) -> int:
    return (seed * 1_000_003 + step) * 1009 + rank
