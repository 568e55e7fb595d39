"""The report of a comparison: one HTML file without a request, and the same numbers as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from emlab import weights
from emlab.app.own_image.asked import Answer, Entrant, Grey, Question, middle
from emlab.app.own_image.scores import (
    COLUMNS,
    FRC_THRESHOLD,
    Numbers,
    halves_curve,
    remarks,
    score,
    score_untouched,
    untouched,
)
from emlab.metrics.fourier import apodisation, radial_frequency
from emlab.runtime import environment_stamp
from emlab.viz import COLOURS, Picture, curtain, plain_picture, show, use_style

OVERVIEW_SIDE = 192


@dataclass(frozen=True)
class Comparison:
    """A question with everybody's answer.

    ``name`` is that of the file; ``facts`` say what was read and compared, in words; ``entrants``
    and ``answers`` are who took part and what came of it, refusals included; ``left_out`` has
    reasons by label; ``spread_side`` is that of the crop whose spread was drawn; ``settings`` are
    seed and options.
    """

    name: str
    question: Question
    facts: Mapping[str, str]
    entrants: Sequence[Entrant]
    answers: Sequence[Answer]
    left_out: Mapping[str, str] = field(default_factory=dict)
    spread_side: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)

    def pairs(self) -> list[tuple[Entrant, Answer]]:
        """Those that gave an image."""
        both = zip(self.entrants, self.answers, strict=True)
        return [(entrant, answer) for entrant, answer in both if answer.image is not None]

    def refusals(self) -> dict[str, str]:
        """Label to reason, of those that were left out or refused."""
        both = zip(self.entrants, self.answers, strict=True)
        refused = {e.label: f"it refused: {a.problem}" for e, a in both if a.image is None}
        return {**refused, **self.left_out}

    @cached_property
    def numbers(self) -> dict[str, Numbers]:
        """By method name; ``input`` is the image itself."""
        scored = {e.name: score(a, self.question) for e, a in self.pairs()}
        return {"input": score_untouched(self.question), **scored}

    @cached_property
    def grey(self) -> tuple[float, float]:
        """Black and white for all: what the results span, without the outermost half per cent."""
        images = [a.image for _, a in self.pairs() if a.image is not None]
        pooled = np.concatenate([i.ravel()[::7] for i in images or [self.question.pixels]])
        low, high = np.percentile(pooled, [0.5, 99.5])
        room = 0.05 * (high - low) or self.question.noise.sigma
        return float(low - room), float(high + room)


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Everything in the report but the pictures."""
    question, numbers = comparison.question, comparison.numbers
    noise = question.noise
    return {
        "image": comparison.name,
        "task": question.task,
        "specimen": question.specimen,
        "pixel_size_angstrom": question.pixel_size_angstrom,
        "length_unit": question.length_unit,
        "facts": dict(comparison.facts),
        "noise": {
            "sigma": noise.sigma,
            "origin": noise.origin,
            "coloured": noise.coloured,
            "neighbour_correlation_y_x": list(noise.correlation),
            "over_contrast": noise.sigma / question.contrast,
        },
        "columns": {column.name: column.note for column in COLUMNS},
        "input": numbers["input"],
        "methods": [
            {
                "name": entrant.name,
                "label": entrant.label,
                "kind": entrant.kind,
                "numbers": numbers.get(entrant.name, {}),
                "remarks": remarks(numbers.get(entrant.name, {}), question),
                "notes": answer.notes,
                "problem": answer.problem,
                "weights": {name: weights.card(name).sha256 for name in entrant.weights},
            }
            for entrant, answer in zip(comparison.entrants, comparison.answers, strict=True)
        ],
        "left_out": dict(comparison.left_out),
        "settings": dict(comparison.settings),
        "environment": environment_stamp(),
    }


