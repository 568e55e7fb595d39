"""The pages of data cards and model cards, from the package's own registries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from emlab import data, weights
from tools.book.markdown import size, table

ROLES = {
    "train": "May be trained on",
    "test": "For testing only: never trained on",
    "demo": "For figures and file formats",
    "metadata": "Without pixels",
}


def data_cards() -> str:
    """Return an overview and one section per data set of the registry."""
    records = data.records()
    overview = [
        [f"[{name}](data-{name})", record.title, ROLES[record.role].lower(), size(record.size)]
        for name, record in records.items()
    ]
    parts = [table(["name", "what", "use", "size"], overview)]
    return "\n\n".join([*parts, *(_data_card(record) for record in records.values())])


def _data_card(record: data.Record) -> str:
    pixel = record.pixel_size_angstrom
    facts = [
        ["what", record.title],
        ["use", ROLES[record.role]],
        ["licence", record.licence],
        ["cite", record.citation],
        ["source", record.source],
        ["pixel size", f"{pixel} Å" if pixel is not None else "none"],
        ["remark on the pixel size", record.pixel_size_note],
        ["how to obtain it", _obtained(record)],
        ["where it is absent", ", ".join(record.instead)],
        ["note", record.note],
        ["hash of the pixels", f"`{record.pixel_sha256}`" if record.pixel_sha256 else ""],
    ]
    files = [[f"`{f.path}`", size(f.size), f"`{f.sha256}`"] for f in record.files]
    return "\n\n".join(
        [
            f"(data-{record.name})=\n## {record.name}",
            table(["", ""], [row for row in facts if row[1]]),
            table(["file", "size", "sha256"], files),
        ]
    )


def _obtained(record: data.Record) -> str:
    command = f"`emlab data fetch {record.name}`"
    if any(file.build for file in record.files):
        steps = ", ".join(sorted({file.build["step"] for file in record.files if file.build}))
        return f"{command} builds it from public pieces ({steps}): {record.how}"
    return record.how or f"{command} downloads it"


def model_cards() -> str:
    """Return one section per shipped checkpoint."""
    cards = [weights.card(name) for name in weights.names()]
    if not cards:
        return "No checkpoint is shipped yet."
    overview = [
        [
            f"[{card.name}](model-{card.name})",
            f"{card.data} ({card.split})",
            card.steps,
            f"{card.seconds:.0f} s on {card.device}",
            size(weights.path(card.name).stat().st_size),
        ]
        for card in cards
    ]
    header = ["name", "trained on", "steps", "time", "size"]
    return "\n\n".join([table(header, overview), *(_model_card(card) for card in cards)])


def _model_card(card: weights.Card) -> str:
    facts = [
        ["made again by", f"`{card.recipe}`"],
        ["data", f"{card.data}, {card.split}"],
        ["training", f"{card.steps} steps, {card.seconds:.0f} s on {card.device}"],
        ["seed, commit", f"{card.seed}, `{card.commit}`"],
        ["network", _pairs(card.model)],
        ["objective", _pairs(card.objective)],
        ["sha256", f"`{card.sha256}`"],
        ["limits of use", card.limits],
    ]
    measured = [[f"`{name}`", value] for name, value in _flat(card.evaluation)]
    return "\n\n".join(
        [
            f"(model-{card.name})=\n## {card.name}",
            table(["", ""], facts),
            "Evaluation, measured when it was trained:",
            table(["number", "value"], measured),
        ]
    )


def _pairs(content: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} = `{value}`" for key, value in _flat(content))


def _flat(content: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return nested tables as dotted names with plain values."""
    flat: list[tuple[str, Any]] = []
    for key, value in content.items():
        if isinstance(value, Mapping):
            flat += _flat(value, f"{prefix}{key}.")
        else:
            flat.append((f"{prefix}{key}", value))
    return flat
