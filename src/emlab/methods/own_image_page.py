"""The report of a comparison: one HTML file without a request, and the same numbers as JSON."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from emlab import weights
from emlab.methods.own_image import Answer, Entrant, Grey, Question, middle
from emlab.methods.own_image_figures import curves, spectra
from emlab.methods.own_image_scores import (
    COLUMNS,
    Column,
    Numbers,
    on_fine_grid,
    remarks,
    score,
    score_untouched,
    untouched,
)
from emlab.runtime import environment_stamp
from emlab.viz import Picture, curtain_markup, plain_picture

OVERVIEW_SIDE = 192
# Nothing is loaded: pictures are inside, and the only script is a curtain's own handler.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
_RAW = "the image as it is"


@dataclass(frozen=True)
class Comparison:
    """A question with everybody's answer.

    Attributes
    ----------
    name : str
        Of the file.
    question : Question
    facts : mapping of str to str
        What was read and compared, in words.
    entrants, answers : sequence
        Who took part, and what came of it; refusals included.
    left_out : mapping of str to str
        Label to reason.
    spread_side : int
        Side of the crop whose spread was drawn.
    settings : mapping
        For the JSON: seed, options.
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

    def numbers(self) -> dict[str, Numbers]:
        """By method name; ``input`` is the image itself."""
        scored = {e.name: score(a, self.question) for e, a in self.pairs()}
        return {"input": score_untouched(self.question), **scored}


