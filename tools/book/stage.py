"""Lay out everything the book is built from below one folder, touching only what changed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from tools.book import landing, notebooks, scores
from tools.book.pages import COVERS, fill
from tools.book.runs import Runs

NOT_STAGED = {"_config.yml", "bench.toml"}


def stage(runs: Runs, folder: Path) -> str:
    """Write pages, executed chapters, configuration and table of contents; return their hash.

    Files that are no longer part of the book are removed.
    """
    content = {
        Path("_toc.yml"): (runs.root / "_toc.yml").read_bytes(),
        Path("_config.yml"): (runs.root / "book" / "_config.yml").read_bytes(),
    }
    for file in sorted((runs.root / "book").rglob("*")):
        if file.is_file() and file.name not in NOT_STAGED:
            raw = file.read_bytes()
            if file.suffix == ".md":
                raw = fill(raw.decode("utf-8"), runs).encode("utf-8")
            content[file.relative_to(runs.root)] = raw
    pointed_at = scores.anchors(runs)
    for slug in runs.slugs:
        notebook = runs.notebook(slug)
        if runs.status.get("chapters", {}).get(slug, {}).get("status") == "not run":
            notebook = notebooks.marked_not_run(notebook)
        labels = {cell: scores.anchor(cell) for cell in pointed_at.get(slug, ())}
        text = json.dumps(notebooks.labelled(notebook, labels), indent=1, ensure_ascii=False)
        content[Path("notebooks", f"{slug}.ipynb")] = text.encode("utf-8")
        cover = notebooks.cover(notebook)
        if cover:
            content[COVERS / f"{slug}.png"] = landing.thumbnail(cover.png)
    _write(content, folder)
    digest = hashlib.sha256()
    for path, raw in sorted(content.items()):
        digest.update(f"{path}\0{len(raw)}\0".encode())
        digest.update(raw)
    return digest.hexdigest()


def _write(content: dict[Path, bytes], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for file in [file for file in folder.rglob("*") if file.is_file()]:
        if file.relative_to(folder) not in content:
            file.unlink()
    for path, raw in content.items():
        target = folder / path
        if not target.is_file() or target.read_bytes() != raw:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(raw)