def page(comparison: Comparison) -> str:
    """The report: HTML with its pictures and styles inside."""
    question, pairs, stamp = comparison.question, comparison.pairs(), environment_stamp()
    here, numbers, low_high = Path(__file__), comparison.numbers, comparison.grey
    verb = {"denoise": "denoised", "deblur": "deblurred", "upsample": "upsampled"}[question.task]
    links = {"noise": "Noise", "overview": "Overview", "table": "Numbers"}
    links |= {f"m-{e.name}": e.label for e, _ in pairs}
    links |= {"left-out": "Left out", "reading": "How to read this"}
    shown = [c for c in COLUMNS if any(row.get(c.name) is not None for row in numbers.values())]
    units = [question.length_unit if c.unit == "period" else c.unit for c in shown]
    made = [f"{key} {stamp[key]}" for key in ("emlab", "commit", "torch", "cpu", "utc")]
    told = [f"{key} {value}" for key, value in comparison.settings.items()]
    names = [name for entrant in comparison.entrants for name in entrant.weights]
    methods = f"{len(pairs)} method{'' if len(pairs) == 1 else 's'}"
    raw = {"raw": untouched(question), **{e.label: a for e, a in pairs}}
    plots = [spectra(question), curves(raw, question)]
    return Template(here.with_name("own_image.html").read_text(encoding="utf-8")).substitute(
        title=escape(f"{comparison.name}: {question.task} compared"),
        style=here.with_name("own_image.css").read_text(encoding="utf-8"),
        heading=escape(f"{comparison.name}, {verb} by {methods}"),
        facts=_definitions(comparison.facts),
        contents="".join(
            f'<li><a href="#{place}">{escape(name)}</a></li>' for place, name in links.items()
        ),
        noise=escape(_noise_words(question)),
        plots="".join(
            f'<figure class="plot">{plot._repr_html_()}</figure>'
            for plot in plots
            if plot is not None
        ),
        side=OVERVIEW_SIDE,
        grey=f"{low_high[0]:.4g} to {low_high[1]:.4g}",
        overview="".join(_overview(comparison)),
        columns="".join(
            f'<th scope="col">{escape(column.head)}<small>{escape(unit)}</small></th>'
            for column, unit in zip(shown, units, strict=True)
        ),
        numbers="".join(_number_rows(comparison, [column.name for column in shown])),
        meanings=_definitions({column.head: column.note for column in shown}),
        methods="".join(_method(entrant, answer, comparison) for entrant, answer in pairs),
        refusals="".join(
            f'<tr><th scope="row">{escape(label)}</th><td class="text">{escape(reason)}</td></tr>'
            for label, reason in comparison.refusals().items()
        ),
        made=escape(f"{', '.join(made)}; {', '.join(told)}"),
        weights=_definitions({name: weights.card(name).sha256 for name in names}),
    )


def _noise_words(question: Question) -> str:
    noise = question.noise
    y, x = noise.correlation
    colour = (
        f"coloured: neighbouring pixels correlate by {y:.2f} (y) and {x:.2f} (x), and methods that "
        "can are told the spectrum"
        if noise.coloured
        else f"taken as white (neighbours correlate by {y:.2f} in y, {x:.2f} in x)"
    )
    return (
        f"Standard deviation {noise.sigma:.4g} grey levels ({noise.origin}), "
        f"{noise.sigma / question.contrast:.2g} times the contrast of the image without it; "
        f"{colour}. Noise that changes with brightness is averaged, and what is slower than seven "
        "pixels a period is not told from structure."
    )


def _overview(comparison: Comparison) -> Iterator[str]:
    def small(pixels: Grey | None, label: str) -> str:
        assert pixels is not None
        cut, alt = middle(pixels, OVERVIEW_SIDE), f"Middle of the image, {label}"
        picture = plain_picture(cut, alt, comparison.grey)._repr_html_()
        return f"{picture}<span>{escape(label)}</span>"

    question = comparison.question
    yield f"<div>{small(question.on_fine_grid(question.pixels), 'Input')}</div>"
    for entrant, answer in comparison.pairs():
        yield f'<a href="#m-{entrant.name}">{small(answer.image, entrant.label)}</a>'


def _number_rows(comparison: Comparison, columns: Sequence[str]) -> Iterator[str]:
    labels = {e.name: f'<a href="#m-{e.name}">{escape(e.label)}</a>' for e in comparison.entrants}
    for name, row in comparison.numbers.items():
        values = [row.get(column) for column in columns]
        cells = "".join(f"<td>{'–' if v is None else f'{v:.3g}'}</td>" for v in values)
        yield f'<tr><th scope="row">{labels.get(name, "the image as it is")}</th>{cells}</tr>'


def _method(entrant: Entrant, answer: Answer, comparison: Comparison) -> str:
    question, image = comparison.question, answer.image
    assert image is not None
    shown = curtain(
        question.on_fine_grid(question.pixels),
        image,
        ("input", entrant.label),
        f"the image before and after {entrant.label}, in one grey range",
        comparison.grey,
    )
    told = remarks(comparison.numbers[entrant.name], question)
    warned = "".join(f"<p>{escape(sentence)}</p>" for sentence in told)
    words = [_sentence(entrant.kind), entrant.about, _sentence("; ".join(answer.notes))]
    return (
        f'<section class="method"><h2 id="m-{entrant.name}">{escape(entrant.label)}</h2>'
        f'<p class="quiet">{escape(" ".join(words))}</p>'
        f"{f'<div class={chr(34)}warning{chr(34)}>{warned}</div>' if warned else ''}"
        f'<div class="sides">{shown.data}<div class="evidence">'
        f"{''.join(_evidence(entrant.label, answer, comparison))}</div></div></section>"
    )