def as_json(comparison: Comparison, numbers: Mapping[str, Numbers]) -> dict[str, Any]:
    """Everything in the report but the pictures."""
    question = comparison.question
    noise = question.noise
    return {
        "image": comparison.name,
        "task": question.task,
        "specimen": question.specimen,
        "pixel_size_angstrom": question.pixel_size_angstrom,
        "length_unit": _length_unit(question),
        "facts": dict(comparison.facts),
        "noise": {
            "sigma": noise.sigma,
            "origin": noise.origin,
            "coloured": noise.coloured,
            "neighbour_correlation_y_x": list(noise.correlation),
            "over_contrast": noise.sigma / question.contrast,
        },
        "columns": {column.key: column.meaning for column in COLUMNS},
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


def page(comparison: Comparison, numbers: Mapping[str, Numbers]) -> str:
    """The report: HTML with its pictures and styles inside."""
    question = comparison.question
    style = (Path(__file__).with_name("own_image.css")).read_text(encoding="utf-8")
    title = f"{comparison.name}: {question.task} compared"
    pairs = comparison.pairs()
    grey = _grey_range(question, [a.image for _, a in pairs if a.image is not None])
    parts = [
        _header(comparison),
        _noise_part(comparison),
        _overview(comparison, grey),
        _table_part(comparison, numbers),
        *(_method(e, a, comparison, numbers[e.name], grey) for e, a in pairs),
        _left_out(comparison.refusals()),
        _reading(),
        _provenance(comparison),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f'<link rel="icon" href="data:,"><title>{_text(title)}</title>'
        f"<style>{style}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def _header(comparison: Comparison) -> str:
    links = [("noise", "Noise"), ("overview", "Overview"), ("table", "Numbers")]
    links += [(f"m-{e.name}", e.label) for e, _ in comparison.pairs()]
    links += [("left-out", "Left out"), ("reading", "How to read this")]
    items = "".join(f'<li><a href="#{place}">{_text(name)}</a></li>' for place, name in links)
    facts = "".join(
        f"<dt>{_text(name)}</dt><dd>{_text(text)}</dd>" for name, text in comparison.facts.items()
    )
    count = len(comparison.pairs())
    verb = {"denoise": "denoised", "deblur": "deblurred", "upsample": "upsampled"}
    did = f"{verb[comparison.question.task]} by {count} method{'' if count == 1 else 's'}"
    return (
        f"<header><h1>{_text(comparison.name)}, {did}</h1>"
        '<p class="quiet">Every image below is an estimate. Nobody knows the truth of this image; '
        "the numbers tell what each method took away, and what it draws where nothing is.</p>"
        f'<dl class="facts">{facts}</dl><nav aria-label="Contents"><ul>{items}</ul></nav>'
        "</header><main>"
    )


def _noise_part(comparison: Comparison) -> str:
    question = comparison.question
    noise = question.noise
    y, x = noise.correlation
    share = noise.sigma / question.contrast
    colour = (
        f"coloured: neighbouring pixels correlate by {y:.2f} (y) and {x:.2f} (x), and methods that "
        "can are told the spectrum"
        if noise.coloured
        else f"taken as white (neighbours correlate by {y:.2f} in y, {x:.2f} in x)"
    )
    words = (
        f"Standard deviation {noise.sigma:.4g} grey levels ({noise.origin}), {share:.2g} times the "
        f"contrast of the image without it; {colour}. Noise that changes with brightness is "
        "averaged, and what is slower than seven pixels a period is not told from structure."
    )
    figures = [_plot(spectra(question))]
    drawn = curves(
        {"raw": untouched(question), **{e.label: a for e, a in comparison.pairs()}}, question
    )
    if drawn is not None:
        figures.append(_plot(drawn))
    return (
        f'<h2 id="noise">Noise</h2><p>{_text(words)}</p><div class="plots">{"".join(figures)}</div>'
    )


def _overview(comparison: Comparison, grey: tuple[float, float]) -> str:
    question = comparison.question
    side = OVERVIEW_SIDE
    raw = on_fine_grid(question, question.pixels)
    cells = [f"<div>{_small(middle(raw, side), 'Input', grey)}<span>Input</span></div>"]
    for entrant, answer in comparison.pairs():
        assert answer.image is not None
        shown = _small(middle(answer.image, side), entrant.label, grey)
        name = f"<span>{_text(entrant.label)}</span>"
        cells.append(f'<a href="#m-{entrant.name}">{shown}{name}</a>')
    return (
        f'<h2 id="overview">Overview</h2><p class="quiet">The middle {side} pixels of all, in one '
        f"grey range ({grey[0]:.4g} to {grey[1]:.4g}).</p>"
        f'<div class="grid">{"".join(cells)}</div>'
    )


def _table_part(comparison: Comparison, numbers: Mapping[str, Numbers]) -> str:
    columns = [
        column
        for column in COLUMNS
        if any(row.get(column.key) is not None for row in numbers.values())
    ]
    unit = _length_unit(comparison.question)
    head = "".join(
        f'<th scope="col">{_text(c.title)}<small>{_text(_unit(c, unit))}</small></th>'
        for c in columns
    )
    names = {"input": _RAW, **{e.name: e.label for e in comparison.entrants}}
    rows = []
    for name, row in numbers.items():
        label = _text(names[name])
        linked = label if name == "input" else f'<a href="#m-{name}">{label}</a>'
        cells = "".join(f"<td>{_number(row.get(c.key))}</td>" for c in columns)
        rows.append(f'<tr><th scope="row">{linked}</th>{cells}</tr>')
    meanings = "".join(
        f"<dt>{_text(column.title)}</dt><dd>{_text(column.meaning)}</dd>" for column in columns
    )
    return (
        '<h2 id="table">Numbers</h2>'
        '<div class="table sticky" role="region" aria-label="Numbers of all methods" tabindex="0">'
        f'<table><thead><tr><th scope="col">method</th>{head}</tr></thead>'
        f'<tbody>{"".join(rows)}</tbody></table></div><dl class="facts">{meanings}</dl>'
    )


def _method(
    entrant: Entrant,
    answer: Answer,
    comparison: Comparison,
    numbers: Numbers,
    grey: tuple[float, float],
) -> str:
    question, image = comparison.question, answer.image
    assert image is not None
    shown = curtain_markup(
        on_fine_grid(question, question.pixels),
        image,
        ("input", entrant.label),
        f"the image before and after {entrant.label}, in one grey range",
        grey,
    )
    warned = "".join(f"<p>{_text(sentence)}</p>" for sentence in remarks(numbers, question))
    words = [_sentence(entrant.kind), entrant.about, _sentence("; ".join(answer.notes))]
    return (
        f'<section class="method"><h2 id="m-{entrant.name}">{_text(entrant.label)}</h2>'
        f'<p class="quiet">{_text(" ".join(words))}</p>'
        f"{f'<div class={chr(34)}warning{chr(34)}>{warned}</div>' if warned else ''}"
        f'<div class="sides">{shown}<div class="evidence">'
        f"{_evidence(entrant, answer, comparison, grey)}</div></div></section>"
    )


def _evidence(
    entrant: Entrant, answer: Answer, comparison: Comparison, grey: tuple[float, float]
) -> str:
    question, image = comparison.question, answer.image
    assert image is not None
    sigma, label = question.noise.sigma, entrant.label
    figures = []
    if question.task == "denoise":
        removed = question.pixels - image
        figures.append(
            _figure(
                plain_picture(removed, f"Input minus {label}", (-3 * sigma, 3 * sigma)),
                "What it took away, from −3 to 3 noise deviations: it should look like noise.",
            )
        )
    if answer.blanks:
        half = (grey[1] - grey[0]) / 2
        level = float(answer.blanks[0].mean())
        figures.append(
            _figure(
                plain_picture(
                    answer.blanks[0],
                    f"Pure noise restored by {label}",
                    (level - half, level + half),
                ),
                "What it makes of pure noise, in the contrast of the image above: it should be "
                "even grey.",
            )
        )
    if answer.spread is not None:
        side, white = comparison.spread_side, float(np.percentile(answer.spread, 99.5))
        figures.append(
            _figure(
                plain_picture(answer.spread, f"Posterior spread of {label}", (0.0, white)),
                f"Spread over samples in the middle {side} pixels, white is {white / sigma:.2g} "
                "noise deviations.",
            )
        )
    return "".join(figures)


def _left_out(refusals: Mapping[str, str]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{_text(label)}</th><td class="text">{_text(reason)}</td></tr>'
        for label, reason in refusals.items()
    )
    return (
        '<h2 id="left-out">Left out</h2><div class="table"><table><thead><tr>'
        '<th scope="col">method</th><th scope="col" style="text-align:left">why</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _reading() -> str:
    sentences = (
        "No single number ranks methods on an image without truth. Look at what was taken away "
        "first: lines and edges in it are lost structure.",
        "Then look at what pure noise becomes. A method that draws texture there draws it in the "
        "image, too, and nobody can tell which is which.",
        "With two halves of the recording, the error left is the fairest number: the other half "
        "was never seen.",
        "Measure brightness and sizes, count, and reconstruct from the recorded image; use a "
        "restored one to look and to find.",
    )
    return '<h2 id="reading">How to read this</h2>' + "".join(f"<p>{s}</p>" for s in sentences)


def _provenance(comparison: Comparison) -> str:
    stamp = environment_stamp()
    made = ", ".join(f"{key} {stamp[key]}" for key in ("emlab", "commit", "torch", "cpu", "utc"))
    rows = "".join(
        f"<dt>{_text(name)}</dt><dd><code>{_text(weights.card(name).sha256)}</code></dd>"
        for entrant in comparison.entrants
        for name in entrant.weights
    )
    settings = ", ".join(f"{key} {value}" for key, value in comparison.settings.items())
    return (
        '</main><footer class="quiet"><h2>Made with</h2>'
        f"<p>{_text(made)}; {_text(settings)}</p>"
        f'<dl class="facts">{rows}</dl></footer>'
    )


def _grey_range(question: Question, images: Sequence[Grey]) -> tuple[float, float]:
    """Black and white for all: what the results span, without the outermost half per cent."""
    pooled = np.concatenate([i.ravel()[::7] for i in images or [question.pixels]])
    low, high = np.percentile(pooled, [0.5, 99.5])
    room = 0.05 * (high - low) or question.noise.sigma
    return float(low - room), float(high + room)


def _length_unit(question: Question) -> str:
    return "pixels" if question.pixel_size_angstrom is None else "nm"


def _unit(column: Column, length: str) -> str:
    return length if column.unit == "period" else column.unit


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _small(pixels: Grey, label: str, grey: tuple[float, float]) -> str:
    return plain_picture(pixels, f"Middle of the image, {label}", grey)._repr_html_()


def _figure(picture: Picture, caption: str) -> str:
    return f"<figure>{picture._repr_html_()}<figcaption>{_text(caption)}</figcaption></figure>"


def _plot(picture: Picture) -> str:
    return f'<figure class="plot">{picture._repr_html_()}</figure>'


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}." if text else ""


def _text(text: str) -> str:
    return html.escape(text)
