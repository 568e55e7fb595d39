"""How much of a sampler's time is its network, and what the published diffusion sampler costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from benchmarks.measuring import Row, in_turn
from emlab.data.metadata import Metadata
from emlab.methods import flowdps, generalist, mtd
from emlab.methods.generalist import TimedPrior
from emlab.physics.operators import gaussian_kernel
from emlab.priors.networks import load_prior
from emlab.runtime import Stopwatch, make_generator

SHARE = ">= 0.9"
PART = 50  # so that the published diffusion sampler takes seconds, not minutes
SIDE = 128
IMAGE = np.random.default_rng(0).normal(120, 25, (SIDE, SIDE)).astype(np.float32)


def network_shares() -> list[Row]:
    """A row a sampler."""
    ours, samples = generalist.load_config("ours"), generalist.load_config("samples")
    samples = replace(samples, samples=1)
    kernel = gaussian_kernel(2.0)
    thick = np.stack([IMAGE[:64, :64]] * 8)

    def run(task: Callable[..., generalist.Found], *arguments: object) -> float:
        found = task(*arguments, make_generator(0), noise_sigma=20.0)
        return found.cost.network_seconds / found.cost.seconds

    shares: dict[str, Callable[[], float]] = {
        "generalist, one evaluation": lambda: run(generalist.denoise, IMAGE, ours),
        "generalist, half-quadratic splitting": lambda: run(generalist.deblur, IMAGE, kernel, ours),
        "generalist, sampling": lambda: run(generalist.denoise, IMAGE, samples),
        "generalist, volume": lambda: run(generalist.isotropic, thick, 4, ours),
        "flowdps, guided": _guided,
        "mtd, expectation-maximisation with a prior": _expectation_maximisation,
    }
    rows = []
    for name, share in shares.items():
        share()  # warms up
        bound = SHARE if name == "generalist, volume" else ""
        rows.append(Row("share", f"time in the network, {name}", share(), bound))
    return rows


def flow_against_diffusion() -> list[Row]:
    """Both as published, on the same image; of the diffusion sampler's steps a part, scaled up."""
    flow, diffusion = (generalist.load_config(name) for name in ("paper", "paper_dps"))
    solver = diffusion.solvers["denoise"]
    shorter = replace(solver, steps=solver.steps // PART)  # type: ignore[type-var, union-attr]
    diffusion = replace(diffusion, solvers={**diffusion.solvers, "denoise": shorter})
    ours = generalist.load_config("ours")
    crop = IMAGE[:64, :64]

    def run(config: generalist.Config) -> Callable[[], object]:
        prior = generalist.load(config.prior)
        return lambda: generalist.denoise(
            crop, config, make_generator(0), noise_sigma=20.0, prior=prior
        )

    taken = in_turn({"diffusion": run(diffusion), "flow": run(flow), "ours": run(ours)}, 1.0)
    full = PART * taken["diffusion"]
    facts = {f"{name}_seconds": value for name, value in (taken | {"diffusion": full}).items()}
    note = f"{solver.steps} steps of DPS, of which 1 in {PART} was run"  # type: ignore[union-attr]
    what = "diffusion sampler / {}, seconds".format
    return [
        Row("flow", what("flow sampler"), full / taken["flow"], "", note, facts),
        Row("flow_ours", what("one evaluation"), full / taken["ours"], ">= 20", note),
    ]


def _guided() -> float:
    config = replace(flowdps.load_config("ours"), samples=2)
    prior, spread, _ = flowdps.load(config)
    window, count = config.window, 2
    flat = np.zeros(count)
    rows = Metadata(
        pixel_size_angstrom=2.63,
        voltage_kv=300.0,
        cs_mm=2.7,
        amplitude_contrast=0.1,
        defocus_u_angstrom=flat + 15000.0,
        defocus_v_angstrom=flat + 15000.0,
        astigmatism_deg=flat,
        phase_shift_deg=flat,
        optics_group=np.ones(count, np.int64),
    )
    counts = np.random.default_rng(0).poisson(140, (count, window, window)).astype(np.float32)
    found = flowdps.retrieve(
        counts, rows, config, make_generator(0), prior=prior, spread=spread, dose_per_angstrom2=20.0
    )
    return found.cost.network_seconds / found.cost.seconds


def _expectation_maximisation() -> float:
    config = mtd.load_config("paper_mnist")
    config = replace(config, em=replace(config.em, iterations=10))
    prior = TimedPrior(load_prior("mtd_mnist_epsilon"))
    field = torch.rand(308, 308, generator=make_generator(0))
    with Stopwatch() as watch:
        mtd.recover(field, config, make_generator(0), prior, sigma=1.0)
    return prior.seconds / watch.seconds
