"""Training under a launcher: two processes are one run."""

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from emlab.training import TrainingConfig, train

pytestmark = pytest.mark.posix  # torchrun and gloo
SCRIPT = """
import os, signal, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from torch import nn
from emlab.errors import EmlabError, InputError
from emlab.models import UNet
from emlab.priors.objectives import EpsilonMatching
from emlab.training import TrainingConfig, train

torch.set_num_threads(1)
out, rank = Path(sys.argv[1]), int(os.environ["RANK"])
objective = EpsilonMatching(mean=0.5, std=0.3)
images = torch.rand(12, 6, 6, generator=torch.Generator().manual_seed(0))
config = TrainingConfig(
    steps=12, batch_size=8, warmup_steps=2, learning_rate=1e-2, evaluate_every=4
)

def run(name, loss=objective, model=None, images=images, config=config, keep=True, **arguments):
    torch.manual_seed(rank)  # the processes start apart
    model = model or UNet(widths=(8,), embedding=16, dropout=0.2)
    file = out / f"{name}.checkpoint" if keep else None
    result = train(model, loss, images, config, checkpoint=file, progress=False, **arguments)
    assert result.rank == rank
    assert bool(result.history) == (rank == 0)
    save_file(model.state_dict() | {f"average.{n}": v for n, v in result.weights.items()},
              out / f"{name}.{rank}.safetensors")
    return result

calls = 0
def interrupted(model, batch, generator):
    global calls
    calls += 1
    if rank == 1 and calls == 5:
        os.kill(os.getpid(), signal.SIGTERM)
    return objective(model, batch, generator)

def diverging(model, batch, generator):
    return objective(model, batch, generator) * (float("nan") if rank == 1 else 1)

history = run("whole").history
assert rank or history[-1]["loss"] < history[0]["loss"], history
try:
    run("stopped", interrupted)
    raise SystemExit("the signal was lost")
except KeyboardInterrupt as stop:
    assert "after step 5" in str(stop)
run("stopped", resume=True)

for wrong, loss, batch in ((InputError, objective, 7), (EmlabError, diverging, 8)):
    try:
        run("wrong", loss, config=TrainingConfig(steps=2, batch_size=batch), keep=False)
        raise SystemExit(f"no {wrong}")
    except wrong:
        pass

one_image = images[:1].expand(2, -1, -1)
regress = lambda model, batch, _: (model(batch.flatten(1)) - 1).square().mean()
torch.manual_seed(rank)
run("plain", regress, nn.Linear(36, 1), one_image)
"""

LAUNCHER = ("torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1")
LAUNCHER += ("--nproc-per-node", "2")


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """Folder and standard error of the script under ``torchrun``."""
    folder = tmp_path_factory.mktemp("torchrun")
    (folder / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-m", *LAUNCHER, str(folder / "script.py")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    if sys.platform == "linux":
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    with subprocess.Popen(
        [*command, str(folder)], env=environment, stderr=subprocess.PIPE, text=True
    ) as launcher:
        try:
            _, errors = launcher.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            launcher.terminate()  # the launcher takes its processes with it
            raise
    assert launcher.returncode == 0, errors[-4000:]
    return folder, errors


def tensors(folder, name):
    return load_file(folder / f"{name}.0.safetensors"), load_file(folder / f"{name}.1.safetensors")


def assert_equal(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_both_processes_end_with_the_same_weights(launched):
    for name in ("whole", "stopped", "plain"):
        assert_equal(*tensors(launched[0], name))


def test_signal_to_one_process_stops_both_and_they_resume_bit_for_bit(launched):
    assert_equal(tensors(launched[0], "whole")[0], tensors(launched[0], "stopped")[0])


def test_only_the_first_process_writes_checkpoints(launched):
    names = {path.name for path in launched[0].glob("*.checkpoint")}
    assert names == {"whole.checkpoint", "stopped.checkpoint", "plain.checkpoint"}


def test_no_warning_about_the_process_group(launched):
    assert "destroy_process_group" not in launched[1]
    assert "Warning" not in launched[1]


def test_two_processes_average_to_what_one_computes(launched):
    image = torch.rand(12, 6, 6, generator=torch.Generator().manual_seed(0))[:1]
    torch.manual_seed(0)
    model = nn.Linear(36, 1)
    config = TrainingConfig(
        steps=12, batch_size=8, warmup_steps=2, learning_rate=1e-2, evaluate_every=4
    )
    regress = lambda model, batch, _: (model(batch.flatten(1)) - 1).square().mean()  # noqa: E731
    result = train(model, regress, image, config, progress=False)
    both = tensors(launched[0], "plain")[0]
    torch.testing.assert_close(both["weight"], model.weight.detach())
    torch.testing.assert_close(both["average.weight"], result.weights["weight"])
