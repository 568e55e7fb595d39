"""The landing page: what each chapter shows, under a curtain if it has one, and how long it is."""

from __future__ import annotations

import io
import math
from collections import Counter

from PIL import Image

from emlab import chapters
from emlab.bench.claims import VERDICTS, filled
from tools.book import notebooks, scores
from tools.book.runs import Runs

WORDS_PER_MINUTE = 200
THUMBNAIL_WIDTH = 720


def chapter_cards(runs: Runs) -> str:
    """Return an entry for every chapter there is: pictures, title, claim, numbers and times."""
    return "\n\n".join(_entry(runs, slug) for slug in runs.slugs)


def hero(runs: Runs, slug: str, which: str = "1") -> str:
    """Return a curtain of a chapter (the first, second...), or the picture of the repository."""
    found = notebooks.curtains(runs.notebook(slug)) if slug in runs.slugs else []
    if found:
        return _raw(found[min(int(which), len(found)) - 1])
    return (
        "![A noisy field with hidden copies of a digit, beside the digit recovered from it]"
        "(_static/hero.png)"
    )


def tally(runs: Runs) -> str:
    """Return one sentence: how many claims were tested, and what became of them."""
    known = scores.claims_of(runs).items()
    count = Counter(scores.verdict(runs, slug, one) for slug, claims in known for one in claims)
    if not count:
        return ""
    parts = ", ".join(f"{n} {_verb(name, n)}" for name in VERDICTS if (n := count[name]))
    return (
        f"**{count.total()} claims of the papers, tested here:** {parts}. "
        "The [scorecard](scorecard.md) has the numbers, the rules and the reasons."
    )


def thumbnail(png: bytes) -> bytes:
    """Return a picture at most so wide as the page shows it."""
    with Image.open(io.BytesIO(png)) as picture:
        width = min(THUMBNAIL_WIDTH, picture.width)
        height = max(round(picture.height * width / picture.width), 1)
        small = picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def times(runs: Runs, slug: str) -> str:
    """Return how long a chapter takes to read, and took to run."""
    words = notebooks.words(runs.notebook(slug))
    minutes = max(math.ceil(words / WORDS_PER_MINUTE), 1)
    parts = [f"{minutes} minute{'s' if minutes > 1 else ''} to read"]
    if metrics := runs.metrics.get(slug):
        stamp = metrics["environment"]
        where = stamp.get("gpu") or f"{stamp.get('cores')} cores"
        parts.append(f"ran in {chapters.clock(metrics['seconds'])} on {where}")
    return " · ".join(parts)


def _entry(runs: Runs, slug: str) -> str:
    notebook = runs.notebook(slug)
    found, cover = notebooks.curtains(notebook), notebooks.cover(notebook)
    image = f"![{_plain(cover.alt)}](_static/covers/{slug}.png)" if cover else ""
    thumb = f"[{image}](../notebooks/{slug})" if image else ""
    picture = _raw(found[0]) if found else thumb
    values = runs.metrics.get(slug, {}).get("values", {})
    said = filled(chapters.table(slug).get("sentence", ""), values)
    measured = f"{{.emlab-chapter-measured}}\n*Measured here.* {said}" if said else ""
    text = [
        f"{{.emlab-chapter-title}}\n[{notebooks.title(notebook)}](../notebooks/{slug})",
        notebooks.claim(notebook),
        f"{{.emlab-chapter-facts}}\n{times(runs, slug)}",
        measured,
        thumb if found else "",
    ]
    return _div("emlab-chapter", _div("emlab-chapter-picture", picture), _div("", *text))


def _div(name: str, *content: str) -> str:
    inner = "\n\n".join(item for item in content if item)
    fence = ":::::" if ":::" in inner else ":::"
    return f"{fence}{{div}} {name or 'emlab-chapter-text'}\n\n{inner}\n\n{fence}"


def _raw(html: str) -> str:
    return f"```{{raw}} html\n{html}\n```"


def _plain(alt: str) -> str:
    return alt.replace("[", "(").replace("]", ")")


def _verb(verdict: str, count: int) -> str:
    """A verdict on so many claims: one holds, two hold."""
    if count == 1:
        return verdict
    return verdict.replace("holds", "hold").replace("does not", "do not")
