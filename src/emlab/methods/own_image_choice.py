"""Who takes part in a comparison on a reader's own image, and why others do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from emlab.errors import InputError
from emlab.methods.own_image import Entrant, Question, Ready
from emlab.methods.own_image_learned import learned
from emlab.methods.own_image_peers import peers

# Methods of the book that restore something else, and why they cannot take part.
ABSENT = {
    "FlowDPS": "it retrieves the phase of single extracted particles: emlab flowdps retrieve",
    "Multi-target detection": "it recovers one image from a field of many copies: emlab mtd "
    "recover",
    "Supervised U-Net": "it knows the noise levels and the blur that it was trained on, and no "
    "others; chapter 01 measures it there",
}


def choose(question: Question, wanted: Sequence[str] = ()) -> tuple[list[Entrant], dict[str, str]]:
    """Methods that fit a question, and the reasons of those that do not, by label.

    Parameters
    ----------
    wanted : sequence of str
        Names of the only ones to take; these also take part where they are unsuited, and say so.

    Raises
    ------
    InputError
        An unknown name, or nobody is left.
    """
    every = [*learned(question.task), *peers()]
    known = {entrant.name: entrant for entrant in every}
    if unknown := [name for name in wanted if name not in known]:
        raise InputError(f"unknown method {unknown[0]!r}; choose from {', '.join(known)}")
    chosen: list[Entrant] = []
    left_out: dict[str, str] = {}
    for entrant in every:
        if wanted and entrant.name not in wanted:
            continue
        if question.task not in entrant.tasks:
            if wanted or entrant.kind == "learned":
                left_out[entrant.label] = f"it knows no task but {', '.join(entrant.tasks)}"
            continue
        hindered, unsuited = entrant.impossible(question), entrant.unsuited(question)
        if hindered or (unsuited and not wanted):
            left_out[entrant.label] = hindered or f"{unsuited}; --methods {entrant.name} runs it"
        else:
            chosen.append(_warned(entrant, unsuited) if unsuited else entrant)
    if not chosen:
        reasons = "; ".join(f"{label}: {reason}" for label, reason in left_out.items())
        raise InputError(f"no method is left for this image ({reasons})")
    return chosen, left_out if wanted else {**left_out, **ABSENT}


def _warned(entrant: Entrant, unsuited: str) -> Entrant:
    def prepare(question: Question) -> Ready:
        ready = entrant.prepare(question)
        return replace(ready, notes=[f"asked for by name, although {unsuited}", *ready.notes])

    return replace(entrant, prepare=prepare)
