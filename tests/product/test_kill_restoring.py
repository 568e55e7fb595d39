"""kill -9 while a folder is restored: the rest is done later, and nothing twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from killing import finish, kill_at, run, start

from emlab.io import read_image, write_image
from emlab.methods.tsm_training import Trained
from emlab.models import build

MODEL = {"kind": "unet", "widths": [8], "patch": 2, "embedding": 16}


def test_a_folder_is_restored_file_by_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Trained(build(MODEL).state_dict(), MODEL, {"kind": "score_matching"}, [], [])
    model.save(tmp_path / "mine.safetensors")
    raw = tmp_path / "raw"
    for number in range(10):
        counts = np.random.default_rng(number).poisson(100, (320, 320)).astype(np.float32)
        write_image(raw / f"{number}.mrc", counts, 2.63)
    command = ["emlab", "tsm", "denoise", raw, "--model", tmp_path / "mine.safetensors"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    unbroken = start([*command, whole])
    kill_at(start([*command, broken]), (broken / "0.mrc").exists)
    before = {path.name: path.read_bytes() for path in broken.glob("[0-9]*.mrc")}
    assert 1 <= len(before) < 10
    done, expected = run([*command, broken, "--resume"]), finish(unbroken)
    assert (done.returncode, expected.returncode) == (0, 0), done.stderr + expected.stderr
    assert f"{len(before)} were already there" in done.stdout
    for name, content in before.items():
        assert (broken / name).read_bytes() == content
    for number in range(10):
        made = [read_image(folder / f"{number}.mrc") for folder in (whole, broken)]
        assert np.array_equal(made[0].pixels, made[1].pixels)
        assert made[0].pixel_size_angstrom == made[1].pixel_size_angstrom == 2.63
