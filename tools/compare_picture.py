"""Draw book/_static/compare.png: the top of a report of ``emlab compare``, seen by Chromium.

Run with ``python -m tools.compare_picture``; the image is simulated tissue, recorded twice.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
from playwright.sync_api import sync_playwright

from emlab.app import cli
from emlab.data.phantoms import neuropil
from emlab.io import write_image
from emlab.runtime import atomic_path

ROOT = Path(__file__).resolve().parents[1]
SIDE, SIGMA, PIXEL = 192, 25.0, 100.0
METHODS = "generalist,gaussian,wiener,nlm"


def main() -> None:
    """Write two noisy recordings, compare, and photograph the report."""
    truth, random = neuropil((SIDE, SIDE)), np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        names = [folder / "first.tif", folder / "second.tif"]
        for name in names:
            noisy = truth + SIGMA * random.standard_normal(truth.shape)
            write_image(name, noisy.astype(np.float32), PIXEL)
        report = folder / "report.html"
        words = ["compare", names[0], "-o", report, "--half", names[1], "--methods", METHODS]
        if cli.main([*map(str, words), "--spread", "64"]) != 0:
            raise SystemExit("the comparison failed, see above")
        with sync_playwright() as player:
            chromium = shutil.which("chromium") or shutil.which("chromium-browser")
            browser = player.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1080, "height": 1500})
            page.goto(report.as_uri())
            with atomic_path(ROOT / "book" / "_static" / "compare.png") as path:
                path.write_bytes(page.screenshot())
            browser.close()


if __name__ == "__main__":
    main()
