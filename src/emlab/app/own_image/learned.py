"""The learned methods of emlab as entrants of a comparison on a reader's own image."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from emlab.app.own_image.asked import Entrant, Grey, Progress, Question, Ready
from emlab.methods import cellpose3, generalist, tsm
from emlab.methods.cellpose3_diameter import estimate_diameter
from emlab.methods.generalist import load_config
from emlab.physics.degradations import normalise

_PIXEL = "give --pixel-size-angstrom: the file does not tell how large its pixels are"


def never(question: Question) -> str:
    """For a method that nothing hinders."""
    return ""


def of(specimens: str, known: str) -> Callable[[Question], str]:
    """For a method that is unsuited to other specimens than these."""

    def unsuited(question: Question) -> str:
        if question.specimen in specimens.split():
            return ""
        return f"{known}, and this counts as {question.specimen}"

    return unsuited


def _sized(question: Question) -> str:
    return "" if question.pixel_size_angstrom else _PIXEL


def _flow(question: Question) -> Ready:
    config, drawing = load_config("ours"), load_config("samples")
    scale = question.grey_scale
    prior = generalist.load(config, question.device)
    noise = question.noise
    told: dict = {"prior": prior, "device": question.device, "scale": scale}
    if question.task == "upsample":
        told["noise_sigma"] = noise.sigma if noise.origin == "given" else 0.0
    elif noise.coloured:
        told["spectrum"] = noise.spectrum
    else:
        told["noise_sigma"] = noise.sigma

    def restore(
        image: Grey, config: generalist.Config, random: torch.Generator, seen: Progress | None
    ) -> generalist.Found:
        common = {**told, "progress": seen}
        if question.kernel is not None:
            return generalist.deblur(image, question.kernel, config, random, **common)
        if question.task == "upsample":
            return generalist.upsample(image, question.factor, config, random, **common)
        return generalist.denoise(image, config, random, coloured=noise.coloured, **common)

    def spread(image: Grey, random: torch.Generator, seen: Progress | None) -> Grey:
        found = restore(image, drawing, random, seen).spread
        assert found is not None
        return found

    key = "denoise_coloured" if noise.coloured else question.task
    kind = type(config.solvers[key]).__name__.removesuffix("Config")
    notes = [f"solver {kind}, tiles of {config.tile} pixels that share {config.overlap}"]
    if question.task == "upsample" and noise.origin != "given":
        notes.append("the image counts as free of noise; give --noise if it is not")
    notes.append(f"spread over {drawing.samples} samples")
    return Ready(lambda y, random, seen: restore(y, config, random, seen).image, spread, notes)


def _score(name: str, question: Question) -> Ready:
    size = question.pixel_size_angstrom
    assert size is not None
    network = tsm.load_denoiser(name, question.device)
    sign = np.float32(-1 if question.inverted else 1)

    def run(image: Grey, random: torch.Generator, seen: Progress | None) -> Grey:
        found = tsm.denoise(sign * image, size, network, device=question.device, progress=seen)
        return sign * found.image

    working = tsm.to_working_size(question.pixels, size)[1]
    notes = ["one step of Tweedie; it estimates white noise by itself"]
    if abs(working / size - 1) > 0.01:
        notes.append(
            f"denoised at {working:.3g} angstrom a pixel: what is finer than {2 * working:.3g} "
            "angstrom is gone"
        )
    if question.noise.coloured:
        notes.append("the noise is coloured, which it does not know")
    return Ready(run, None, notes)


def _cells(question: Question) -> Ready:
    restorer = cellpose3.load_restorer(f"cellpose3_{question.task}", question.device)
    diameter = question.diameter
    notes = [f"objects of {diameter:.3g} pixels (given)"] if diameter else []
    if diameter is None:
        segmenter = cellpose3.load_segmenter(device=question.device)
        diameter = estimate_diameter(question.pixels, segmenter, restorer)
        notes.append(f"objects of {diameter:.3g} pixels (estimated; --diameter says it)")
    whole = diameter * question.factor

    def bare(image: Grey) -> Grey:
        """In units of the given image's own range, percentiles 1 and 99."""
        height, width = (side * question.factor for side in image.shape)
        fine = cellpose3.resize(torch.from_numpy(image), (height, width)).numpy()
        return cellpose3.restore(fine, restorer, whole).image

    # The network's grey levels are those of a clean image; a straight line brings them back.
    seen_before = bare(question.pixels)
    line = np.polyfit(
        question.operator.A(torch.from_numpy(seen_before)).numpy().ravel(),
        normalise(torch.from_numpy(question.pixels)).numpy().ravel(),
        1,
    )
    notes.append("its grey levels are its own; a straight line brings them to those of the image")

    def run(image: Grey, random: torch.Generator, seen: Progress | None) -> Grey:
        low, high = np.quantile(image, [0.01, 0.99])
        return ((line[0] * bare(image) + line[1]) * (high - low) + low).astype(np.float32)

    return Ready(run, None, notes)


def learned(task: str) -> list[Entrant]:
    """Methods with shipped weights that restore single images, with the weights of a task."""
    scores = [
        Entrant(
            name,
            label,
            "learned",
            about,
            _sized,
            of("particles", "its score knows single particles in ice near 2.6 angstrom a pixel"),
            lambda question, name=name: _score(name, question),  # type: ignore[misc]
            ("denoise",),
            (tsm.NAMES[name],),
        )
        for name, label, about in (
            ("tsm", "TSM", "Score network guided by target structures, one Tweedie step."),
            ("dsm", "DSM", "The same network trained by denoising alone, without targets."),
        )
    ]
    return [
        Entrant(
            "generalist",
            "EM Generalist",
            "learned",
            "One flow prior of tissue, for every task; posterior mean or maximum.",
            never,
            of("tissue unknown", "its prior knows tissue at 4 and 10 nm a pixel"),
            _flow,
            weights=("generalist_flow",),
        ),
        *scores,
        Entrant(
            "cellpose3",
            "Cellpose3-style restorer",
            "learned",
            "A network taught to make a segmenter of cells succeed.",
            never,
            of("cells", "its networks learned nuclei and cells in light microscopy"),
            _cells,
            weights=(f"cellpose3_{task}",),
        ),
    ]