def _evidence(label: str, answer: Answer, comparison: Comparison) -> Iterator[str]:
    def figure(pixels: Grey, alt: str, limits: tuple[float, float], caption: str) -> str:
        shown = plain_picture(pixels, alt, limits)._repr_html_()
        return f"<figure>{shown}<figcaption>{escape(caption)}</figcaption></figure>"

    question, sigma = comparison.question, comparison.question.noise.sigma
    if question.task == "denoise" and answer.image is not None:
        yield figure(
            question.pixels - answer.image,
            f"Input minus {label}",
            (-3 * sigma, 3 * sigma),
            "What it took away, from −3 to 3 noise deviations: it should look like noise.",
        )
    if answer.blanks:
        low, high = comparison.grey
        half, level = (high - low) / 2, float(answer.blanks[0].mean())
        yield figure(
            answer.blanks[0],
            f"Pure noise restored by {label}",
            (level - half, level + half),
            "What it makes of pure noise, in the contrast of the image above: it should be even "
            "grey.",
        )
    if answer.spread is not None:
        white = float(np.percentile(answer.spread, 99.5))
        yield figure(
            answer.spread,
            f"Posterior spread of {label}",
            (0.0, white),
            f"Spread over samples in the middle {comparison.spread_side} pixels, white is "
            f"{white / sigma:.2g} noise deviations.",
        )


def spectra(question: Question) -> Picture:
    """Power of the window and of its noise over frequency, mean over rings."""
    pixels = question.pixels
    window = apodisation(pixels.shape)
    power = np.abs(np.fft.rfft2((pixels - pixels.mean()) * window)) ** 2 / (window**2).sum()
    frequency = radial_frequency(pixels.shape)
    rings = np.rint(frequency * min(pixels.shape)).astype(int)
    kept = slice(1, min(pixels.shape) // 2)
    noise = question.noise.spectrum(pixels.shape).double().numpy()
    x = np.arange(rings.max() + 1)[kept] / min(pixels.shape) / question.pixel_nm
    figure, axis = _axis("power (grey levels²)", question)
    count = np.bincount(rings.ravel())[kept]
    lines = (("image", power, "-", "blue"), ("noise", noise, "--", "vermilion"))
    for label, values, line, colour in lines:
        mean = np.bincount(rings.ravel(), values.ravel())[kept] / count
        axis.semilogy(x, mean, line, label=label, color=COLOURS[colour])
    axis.set_title("Where image and noise have their power")
    axis.legend()
    kind = "coloured" if question.noise.coloured else "white"
    alt = f"Power of the image falls with frequency towards that of its noise, which is {kind}."
    return show(figure, alt)


def curves(answers: Mapping[str, Answer], question: Question) -> Picture | None:
    """Fourier ring correlation of the halves, raw and restored; None where there are none."""
    found = {label: halves_curve(answer, question) for label, answer in answers.items()}
    drawn = {label: curve for label, curve in found.items() if curve is not None}
    if not drawn:
        return None
    figure, axis = _axis("correlation of the halves", question)
    lines = ("-", "--", ":", "-.")
    for number, (label, curve) in enumerate(drawn.items()):
        look: dict[str, Any] = {} if number else {"linewidth": 2.2, "color": "black"}
        line = lines[number // 4 % len(lines)]
        axis.plot(
            curve.frequency, curve.correlation, line, label=label, **{"linewidth": 1.2} | look
        )
    axis.axhline(FRC_THRESHOLD, color="#777777", linewidth=0.8)
    axis.set(ylim=(-0.1, 1.05))
    axis.set_title("Fourier ring correlation of the two halves; line: 1/7")
    axis.legend(fontsize=6.5, ncols=2)
    return show(figure, "Correlation of the two halves over frequency, raw and for each method.")


def _axis(ylabel: str, question: Question) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    use_style()
    figure = Figure(figsize=(5.0, 3.1))
    axis = figure.subplots()
    unit = "1/pixel" if question.pixel_size_angstrom is None else "1/nm"
    axis.set(xlabel=f"spatial frequency ({unit})", ylabel=ylabel)
    return figure, axis


def _definitions(texts: Mapping[str, str]) -> str:
    return "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in texts.items()
    )


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}." if text else ""
