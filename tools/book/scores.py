"""The page of the scorecard: every claim with what was measured, a verdict, and why they differ."""

from __future__ import annotations

from collections import Counter
from html import escape

from emlab import chapters
from emlab.bench.claims import VERDICTS, Claim, fill, with_unit
from tools.book import notebooks
from tools.book.markdown import table
from tools.book.runs import Runs


def claims_of(runs: Runs) -> dict[str, tuple[Claim, ...]]:
    """Return the claims of all chapters that test some."""
    found = {slug: chapters.claims(slug) for slug in runs.slugs}
    return {slug: claims for slug, claims in found.items() if claims}


def scores(runs: Runs) -> str:
    """Return counts, a table of claims for each chapter, and a section for each claim."""
    known = claims_of(runs)
    if not known:
        return "No chapter with claims."
    tables = [_chapter(runs, slug, claims) for slug, claims in known.items()]
    details = [_detail(runs, slug, claim) for slug, claims in known.items() for claim in claims]
    return "\n\n".join(
        [_counts(runs, known), *tables, "## The numbers behind each verdict", *details]
    )


def anchors(runs: Runs) -> dict[str, set[str]]:
    """Return by chapter the cells that the scorecard points to and that the chapter has."""
    return {
        slug: cells
        for slug, claims in claims_of(runs).items()
        if (cells := {c.cell for c in claims} & set(notebooks.cell_ids(runs.notebook(slug))))
    }


def _values(runs: Runs, slug: str) -> dict:
    return runs.metrics.get(slug, {}).get("values", {})


def verdict(runs: Runs, slug: str, claim: Claim) -> str:
    """Return what became of a claim in these runs: one of `VERDICTS`."""
    return claim.verdict(_values(runs, slug))


def _badge(text: str) -> str:
    return f'<span class="emlab-verdict emlab-verdict-{text.replace(" ", "-")}">{text}</span>'


def _counts(runs: Runs, known: dict[str, tuple[Claim, ...]]) -> str:
    lines = []
    total: Counter[str] = Counter()
    for slug, claims in known.items():
        count = Counter(verdict(runs, slug, claim) for claim in claims)
        total += count
        lines.append([_link(runs, slug), len(claims), *(count[name] for name in VERDICTS)])
    lines.append(["**all**", total.total(), *(total[name] for name in VERDICTS)])
    return table(["chapter", "claims", *VERDICTS], lines)


def _link(runs: Runs, slug: str) -> str:
    return f"[{notebooks.title(runs.notebook(slug)).split(':')[0]}](../notebooks/{slug})"


def _chapter(runs: Runs, slug: str, claims: tuple[Claim, ...]) -> str:
    lines = [
        [
            f"[{claim.id}](claim-{claim.id})",
            claim.paper,
            _short(runs, slug, claim),
            _badge(verdict(runs, slug, claim)),
            _figure(runs, slug, claim, "figure"),
        ]
        for claim in claims
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


def _short(runs: Runs, slug: str, claim: Claim) -> str:
    """Return the first numbers of a claim's conditions, each once, with their intervals."""
    values = _values(runs, slug)
    names = [name for one in claim.conditions for name in one.names if name in values]
    lines = [f"{escape(n)}: **{with_unit(values[n])}**" for n in list(dict.fromkeys(names))[:3]]
    return "<br>".join(lines) or "–"


def _figure(runs: Runs, slug: str, claim: Claim, text: str) -> str:
    if claim.cell in anchors(runs).get(slug, ()):
        return f"[{text}](#{anchor(claim.cell)})"
    return f"[chapter](../notebooks/{slug})"


def anchor(cell_id: str) -> str:
    """Return the label that a cell of a staged chapter carries."""
    return f"cell-{cell_id}"


def _detail(runs: Runs, slug: str, claim: Claim) -> str:
    values = _values(runs, slug)
    result = verdict(runs, slug, claim)
    asked = [[f"`{one}`", one.measured(values), one.outcome(values)] for one in claim.conditions]
    described = notebooks.described(runs.notebook(slug), claim.cell)
    shown = _figure(runs, slug, claim, described or "the numbers of this cell")
    said = "; ".join(claim.departures(values))
    return "\n\n".join(
        [
            f"(claim-{claim.id})=\n### {claim.id}: {claim.paper}",
            f"{_badge(result)} {claim.untestable if result == 'cannot be tested here' else ''}",
            f"**Tested here on.** {claim.here}",
            f"**Measured here.** {fill(claim.measured, values)}" if claim.measured else "",
            f"**Not met.** {said}" if said else "",
            table(["what has to be true", "measured here", ""], asked),
            f"**Why they differ.** {fill(claim.why, values)}" if claim.why else "",
            f"**Shown by.** {shown}",
        ]
    )
