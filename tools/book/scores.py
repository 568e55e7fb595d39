"""The page of the scorecard: every claim with what was measured, a verdict, and why they differ."""

from __future__ import annotations

from collections import Counter
from html import escape
from itertools import groupby

from tools.book import notebooks, scorecard
from tools.book.markdown import filled, table
from tools.book.runs import Runs

VERDICTS = (
    "holds",
    "holds in part",
    "does not hold",
    "cannot be tested here",
    "not measured",
)


def rows(runs: Runs) -> list[scorecard.Row]:
    """Return the claims of all chapters there are, with the notes on them."""
    book = runs.root / "book"
    known = scorecard.read(book / "scorecard.toml", book / "scorecard_notes.toml")
    return [row for row in known if row.chapter in runs.slugs]


def scores(runs: Runs) -> str:
    """Return counts, a table of claims for each chapter, and a section for each claim."""
    claims = rows(runs)
    if not claims:
        return "No chapter with claims."
    chapters = {slug: list(group) for slug, group in groupby(claims, lambda row: row.chapter)}
    tables = [_chapter(runs, slug, group) for slug, group in chapters.items()]
    details = [_detail(runs, row) for row in claims]
    return "\n\n".join(
        [_counts(runs, chapters), *tables, "## The numbers behind each verdict", *details]
    )


def anchors(runs: Runs) -> dict[str, set[str]]:
    """Return by chapter the cells that the scorecard points to and that the chapter has."""
    found: dict[str, set[str]] = {}
    for row in rows(runs):
        if row.figure in notebooks.cell_ids(runs.notebook(row.chapter)):
            found.setdefault(row.chapter, set()).add(row.figure)
    return found


def _values(runs: Runs, slug: str) -> dict:
    return runs.metrics.get(slug, {}).get("values", {})


def verdict(runs: Runs, row: scorecard.Row) -> str:
    """Return what became of a claim in these runs: one of `VERDICTS`."""
    return scorecard.verdict(row, _values(runs, row.chapter))


def _badge(text: str) -> str:
    return f'<span class="emlab-verdict emlab-verdict-{VERDICTS.index(text)}">{text}</span>'


def _counts(runs: Runs, chapters: dict[str, list[scorecard.Row]]) -> str:
    lines = []
    total: Counter[str] = Counter()
    for slug, claims in chapters.items():
        count = Counter(verdict(runs, row) for row in claims)
        total += count
        lines.append([_link(runs, slug), len(claims), *(count[name] for name in VERDICTS)])
    lines.append(["**all**", total.total(), *(total[name] for name in VERDICTS)])
    return table(["chapter", "claims", *VERDICTS], lines)


def _link(runs: Runs, slug: str) -> str:
    return f"[{notebooks.title(runs.notebook(slug)).split(':')[0]}](../notebooks/{slug})"


def _chapter(runs: Runs, slug: str, claims: list[scorecard.Row]) -> str:
    lines = [
        [
            f"[{row.id}](claim-{row.id})",
            row.claim,
            _short(runs, row),
            _badge(verdict(runs, row)),
            _figure(runs, row, "figure"),
        ]
        for row in claims
    ]
    header = ["row", "claim (quoted)", "measured here", "verdict", "shown by"]
    name = notebooks.title(runs.notebook(slug)).split(":")[0]
    return f"## {name}\n\n{_measured_on(runs, slug)}\n\n{table(header, lines)}"


def _measured_on(runs: Runs, slug: str) -> str:
    metrics = runs.metrics.get(slug)
    if not metrics:
        return f"Chapter [{slug}](../notebooks/{slug}) has not been run in profile {runs.profile}."
    stamp = metrics["environment"]
    where = stamp.get("gpu") or f"{stamp.get('cpu')}, {stamp.get('cores')} cores"
    return (
        f"Measured by [{slug}](../notebooks/{slug}) in profile **{metrics['profile']}** on "
        f"{where} ({metrics['device']}), {str(stamp.get('utc'))[:10]}, in "
        f"{metrics['seconds']:.0f} s. In brackets: the interval of a number."
    )


def _short(runs: Runs, row: scorecard.Row) -> str:
    """Return the first numbers of a row's conditions, each once, with their intervals."""
    values = _values(runs, row.chapter)
    tokens = [token for condition in row.conditions for token in condition.split()[::2]]
    names = [name for token in tokens if (name := token.partition(":")[0]) in values]
    shown = list(dict.fromkeys(names))[:3]
    lines = [f"{escape(name)}: **{scorecard.with_unit(values[name])}**" for name in shown]
    return "<br>".join(lines) or "–"


def _figure(runs: Runs, row: scorecard.Row, text: str) -> str:
    if row.figure in anchors(runs).get(row.chapter, ()):
        return f"[{text}](#{anchor(row.figure)})"
    return f"[chapter](../notebooks/{row.chapter})"


def anchor(cell_id: str) -> str:
    """Return the label that a cell of a staged chapter carries."""
    return f"cell-{cell_id}"


def _detail(runs: Runs, row: scorecard.Row) -> str:
    values = _values(runs, row.chapter)
    result = verdict(runs, row)
    asked = [
        [f"`{condition}`", measured, mark]
        for condition, measured, mark in scorecard.explain(row, values)
    ]
    described = notebooks.described(runs.notebook(row.chapter), row.figure)
    return "\n\n".join(
        [
            f"(claim-{row.id})=\n### {row.id}: {row.claim}",
            f"{_badge(result)} {row.untestable if result == VERDICTS[3] else ''}",
            f"**Tested here on.** {row.here}",
            table(["what has to be true", "measured here", ""], asked),
            f"**Why they differ.** {filled(row.why, values)}" if row.why else "",
            f"**Shown by.** {_figure(runs, row, described or 'the numbers of this cell')}",
        ]
    )
