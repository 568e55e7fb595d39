"""Claims of a paper, the conditions under which they count as shown here, and one verdict for all.

A claim is one record in the chapter's ``chapter.toml``::

    [[claim]]
    id = "M3"
    paper = "ten digits at SNR 1 are visibly better with the prior"     # quoted
    here = "the same ten digits, two fields of each"                     # what stands in
    measured = "gain {mnist.snr_1.gain.paper_prior_over_paper_no_prior}" # shown beside it
    conditions = ["mnist.snr_1.gain.paper_prior_over_paper_no_prior:low > 0"]
    why = "..."                                                          # why the two differ
    cell = "mtd-26"                                                      # what shows it
    unless = [["mnist.snr_1.gain... > 0", "said where this is not met"]]

A condition compares two of: a recorded number ``name``, an end of its interval (``name:low``,
``name:high``), a plain number. Chapter, scorecard and README read claims through this module.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from emlab.bench.study import pipe_table
from emlab.errors import InputError

Values = Mapping[str, Mapping[str, Any]]

VERDICTS = (
    "holds",
    "holds in part",
    "not shown",
    "does not hold",
    "cannot be tested here",
    "not measured",
)
_COMPARE = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
_CONDITION = re.compile(r"(\S+)\s+(<=|>=|<|>)\s+(\S+)")
_PLACEHOLDER = re.compile(r"\{([a-z0-9_+.-]+)\}")
_OTHER_END = {"low": "high", "high": "low"}


@dataclass(frozen=True)
class Condition:
    """A comparison such as ``gain.ours_over_wiener:low > 0``.

    Attributes
    ----------
    left, symbol, right : str
        Two tokens and what stands between them.
    """

    left: str
    symbol: str
    right: str

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Read ``"a < b"``; anything else is an `InputError`."""
        match = _CONDITION.fullmatch(text.strip())
        if not match:
            raise InputError(f"{text!r} is not a comparison such as 'a < b' or 'a:low > 0'")
        return cls(*match.groups())

    def outcome(self, values: Values) -> str:
        """``met``, ``open``, ``not met`` or ``not measured``.

        Open: an end of an interval was asked for, and the interval holds the limit or is that of a
        single target.
        """
        if (met := self._holds(values)) is None:
            return "not measured"
        if any(
            ":" in side and values[side.partition(":")[0]].get("n") == 1 for side in self._sides
        ):
            return "open"
        if met:
            return "met"
        return "open" if self._holds(values, _OTHER_END) else "not met"

    def measured(self, values: Values) -> str:
        """The recorded numbers of the two sides with intervals and units, such as ``1.2 dB``."""
        return " and ".join(
            with_unit(values[name]) if name in values else "?" for name in self.names
        )

    @property
    def names(self) -> list[str]:
        """The recorded numbers that are compared."""
        return [side.partition(":")[0] for side in self._sides]

    @property
    def _sides(self) -> list[str]:
        return [side for side in (self.left, self.right) if not _is_number(side)]

    def _holds(self, values: Values, ends: Mapping[str, str] | None = None) -> bool | None:
        a, b = (_number(token, values, ends or {}) for token in (self.left, self.right))
        return None if a is None or b is None else bool(_COMPARE[self.symbol](a, b))

    def __str__(self) -> str:
        return f"{self.left} {self.symbol} {self.right}"


@dataclass(frozen=True)
class Claim:
    """One claim and what decides on it.

    Attributes
    ----------
    id : str
        Row of the list of claims, such as ``"M1"``.
    paper : str
        What the paper reports; quoted, not measured here.
    here : str
        How it is tested here, and at which scale.
    conditions : tuple of Condition
        What has to be true of the chapter's numbers.
    measured : str
        What the chapter shows beside the claim; ``{name}`` is a recorded number.
    why : str
        Why what is measured differs from what is reported.
    cell : str
        Cell of the chapter that shows it.
    untestable : str
        Why it cannot be tested here, where nothing was measured.
    unless : tuple of (Condition, str)
        What is said where a condition is not met.
    """

    id: str
    paper: str
    here: str = ""
    conditions: tuple[Condition, ...] = ()
    measured: str = ""
    why: str = ""
    cell: str = ""
    untestable: str = ""
    unless: tuple[tuple[Condition, str], ...] = ()

    def verdict(self, values: Values) -> str:
        """One of `VERDICTS`, from table ``values`` of the chapter's metrics.json."""
        found = [condition.outcome(values) for condition in self.conditions]
        if not found or "not measured" in found:
            return "cannot be tested here" if self.untestable else "not measured"
        if all(one == "met" for one in found):
            return "holds"
        if "met" in found:
            return "holds in part"
        return "does not hold" if "not met" in found else "not shown"

    def departures(self, values: Values) -> list[str]:
        """What is said of the conditions that a run does not meet."""
        return [
            fill(sentence, values)
            for condition, sentence in self.unless
            if condition.outcome(values) in ("not met", "open")
        ]


