"""kill -9 while a folder or a volume is restored: the rest is done later, and nothing twice."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from killing import environment, finish, kill_at, run, start

from emlab import weights
from emlab.io import read_image, write_image
from emlab.models import build
from emlab.recipes.tsm_own import Trained

MODEL = {"kind": "unet", "widths": [8], "patch": 2, "embedding": 16}
DEPTH = {"kind": "depth_unet", "widths": [8], "embedding": 16}


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


def test_a_volume_is_restored_block_by_block(tmp_path: Path) -> None:
    torch.manual_seed(0)
    card = dict.fromkeys(("recipe", "data", "split", "device", "commit", "limits"), "none")
    card |= {"steps": 0, "seconds": 0.0, "seed": 0, "evaluation": {}, "model": DEPTH}
    card |= {"objective": {"kind": "depth", "mean": 0.0, "std": 0.3}}
    weights.save("generalist_depth", build(DEPTH).state_dict(), card, tmp_path / "weights")
    noisy = np.random.default_rng(0).normal(100, 20, (16, 96, 96)).astype(np.float32)
    write_image(tmp_path / "in.mrc", noisy, 40.0)
    options = {"env": environment(EMLAB_WEIGHTS=str(tmp_path / "weights"))}
    command = ["emlab", "generalist", "denoise", tmp_path / "in.mrc", "--noise", 20, "--memory", 6]
    whole, broken = tmp_path / "whole.npy", tmp_path / "broken.npy"
    unbroken = start([*command, whole], **options)
    journal = tmp_path / ".broken.partial.npy.journal" / "journal.json"
    kill_at(start([*command, broken], **options), lambda: blocks_of(journal) >= 2)
    assert not broken.exists()
    again = run([*command, broken], **options)
    assert again.returncode == 2
    assert "add --resume" in again.stderr
    done, expected = run([*command, broken, "--resume"], **options), finish(unbroken)
    assert (done.returncode, expected.returncode) == (0, 0), done.stderr + expected.stderr
    assert broken.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob(".*"))


def blocks_of(journal: Path) -> int:
    return json.loads(journal.read_text())["written"] if journal.exists() else 0
