"""The processes of a run, and the signals that stop it."""

from __future__ import annotations

import atexit
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Team:
    """This process among those of the run."""

    rank: int
    size: int
    device: torch.device

    def copy_from_first(self, model: nn.Module) -> None:
        """Give every process the weights of the first."""
        if self.size > 1:
            for value in model.state_dict().values():
                dist.broadcast(value, src=0)

    def average(self, tensors: list[Tensor]) -> None:
        """Replace the tensors by their means over the processes, in one exchange."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        flat /= self.size
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))


def join_processes(device: torch.device) -> Team:
    """Join the group that the launcher announced, if any; left when the interpreter exits.

    One group serves every run of the process: leaving and joining again can hang, because the
    processes may meet the addresses of the group before.
    """
    announced = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if announced and device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if announced and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        atexit.register(_leave)
    if dist.is_available() and dist.is_initialized():
        return Team(dist.get_rank(), dist.get_world_size(), device)
    return Team(0, 1, device)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
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
