"""Whether another layout, type or compiler is faster for the shipped networks, and how far off."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measuring import Row, in_turn
from emlab.priors.networks import load_prior
from emlab.runtime import has_fast_bfloat16, make_generator

NETWORKS = {"generalist_depth": 128, "tsm_tsm": 256}  # name: side of its tiles
BATCH = 4


def variants(seconds: float = 3.0) -> list[Row]:
    """Seconds of the network as it is over those of each variant; above 1 the variant is faster."""
    rows = []
    for name, side in NETWORKS.items():
        x = torch.randn(BATCH, side, side, generator=make_generator(0))
        plain, halved, last = (load_prior(name, half=half) for half in (False, True, False))
        shipped = next(p for p in last.network.parameters() if p.dim() == 4)
        used = {
            "bfloat16": has_fast_bfloat16("cpu"),
            "last": shipped.is_contiguous(memory_format=torch.channels_last),
        }
        plain.network.to(memory_format=torch.contiguous_format)
        last.network.to(memory_format=torch.channels_last)

        priors = {"plain": plain, "bfloat16": halved, "last": last}
        tasks = {key: partial(prior.denoise, x, 0.3) for key, prior in priors.items()}
        with torch.inference_mode():
            expected = tasks["plain"]()
            taken = in_turn(tasks, seconds)
            far = {
                key: float((task() - expected).abs().max() / expected.abs().max())
                for key, task in tasks.items()
            }
        for key, label in (("bfloat16", "bfloat16"), ("last", "channels last")):
            note = f"{'used' if used[key] else 'not used'} on this processor"
            note += f"; largest difference {far[key]:.1e} of the largest value"
            what = f"{name}, plain / {label}, seconds"
            rows.append(Row(f"{name}_{key}", what, taken["plain"] / taken[key], "", note))
    what = "on a graphics card: compiled, half precision, channels last"
    return [*rows, Row("card", what, None, "", "not measured: no card")]


def throughput(seconds: float = 3.0) -> list[Row]:
    """Tiles through the networks as they are used here: floating-point operations, and a second."""
    rows = []
    for name, side in NETWORKS.items():
        x = torch.randn(BATCH, side, side, generator=make_generator(0))
        plain = load_prior(name)
        prior = load_prior(name, half=has_fast_bfloat16("cpu"))
        with torch.inference_mode():
            with FlopCounterMode(display=False) as counter:
                plain.denoise(x, 0.3)
            flops = float(counter.get_total_flops())
            square = torch.randn(1024, 1024)
            tasks: dict[str, Callable[[], Tensor]] = {
                "network": partial(prior.denoise, x, 0.3),
                "product": partial(torch.matmul, square, square),
            }
            taken = in_turn(tasks, seconds)
        rate = flops / taken["network"]
        facts = {
            "operations_per_pixel": flops / x.numel(),
            "operations_per_second": rate,
            "megapixels_per_second": x.numel() / taken["network"] / 1e6,
        }
        ratio = rate / (2 * 1024**3 / taken["product"])
        what = f"{name}, operations a second / those of a float32 matrix product"
        rows.append(Row(f"{name}_rate", what, ratio, "", f"tiles of {side}, one thread", facts))
    return rows
