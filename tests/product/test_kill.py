"""kill -9 in the middle of long work: the same command ends with the result of an unbroken run."""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path

import killing
import nbformat
from killing import finish, kill_at, run, start

ROOT = Path(__file__).resolve().parents[2]

# Training

TRAINING = """
import sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from emlab.training import TrainingConfig, train

folder = Path(sys.argv[1])
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.Tanh(), torch.nn.Linear(64, 16))
images = torch.randn(200, 16, generator=torch.Generator().manual_seed(1))

def loss(model, batch, generator):
    noisy = batch + torch.randn(batch.shape, generator=generator)
    return (model(noisy) - batch).square().mean()

config = TrainingConfig(steps=250, batch_size=8, checkpoint_every_seconds=0, evaluate_every=50)
result = train(model, loss, images, config, checkpoint=folder / "run.checkpoint", resume=True,
               evaluate=lambda m: {"norm": float(m[0].weight.norm())}, progress=False)
save_file(result.weights, folder / "weights.safetensors")
print([(entry["step"], entry["loss"], entry["norm"]) for entry in result.history])
"""


def test_training_is_killed_while_it_writes_a_checkpoint(tmp_path: Path) -> None:
    """Twice: each run goes on from the last checkpoint that was whole."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
    unbroken = start([sys.executable, "-c", TRAINING, whole])
    checkpoint = broken / "run.checkpoint"
    for _ in range(2):
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        kill_at(
            start([sys.executable, "-c", TRAINING, broken]),
            functools.partial(writing_again, checkpoint, before),
        )
        assert not (broken / "weights.safetensors").exists()
        for left in broken.glob(".*"):
            left.unlink()
    done, expected = run([sys.executable, "-c", TRAINING, broken]), finish(unbroken)
    assert (done.returncode, expected.returncode) == (0, 0), done.stderr + expected.stderr
    assert done.stdout == expected.stdout
    made = [(folder / "weights.safetensors").read_bytes() for folder in (whole, broken)]
    assert made[0] == made[1]


def writing_again(checkpoint: Path, before: int) -> bool:
    """A checkpoint of this run is whole, and the next is half written."""
    newer = checkpoint.exists() and checkpoint.stat().st_mtime_ns > before
    return newer and any(checkpoint.parent.glob(".*"))


# Chapters

CHAPTER = """
import os, pathlib, time
from emlab.bench import Report
started = pathlib.Path(OUT_DIR, "started")
first = not started.exists()
started.write_text(str(os.getpid()))
report = Report("00_tiny", OUT_DIR, PROFILE, SEED, "cpu")
report.value("error", 0.4)
time.sleep(600 if first else 0)
report.save()
"""


def test_a_chapter_is_run_again_and_nothing_of_the_killed_one_goes_on(tmp_path: Path) -> None:
    notebook = nbformat.v4.new_notebook()
    parameters = 'PROFILE = "cpu"\nSEED = 0\nDEVICE = "auto"\nOUT_DIR = "runs"'
    notebook.cells = [nbformat.v4.new_code_cell(code) for code in (parameters, CHAPTER.strip())]
    notebook.cells[0].metadata["tags"] = ["parameters"]
    folder, out = tmp_path / "notebooks", tmp_path / "out"
    folder.mkdir()
    nbformat.write(notebook, folder / "00_tiny.ipynb")
    command = ["emlab", "run", "00", "--notebooks", folder, "--out", out, "--profile", "smoke"]
    mark = out / "started"
    kill_at(start(command), lambda: mark.exists() and bool(mark.read_text()))
    kernel = int(mark.read_text())
    killing.wait_until(lambda: not killing.is_alive(kernel))
    assert not (out / "00_tiny" / "metrics.json").exists()
    done = run(command)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((out / "00_tiny" / "metrics.json").read_text())
    assert metrics["values"]["error"]["value"] == 0.4
    assert not list((out / "00_tiny").glob(".*"))