def parse(table: Mapping[str, Any]) -> Claim:
    """A claim from its record; an `InputError` where a condition is no comparison."""
    conditions = tuple(Condition.parse(text) for text in table.get("conditions", ()))
    unless = tuple((Condition.parse(text), said) for text, said in table.get("unless", ()))
    return Claim(**{**table, "conditions": conditions, "unless": unless})


def claims_table(claims: Iterable[Claim], values: Values, paper: str = "the paper reports") -> str:
    """Markdown: the claim, this run's numbers, the verdict, and what is said of what is not met."""
    rows = []
    for claim in claims:
        said = "; ".join(claim.departures(values))
        verdict = f"**{claim.verdict(values)}**" + f": {said}" * bool(said)
        rows.append([f"{claim.id}: {claim.paper}", fill(claim.measured, values), verdict])
    return pipe_table([f"{paper} (quoted)", "measured here", "verdict"], rows)


def fill(text: str, values: Values) -> str:
    """Put recorded numbers in place of every ``{name}``; one that was not measured is a dash."""
    return _PLACEHOLDER.sub(lambda m: number(values[m[1]]) if m[1] in values else "–", text)


def filled(text: str, values: Values) -> str:
    """`fill`, but nothing at all where one of the numbers was not measured."""
    known = all(name in values for name in _PLACEHOLDER.findall(text))
    return fill(text, values) if known else ""


def number(entry: Mapping[str, Any]) -> str:
    """A recorded number with its interval, such as ``0.42 [0.39, 0.45]``."""
    value, low, high = entry["value"], entry.get("low"), entry.get("high")
    if low is None or high is None or low == high:
        return f"{value:.3g}"
    return f"{value:.3g} [{low:.3g}, {high:.3g}]"


def with_unit(entry: Mapping[str, Any]) -> str:
    """A recorded number with its interval and its unit."""
    return f"{number(entry)} {entry.get('unit') or ''}".strip()


def _number(token: str, values: Values, ends: Mapping[str, str]) -> float | None:
    if _is_number(token):
        return float(token)
    name, _, end = token.partition(":")
    if name not in values:
        return None
    entry = values[name]
    found = entry.get(ends.get(end, end) or "value")
    return entry["value"] if found is None else found  # exact: a number without an interval


def _is_number(token: str) -> bool:
    try:
        float(token)
    except ValueError:
        return False
    return True


# --- what was asked for


@dataclass(frozen=True)
class Target:
    """One number that was asked for.

    Attributes
    ----------
    label : str
        For readers.
    name : str
        The recorded number.
    least, most : float
        What was asked; an end that was not is infinite.
    aim : float, optional
        What was hoped for.
    unit : str
    minus : str
        A recorded number that is subtracted first.
    """

    label: str
    name: str
    least: float = -math.inf
    most: float = math.inf
    aim: float | None = None
    unit: str = ""
    minus: str = ""

    def reached(self, values: Values) -> float | None:
        """The number of a run, or None where it was not measured."""
        names = [self.name, self.minus] if self.minus else [self.name]
        if any(name not in values for name in names):
            return None
        first, *rest = (float(values[name]["value"]) for name in names)
        return first - sum(rest)

    def shortfall(self, values: Values) -> float | None:
        """By how much a run misses what was asked; 0 where it does not."""
        found = self.reached(values)
        return None if found is None else max(self.least - found, found - self.most, 0.0)


def format_targets(targets: Sequence[Target], values: Values) -> str:
    """Markdown table: asked, hoped for, reached and missing, from the values of a metrics.json."""
    rows = []
    for target in targets:
        found, missing = target.reached(values), target.shortfall(values)
        cells = [
            f"{target.label} [{target.unit}]" if target.unit else target.label,
            _asked(target),
            "" if target.aim is None else f"{target.aim:g}",
            "-" if found is None else f"{found:.3g}",
            "-" if missing is None else f"{missing:.2g}" if missing else "",
        ]
        rows.append(cells)
    return pipe_table(["target", "asked", "aim", "reached", "short by"], rows)


def targets_met(targets: Sequence[Target], values: Values) -> tuple[int, int]:
    """How many targets a run reached, and how many it measured."""
    missing = [target.shortfall(values) for target in targets]
    measured = [one for one in missing if one is not None]
    return measured.count(0.0), len(measured)


def _asked(target: Target) -> str:
    if math.isinf(target.least):
        return f"at most {target.most:g}"
    if math.isinf(target.most):
        return f"at least {target.least:g}" if target.least else "above 0"
    return f"{target.least:g} to {target.most:g}"
