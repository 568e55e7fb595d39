"""A study: every method on the same cases, scored against the same truth.

::

    study = Study(cases, columns=[Column("error", "error", better="lower")], labels=LABELS)
    study.run({"raw": raw, "ours": ours}, score)
    study.markdown(versus="raw")          # a row a method, with intervals and paired gains
    study.record(report, "mnist.snr_1")   # mnist.snr_1.error.ours, with its interval

A method takes all cases it is given at once and returns whatever `score` understands; `each` makes
one of a function of a single case.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from emlab.bench.report import Report
from emlab.errors import InputError
from emlab.metrics import Interval, mean_interval
from emlab.recorded import Recording
from emlab.runtime import Stopwatch

Values = NDArray[np.float64]
Scores = Mapping[str, Values]
Method = Callable[[Sequence[Any]], Any]
Score = Callable[[Sequence[Any], Any], Mapping[str, Any]]
DAGGER = "\u2020"  # marks what was recorded and not run here


def mean_of(scores: Scores, name: str, targets: Values | None) -> Interval:
    """The mean over cases with its 95 % bootstrap interval; a single target has no width.

    The places ``(1, k)`` of a single case, such as tiles, play the part of cases.
    """
    values = scores[name]
    if len(values) == 1 and values.size > 1:
        values, targets = values.ravel(), None
    if len(values if targets is None else np.unique(targets)) < 2:
        return Interval(*3 * (float(values.mean()),))
    return mean_interval(values, groups=targets)


@dataclass(frozen=True)
class Column:
    """One number of a method: of which scores, how it is called, shown and compared.

    Attributes
    ----------
    name : str
        Of the score; numbers are recorded under it.
    head : str
        Of the table; a column without one is recorded only.
    better : str
        Which end is good: decides on the sign of gains.
    show : str
        Format of the interval's ``mean``, ``low`` and ``high``.
    unit, note : str
        For metrics.json.
    gain : str
        Name of recorded gains; default: ``gain_NAME``.
    of : callable
        ``of(scores, name, targets)`` returns the interval; default: of the mean over cases.
    """

    name: str
    head: str = ""
    better: Literal["lower", "higher"] = "higher"
    show: str = "{mean:.3f} [{low:.3f}, {high:.3f}]"
    unit: str = ""
    note: str = "95 % bootstrap interval over targets"
    gain: str = ""
    of: Callable[[Scores, str, Values | None], Interval] = mean_of

    def text(self, interval: Interval) -> str:
        """The cell of a table; a single target is shown without an interval."""
        show = self.show.partition(" [")[0] if interval.low == interval.high else self.show
        return show.format(**interval._asdict())


@dataclass
class Study:
    """Scores of every method on the same cases.

    Attributes
    ----------
    cases : sequence
        What methods are given; slices of it are given to methods that see the first few only.
    columns : sequence of Column
    labels : mapping
        Names of methods for readers; tables keep its order.
    targets : ndarray, optional
        ``(n,)`` which cases are of the same target: intervals are over targets.
    scores : dict of dict of ndarray
        ``scores[method][name]`` is ``(n, ...)``, a row a case.
    answers : dict
        What each method returned.
    seconds : dict of float
        A case, by method, of those that ran here.
    recorded : dict
        Methods whose scores are recorded: how far those are from what was run again, or None.
    said : list of str
        Where recorded scores are from.
    """

    cases: Sequence[Any]
    columns: Sequence[Column]
    labels: Mapping[str, str]
    targets: Values | None = None
    scores: dict[str, Scores] = field(default_factory=dict)
    answers: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    recorded: dict[str, float | None] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)

    def run(
        self,
        methods: Mapping[str, Method],
        score: Score,
        *,
        first: Mapping[str, int] | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> Study:
        """Run and score methods; returns the study itself.

        Parameters
        ----------
        score : callable
            ``score(cases, answer)`` returns arrays ``(n, ...)`` by name.
        first : dict, optional
            Methods that get the first so many cases only.
        progress : callable, optional
            Called with a sentence after each method.

        Raises
        ------
        InputError
            Scores of another number of cases than were given.
        """
        for name, method in methods.items():
            seen = self.cases[: (first or {}).get(name, len(self.cases))]
            with Stopwatch() as watch, torch.no_grad():
                answer = method(seen)
            scores = {key: np.asarray(one, float) for key, one in score(seen, answer).items()}
            if any(len(one) != len(seen) for one in scores.values()):
                raise InputError(f"{name} was scored on other cases than the {len(seen)} it got")
            self.answers[name], self.scores[name] = answer, scores
            self.seconds[name] = watch.seconds / len(seen)
            if progress is not None:
                column = self.columns[0]
                progress(f"{self.label(name)}: {column.text(self.interval(name, column.name))}")
        return self

    def join_recorded(
        self, recording: Recording, rows: Mapping[str, Scores], report: Report, prefix: str = ""
    ) -> Study:
        """Put recorded rows of these very cases into the table; returns the study itself.

        Rows are marked with a dagger, and tables say below themselves where they are from. What
        ran here on the first of the cases is replaced; how far it was from the recorded scores,
        the largest difference in the first column, is ``recorded.apart.PREFIX.METHOD``.

        Parameters
        ----------
        rows : dict of dict of ndarray
            As `scores`; lists will do.
        """
        self.said.append(report.recorded(recording))
        first, note = self.columns[0], "largest difference, here from recorded"
        for name, row in rows.items():
            here = self.scores.get(name, {}).get(first.name, np.empty(0))
            self.scores[name] = {key: np.asarray(one, float) for key, one in row.items()}
            then = self.scores[name].get(first.name, np.empty(0))
            n, self.recorded[name] = min(len(here), len(then)), None
            if n:
                apart = np.abs(here[:n] - then[:n]).max()
                key = ".".join(filter(None, ["recorded.apart", prefix, name]))
                self.recorded[name] = report.value(key, apart, unit=first.unit, note=note, n=n)
        return self

    @property
    def methods(self) -> list[str]:
        """Methods that have scores, in the order of the labels."""
        known = [name for name in self.labels if name in self.scores]
        return known + [name for name in self.scores if name not in self.labels]

    def seen(self, method: str) -> int:
        """How many cases a method was given."""
        return len(next(iter(self.scores[method].values())))

    def label(self, method: str) -> str:
        """Name for readers: marked where scores are recorded, or of the first few cases only."""
        mark = f" {DAGGER}" if method in self.recorded else ""
        seen, whole = self.seen(method) if method in self.scores else 0, len(self.cases)
        few = f" (first {seen} of {whole})" if 0 < seen < whole else ""
        return self.labels.get(method, method) + few + mark

    def interval(self, method: str, column: str) -> Interval:
        """A number of a method with its 95 % interval over targets."""
        scores, n = self.scores[method], self.seen(method)
        targets = None if self.targets is None else self.targets[:n]
        return self._column(column).of(scores, column, targets)

    def gain(self, better: str, worse: str, column: str) -> Interval:
        """Mean by which one method is better than another on the cases that both saw, paired.

        Positive is better, whichever end of the column is good.
        """
        first, second = (self.scores[name][column] for name in (better, worse))
        n = min(len(first), len(second))
        gained = first[:n] - second[:n]
        if self._column(column).better == "lower":
            gained = -gained
        targets = None if self.targets is None else self.targets[:n]
        return mean_of({column: gained}, column, targets)

    def markdown(
        self, methods: Iterable[str] | None = None, versus: str = "", extra: _Extra | None = None
    ) -> str:
        """A row a method, a column a number.

        Parameters
        ----------
        methods : iterable of str, optional
            Rows; default: all.
        versus : str, optional
            A method that the others are compared with in the first column's number.
        extra : dict of str to callable, optional
            More columns by heading: ``cell(method)`` returns text.
        """
        shown = [column for column in self.columns if column.head]
        heads = ["method", *(column.head for column in shown)]
        heads += [f"over {self.labels.get(versus, versus)}"] * bool(versus) + list(extra or {})
        rows = []
        for name in self.methods if methods is None else methods:
            row = [self.label(name), *(c.text(self.interval(name, c.name)) for c in shown)]
            if versus:
                row.append("" if name == versus else signed(self.gain(name, versus, shown[0].name)))
            rows.append(row + [cell(name) for cell in (extra or {}).values()])
        return pipe_table(heads, rows, [self])

    def record(self, report: Report, prefix: str = "") -> None:
        """Record every number of every method as ``PREFIX.COLUMN.METHOD``."""
        for name in self.methods:
            for column in self.columns:
                if column.name not in self.scores[name] and column.of is mean_of:
                    continue
                note = column.note + ", recorded" * (name in self.recorded)
                key = ".".join(filter(None, [prefix, column.name, name]))
                interval, n = self.interval(name, column.name), self.seen(name)
                if n == 1 and column.of is mean_of:
                    n = self.scores[name][column.name].size
                elif self.targets is not None:
                    n = len(np.unique(self.targets[:n]))
                report.value(key, *interval, unit=column.unit, note=note, n=n)

    def record_gains(
        self, report: Report, better: str, worse: str, prefix: str = "", columns: Sequence[str] = ()
    ) -> None:
        """Record paired gains in means over cases as ``PREFIX.gain_COLUMN.BETTER_over_WORSE``."""
        n = min(self.seen(better), self.seen(worse))
        for name in columns or [column.name for column in self.columns if column.of is mean_of]:
            key = f"{self._column(name).gain or f'gain_{name}'}.{better}_over_{worse}"
            where, gain = ".".join(filter(None, [prefix, key])), self.gain(better, worse, name)
            report.value(where, *gain, note="paired, same cases", n=n)

    def _column(self, name: str) -> Column:
        return next(column for column in self.columns if column.name == name)


_Extra = Mapping[str, Callable[[str], str]]


def each(function: Callable[[Any], Any], workers: int = 1) -> Method:
    """A method that asks a function case by case, `workers` of them at a time in threads."""

    def method(cases: Sequence[Any]) -> list[Any]:
        def ask(case: Any) -> Any:
            with torch.no_grad():  # of this thread
                return function(case)

        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(ask, cases))

    return method


def signed(interval: Interval, digits: int = 3) -> str:
    """A difference with its sign and its interval."""
    mean, low, high = (f"{end:+.{digits}f}" for end in interval)
    return mean if low == high else f"{mean} [{low}, {high}]"


def spanned(interval: Interval, show: str = ".3f") -> str:
    """A number and its interval, all three in one format."""
    mean, low, high = (format(end, show) for end in interval)
    return f"{mean} [{low}, {high}]"


def pipe_table(
    heads: Sequence[str], rows: Iterable[Sequence[str]], studies: Sequence[Study] = ()
) -> str:
    """A Markdown table, bars in cells escaped; below it where recorded rows are from."""
    lines = [heads, ["---"] * len(heads), *rows]
    table = "\n".join("| " + " | ".join(c.replace("|", r"\|") for c in row) + " |" for row in lines)
    said = dict.fromkeys(f"{DAGGER} {one}" for study in studies for one in study.said)
    apart = [one for study in studies for one in study.recorded.values() if one is not None]
    again = f" What ran again is {max(apart):.2g} apart at most." if apart else ""
    return "\n\n".join([table, *said]) + again
