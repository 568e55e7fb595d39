"""What other chapters say, and whether the numbers of this one agree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from emlab.bench import Report
from emlab.chapters.em_generalist.claims import fill

Values = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Statement:
    """A statement of another chapter and what is asked of this one's numbers.

    Attributes
    ----------
    key : str
        Of the recorded verdict.
    text : str
        With a link to the chapter.
    here : str
        What is shown; ``{name}`` is a recorded number.
    above : tuple of (str, float)
        Numbers whose interval has to lie above a value; a sign turns one around: ``-name`` has
        to lie below it.
    """

    key: str
    text: str
    here: str
    above: tuple[tuple[str, float], ...]

    def verdict(self, values: Values) -> str:
        """``confirmed``, ``contradicted``, ``undecided`` or ``not measured``."""
        ends = []
        for name, level in self.above:
            turned = name.startswith("-")
            found = values.get(name.removeprefix("-"))
            if found is None:
                return "not measured"
            exact = found["low"] is None  # no interval: not a mean over micrographs
            low, high = (found["value"],) * 2 if exact else (found["low"], found["high"])
            if not exact and found.get("n") == 1:
                return "undecided"
            ends.append((-high + level, -low + level) if turned else (low - level, high - level))
        if all(low > 0 for low, _ in ends):
            return "confirmed"
        return "contradicted" if any(high < 0 for _, high in ends) else "undecided"


STATEMENTS = (
    Statement(
        "solvers_agree",
        "Every solver gives the posterior mean where it is known "
        "(chapter 00)",
        "distance in posterior deviations: TSM {agreement.tsm}, EM Generalist "
        "{agreement.generalist}, FlowDPS {agreement.flowdps}, MTD {agreement.mtd}; the measurement "
        "{agreement.nothing}",
        (("-agreement.tsm", 0.3), ("-agreement.generalist", 0.3), ("-agreement.flowdps", 0.3),
         ("-agreement.mtd", 0.3), ("-agreement.cellpose3", 0.3)),
    ),
    Statement(
        "tsm_picks",
        "TSM recovers and picks more than raw micrographs allow (T2, chapter 02)",
        "correlation {gain.correlation.tsm}, F1 of Topaz {gain.f1.tsm}",
        (("gain.correlation.tsm", 0.0), ("gain.f1.tsm", 0.0)),
    ),
    Statement(
        "tsm_beats_filters",
        "What moves the correlation within particles is knowledge of particles, not a filter "
        "(chapter 02)",
        "over TSM: Gaussian {gain_over_tsm.correlation.gaussian}, Wiener low-pass "
        "{gain_over_tsm.correlation.wiener}; with FRC instead {gain_over_tsm.frc.wiener}",
        (("-gain_over_tsm.correlation.gaussian", 0.0), ("-gain_over_tsm.correlation.wiener", 0.0)),
    ),
    Statement(
        "segmenter_blind",
        "A segmenter that never saw noise is blind in it (chapter 05)",
        "its F1 on the noisy micrographs {own.f1.raw}",
        (("-own.f1.raw", 0.5),),
    ),
    Statement(
        "restoration_helps_the_segmenter",
        "Restoration trained through the segmenter brings its objects back "
        "(chapter 05)",
        "F1 of the segmenter {own.f1.cellpose3}, over raw {gain.own_f1.cellpose3}",
        (("gain.own_f1.cellpose3", 0.0),),
    ),
    Statement(
        "loss_matters",
        "The loss through the segmenter finds more than squared error "
        "(chapter 05, C2)",
        "F1 of the segmenter {over_squares.own_f1.cellpose3}, of Topaz "
        "{over_squares.f1.cellpose3}, correlation {over_squares.correlation.cellpose3}",
        (("over_squares.own_f1.cellpose3", 0.0),),
    ),
    Statement(
        "invents",
        "A restorer trained through a segmenter draws objects into nothing "
        "(chapter 05)",
        "objects a field: ice {nothing.own.ice.cellpose3}, noise {nothing.own.noise.cellpose3}; "
        "squared error {nothing.own.ice.squares} and {nothing.own.noise.squares}",
        (("nothing.own.noise.cellpose3", 0.5),),
    ),
    Statement(
        "tissue_prior_is_no_prior_of_ice",
        "The tissue prior pulls what is no tissue towards neuropil: not for ice "
        "(chapter 01)",
        "correlation over raw {gain.correlation.generalist}, with TSM "
        "{gain_over_tsm.correlation.generalist}",
        (("-gain.correlation.generalist", 0.0),),
    ),
)  # fmt: skip


def statements_table(values: Values) -> str:
    """Markdown: statement, numbers of this chapter, verdict."""
    lines = ["| another chapter says | measured here | verdict |", "|---|---|---|"]
    rows = [f"| {s.text} | {fill(s.here, values)} | {s.verdict(values)} |" for s in STATEMENTS]
    return "\n".join(lines + rows)


def record(report: Report) -> None:
    """Record how many statements were confirmed and contradicted."""
    values = report.metrics()["values"]
    found = [statement.verdict(values) for statement in STATEMENTS]
    for verdict in ("confirmed", "contradicted", "undecided"):
        report.value(f"statements.{verdict}", found.count(verdict), n=len(found))
