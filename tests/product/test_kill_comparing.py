"""kill -9 while an image is compared: methods that had answered are not asked again."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
from killing import finish, kill_at, run, start
from scipy import ndimage

from emlab.io import write_image

METHODS = ["gaussian", "wiener", "tv", "bm3d"]
SPENT = {"seconds", "megabytes"}


def test_a_killed_comparison_goes_on_and_gives_the_same_report(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    smooth = ndimage.gaussian_filter(random.standard_normal((192, 192)), 4)
    pixels = 100 + 25 * smooth / smooth.std() + 8 * random.standard_normal((192, 192))
    image = write_image(tmp_path / "in.mrc", pixels.astype(np.float32), 40.0)
    command = ["emlab", "compare", image, "--methods", ",".join(METHODS), "-o"]
    whole, broken = tmp_path / "whole.html", tmp_path / "broken.html"
    unbroken, left = start([*command, whole]), tmp_path / ".broken.partial"
    kill_at(start([*command, broken]), (left / "1.npz").exists)
    assert not broken.exists()
    written = json.loads((left / "journal.json").read_text())["written"]
    assert 1 <= written < len(METHODS)
    seconds = [float(np.load(left / f"{n}.npz")["facts"][0]) for n in range(written)]
    refused = run([*command, broken])
    assert (refused.returncode, "add --resume" in refused.stderr) == (2, True)
    done, expected = run([*command, broken, "--resume"]), finish(unbroken)
    assert (done.returncode, expected.returncode) == (0, 0), done.stderr + expected.stderr
    asked = [int(number) for number in re.findall(r"^(\d+)/4 ", done.stderr, re.MULTILINE)]
    assert asked == list(range(written + 1, 5))
    told = [
        json.loads(path.with_suffix(".json").read_text())["methods"] for path in (broken, whole)
    ]
    assert [m["numbers"]["seconds"] for m in told[0][:written]] == seconds
    for mine, other in zip(*told, strict=True):
        for key in mine["numbers"].keys() - SPENT:
            assert mine["numbers"][key] == other["numbers"][key]
    pictures = [re.findall(r'"data:image/[^"]+"', path.read_text()) for path in (broken, whole)]
    assert len(pictures[0]) > 4 * len(METHODS)
    assert pictures[0] == pictures[1]
    assert not left.exists()
