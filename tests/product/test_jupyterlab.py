"""The explorers of the chapters in a real JupyterLab: sliders moved by keyboard in Chromium."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import PATIENCE_MS, chromium, new_tab
from playwright.sync_api import Page, ViewportSize

from emlab.chapters import shipped

SMOKE = 'PROFILE = "smoke"\nSEED = 0\nDEVICE = "cpu"\nOUT_DIR = "runs"'
EXPLORERS = shipped()
FIGURE = "img[alt*='Shown: ']"
FAILURES = "[data-mime-type='application/vnd.jupyter.stderr']:has-text('Error')"


def names(code: str) -> tuple[set[str], set[str]]:
    """Return the names that a cell takes from earlier ones, and those that it makes."""
    wanted: set[str] = set()
    made: set[str] = set()
    for statement in ast.parse(re.sub(r"(?m)^( *)%.*", r"\1pass", code)).body:
        if isinstance(statement, ast.FunctionDef):
            own = {argument.arg for argument in statement.args.args}
            wanted |= _used(statement, ast.Load) - _used(statement, ast.Store) - own - made
            made.add(statement.name)
            continue
        for node in ast.walk(statement):
            if isinstance(node, ast.Import | ast.ImportFrom):
                made |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        added = isinstance(statement, ast.AugAssign) and _used(statement.target, ast.Store)
        wanted |= (_used(statement, ast.Load) | (added or set())) - made
        made |= _used(statement, ast.Store)
    return wanted, made


def _used(tree: ast.AST, how: type[ast.expr_context]) -> set[str]:
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.Name))
    return {node.id for node in nodes if isinstance(node.ctx, how)}


def explorer_and_what_it_needs(notebook: dict[str, Any]) -> dict[str, Any]:
    """Cut a chapter down to its explorer and the cells before it that this depends on, in smoke."""
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    last = next(i for i, cell in enumerate(cells) if "viz.explore(" in "".join(cell["source"]))
    kept, needed = [cells[last]], names("".join(cells[last]["source"]))[0]
    for number, cell in reversed(list(enumerate(cells[:last]))):
        code = "".join(cell["source"])
        if "parameters" in cell["metadata"].get("tags", []):
            cell = {**cell, "source": SMOKE}
        wanted, made = names(code)
        if number < 2 or made & needed:
            kept.insert(0, cell)
            needed = (needed - made) | wanted
    return {**notebook, "cells": kept}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A JupyterLab over a folder with the chapters cut down; its address, without the path."""
    folder = tmp_path_factory.mktemp("lab")
    for chapter in EXPLORERS:
        cut = explorer_and_what_it_needs(json.loads(chapter.read_text(encoding="utf-8")))
        (folder / "work").mkdir(exist_ok=True)
        (folder / "work" / chapter.name).write_text(json.dumps(cut), encoding="utf-8")
    private = {f"JUPYTER_{kind}_DIR": str(folder / kind) for kind in ("CONFIG", "DATA", "RUNTIME")}
    options = [
        "--no-browser", "--allow-root", "--port=0", "--IdentityProvider.token=",
        f"--ServerApp.root_dir={folder / 'work'}", "--LabApp.expose_app_in_browser=True",
        "--LabApp.news_url=None", "--LabApp.extension_manager=readonly",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]  # fmt: skip
    log = folder / "log"
    environment = {**os.environ, **private, "IPYTHONDIR": str(folder / "ipython")}
    with log.open("w") as stream:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options],
            env=environment,
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
    try:
        yield _address(server, log)
    finally:
        server.terminate()  # ends the kernels; then a thread of AnyIO can keep it from leaving
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _address(server: subprocess.Popen[bytes], log: Path) -> str:
    give_up = time.monotonic() + PATIENCE_MS / 1000
    while time.monotonic() < give_up and server.poll() is None:
        found = re.search(r"http://127\.0\.0\.1:\d+", log.read_text())
        if found:
            return found[0]
        time.sleep(0.2)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text()[-3000:]}")


@pytest.fixture(scope="module")
def page(lab: str) -> Iterator[Page]:
    """A tab tall enough that every cell is drawn, from which only the server can be reached."""
    with chromium() as browser:
        tab = new_tab(browser, ViewportSize(width=1400, height=6000), lab).page
        yield tab


def open_and_run(page: Page, lab: str, name: str) -> None:
    """Open a notebook alone and run all of its cells once its kernel answers."""
    page.goto(f"{lab}/doc/tree/{name}?reset")
    page.wait_for_selector(".jp-Notebook .jp-Cell")
    page.wait_for_function(
        """async () => {
            await window.jupyterapp.restored;
            const session = window.jupyterapp.shell.currentWidget?.sessionContext;
            await session?.ready;
            return Boolean(await session?.session?.kernel?.info);
        }"""
    )
    page.evaluate("() => void window.jupyterapp.commands.execute('notebook:run-all-cells')")


@pytest.mark.parametrize("chapter", EXPLORERS, ids=lambda path: path.stem)
def test_a_slider_moved_by_keyboard_changes_the_figure(page: Page, lab: str, chapter: Path) -> None:
    open_and_run(page, lab, chapter.name)
    page.wait_for_selector(f"{FAILURES}, .noUi-handle")
    assert page.locator(FAILURES).all_inner_texts() == []
    figure = page.locator(FIGURE)
    before = figure.get_attribute("src"), figure.get_attribute("alt")
    handle = page.locator(".noUi-handle").first
    handle.focus()
    handle.press("ArrowLeft")
    page.wait_for_function(
        "([css, old]) => document.querySelector(css)?.src !== old || "
        "document.body.innerText.includes('This was not drawn')",
        arg=[FIGURE, before[0]],
    )
    assert "This was not drawn" not in page.inner_text("body")
    assert figure.count() == 1, "the figure is replaced, not repeated"
    assert figure.get_attribute("alt") != before[1]
    assert figure.evaluate("image => image.complete && image.naturalWidth > 100")
    assert page.locator(FAILURES).count() == 0


def test_a_saved_chapter_keeps_its_figure_without_the_kernel_that_drew_it(
    page: Page, lab: str
) -> None:
    name = EXPLORERS[0].name
    open_and_run(page, lab, name)
    page.wait_for_selector(".noUi-handle")
    page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
    page.evaluate("() => window.jupyterapp.serviceManager.sessions.shutdownAll()")
    page.goto(f"{lab}/doc/tree/{name}?reset")
    page.wait_for_selector(FIGURE)
    assert page.locator(".noUi-handle").count() == 0
    assert page.locator(FIGURE).evaluate("image => image.complete && image.naturalWidth > 100")
