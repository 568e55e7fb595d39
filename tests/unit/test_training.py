"""Training: a run that was stopped and resumed is the run that was not."""

import errno
import os
import signal
import threading
import warnings
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from emlab.errors import EmlabError, InputError, IntegrityError
from emlab.models import UNet
from emlab.priors.objectives import EpsilonMatching
from emlab.training import TrainingConfig, loop, train

CONFIG = TrainingConfig(20, 4, 1e-2, 3, precision="float32", evaluate_every=7, seed=5)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def images():
    return torch.rand(12, 6, 6, generator=torch.Generator().manual_seed(0))


def network(**arguments):
    torch.manual_seed(1)
    return UNet(widths=(8, 16), embedding=16, **{"dropout": 0.2, **arguments})


def noise_level_loss(at_step=None, then=None):
    """The loss of the recipes; at its `at_step`-th call it first does what `then` says."""
    objective, calls = EpsilonMatching(mean=0.5, std=0.3), []

    def loss(model, batch, generator):
        calls.append(1)
        if len(calls) == at_step:
            then()
        return objective(model, batch, generator)

    return loss


def evaluate(model):
    assert not model.training
    return {"first_weight": next(model.parameters()).flatten()[0].item()}


def run(loss=None, config=CONFIG, model=None, **arguments):
    model = network() if model is None else model
    result = train(
        model,
        noise_level_loss() if loss is None else loss,
        images(),
        config,
        **{"evaluate": evaluate, "progress": False, **arguments},
    )
    return model, result


def kill(number):
    return lambda: os.kill(os.getpid(), number)


def crash():
    raise RuntimeError("power cut")


def assert_same(first, second):
    """Weights, averages and history agree bit for bit; only the clock may differ."""
    for one, other in (
        (first[0].state_dict(), second[0].state_dict()),
        (first[1].weights, second[1].weights),
    ):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    for one, other in zip(first[1].history, second[1].history, strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.posix
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path, number):
    file = tmp_path / "new" / "run.checkpoint"
    with pytest.raises(KeyboardInterrupt, match="after step 9"):
        run(noise_level_loss(9, kill(number)), checkpoint=file)
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    assert_same(run(), run(checkpoint=file, resume=True))


def test_crashed_run_continues_from_its_last_checkpoint(tmp_path):
    file, config = tmp_path / "run.checkpoint", replace(CONFIG, checkpoint_every_seconds=0)
    with pytest.raises(RuntimeError, match="power cut"):
        run(noise_level_loss(16, crash), config, checkpoint=file)
    assert_same(run(config=config), run(config=config, checkpoint=file, resume=True))


def test_finished_run_resumes_to_its_result_without_a_step(tmp_path):
    file = tmp_path / "run.checkpoint"
    first = run(checkpoint=file)
    assert_same(first, run(noise_level_loss(1, crash), checkpoint=file, resume=True))


def test_without_resume_a_checkpoint_is_not_read(tmp_path):
    file = tmp_path / "run.checkpoint"
    file.write_bytes(b"garbage")
    assert_same(run(), run(checkpoint=file))


def test_same_seed_same_result_whatever_the_global_generator():
    first = run()
    torch.manual_seed(99)
    model = network()
    torch.manual_seed(100)
    before = torch.get_rng_state()
    second = run(model=model)
    assert torch.equal(torch.get_rng_state(), before)
    assert_same(first, second)
    other = run(config=replace(CONFIG, seed=6))
    assert other[1].history[0]["loss"] != first[1].history[0]["loss"]


@pytest.mark.parametrize("keep", [0, 5, 200, 0.5, -1])
def test_truncated_checkpoint_is_an_integrity_error(tmp_path, keep):
    file = tmp_path / "run.checkpoint"
    run(config=replace(CONFIG, steps=1), checkpoint=file)
    content = file.read_bytes()
    file.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(IntegrityError, match=r"run\.checkpoint cannot be read"):
        run(config=replace(CONFIG, steps=1), checkpoint=file, resume=True)


@pytest.mark.parametrize("metadata", [None, {"progress": '{"step": 3}'}, {"progress": "{"}])
def test_file_that_is_no_checkpoint_is_an_integrity_error(tmp_path, metadata):
    file = tmp_path / "run.checkpoint"
    save_file({"w": torch.zeros(2)}, file, metadata=metadata)
    with pytest.raises(IntegrityError, match="delete it"):
        run(checkpoint=file, resume=True)


@pytest.mark.parametrize("change", [{"seed": 6}, {"steps": 21}, {"learning_rate": 2e-2}])
def test_checkpoint_of_another_configuration_is_refused(tmp_path, change):
    file = tmp_path / "run.checkpoint"
    run(checkpoint=file)
    content = file.read_bytes()
    with pytest.raises(InputError, match="another configuration"):
        run(config=replace(CONFIG, **change), checkpoint=file, resume=True)
    assert file.read_bytes() == content


def test_checkpoint_of_another_network_is_refused(tmp_path):
    file = tmp_path / "run.checkpoint"
    run(checkpoint=file)
    wider = UNet(widths=(16, 16), embedding=16)
    with pytest.raises(InputError, match="another network"):
        run(model=wider, checkpoint=file, resume=True)


def test_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    file, config = tmp_path / "run.checkpoint", replace(CONFIG, checkpoint_every_seconds=0)
    write, writes = Path.write_bytes, []

    def fills_up(path, content):
        writes.append(path)
        if len(writes) < 9:
            return write(path, content)
        write(path, content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fills_up)
    with pytest.raises(EmlabError, match="no space left"):
        run(config=config, checkpoint=file)
    assert file not in writes
    assert list(tmp_path.iterdir()) == [file]
    monkeypatch.undo()
    assert_same(run(config=config), run(config=config, checkpoint=file, resume=True))


def test_weights_are_the_moving_average_of_the_steps():
    seen = []

    def loss(model, batch, _generator):
        seen.append(model.weight.detach().clone())
        return (model(batch.flatten(1)) - 1).square().mean()

    config = TrainingConfig(steps=30, batch_size=4, warmup_steps=0, ema_decay=0.6)
    model, result = run(loss, config, nn.Linear(36, 1), evaluate=None)
    average = seen[0]
    for step, current in enumerate([*seen[1:], model.weight.detach()]):
        decay = min(0.6, (step + 1) / (step + 10))
        average = decay * average + (1 - decay) * current
    torch.testing.assert_close(result.weights["weight"], average)
    assert not torch.allclose(average, model.weight)


def test_evaluation_sees_the_average_and_cannot_disturb_the_training():
    def vandal(model):
        vandal.last = {name: value.clone() for name, value in model.state_dict().items()}
        for parameter in model.parameters():
            parameter.requires_grad_(False).fill_(7.0)
        torch.manual_seed(0)
        return {}

    plain, disturbed = run(evaluate=None), run(evaluate=vandal)
    assert_same(plain, disturbed)
    assert all(torch.equal(vandal.last[n], v) for n, v in disturbed[1].weights.items())


def test_average_keeps_integer_buffers():
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.BatchNorm1d(8))
    loss = lambda model, batch, _: (model(batch) - 1).square().mean()  # noqa: E731
    _, result = run(loss, model=model, evaluate=None)
    assert result.weights["2.num_batches_tracked"] == CONFIG.steps


def test_history_holds_the_mean_loss_since_the_last_entry():
    losses = []

    def loss(model, batch, generator):
        value = EpsilonMatching(mean=0.5, std=0.3)(model, batch, generator)
        losses.append(value.item())
        return value

    _, result = run(loss)
    assert [entry["step"] for entry in result.history] == [7, 14, 20]
    parts = losses[:7], losses[7:14], losses[14:]
    means = [sum(part) / len(part) for part in parts]
    assert [entry["loss"] for entry in result.history] == pytest.approx(means, rel=1e-12)


def test_learning_rate_warms_up_then_falls_to_zero():
    config = TrainingConfig(steps=100, warmup_steps=10, learning_rate=0.5)
    rates = [config.learning_rate_at(step) for step in range(101)]
    assert rates[:10] == pytest.approx([0.05 * (step + 1) for step in range(10)])
    assert rates[10] == 0.5
    assert all(after < before for before, after in pairwise(rates[10:]))
    assert rates[100] == pytest.approx(0, abs=1e-12)


def test_first_step_is_of_the_warm_up_size():
    model = nn.Linear(36, 1)
    before = model.weight.detach().clone()
    config = TrainingConfig(steps=1, learning_rate=0.1, warmup_steps=10, batch_size=4)
    loss = lambda model, batch, _: model(batch.flatten(1)).mean()  # noqa: E731
    run(loss, config, model, evaluate=None)
    moved = (model.weight - before).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 0.01), rtol=1e-4, atol=0)


@pytest.mark.parametrize(("scale", "expected"), [(1e6, 0.25), (1e-3, None)])
def test_gradient_is_clipped_only_when_it_is_long(scale, expected):
    model, config = nn.Linear(36, 1, bias=False), replace(CONFIG, steps=1, gradient_clip=0.25)
    means = []

    def loss(model, batch, _generator):
        means.append(batch.flatten(1).mean(0))
        return scale * model(batch.flatten(1)).mean()

    run(loss, config, model, evaluate=None)
    if expected is None:
        expected = scale * means[0].norm().item()
    assert model.weight.grad.norm().item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("bad", ["loss", "gradient", "image"])
def test_divergence_is_one_clear_error_and_the_checkpoint_stays_good(tmp_path, bad):
    file, calls = tmp_path / "run.checkpoint", []
    config = replace(CONFIG, checkpoint_every_seconds=0)

    def loss(model, batch, generator):
        calls.append(1)
        if len(calls) == 5 and bad == "image":
            batch = torch.full_like(batch, float("inf"))
        value = EpsilonMatching(mean=0.5, std=0.3)(model, batch, generator)
        if len(calls) == 5 and bad == "loss":
            value = value * float("nan")
        if len(calls) == 5 and bad == "gradient":
            value = value + (value - value.detach()).sqrt()
        return value

    model = network()
    with pytest.raises(EmlabError, match=r"diverged at step 4.*learning_rate"):
        run(loss, config, model, checkpoint=file)
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert_same(run(config=config), run(config=config, checkpoint=file, resume=True))


def test_augmentation_draws_from_the_step_generator():
    def brighten(batch, generator):
        return batch + torch.rand(len(batch), 1, 1, generator=generator)

    assert_same(run(augment=brighten), run(augment=brighten))
    assert run(augment=brighten)[1].history != run()[1].history


@pytest.mark.filterwarnings("ignore:bfloat16 is slow")
def test_bfloat16_learns_too():
    config = replace(CONFIG, precision="bfloat16", steps=40, evaluate_every=10)
    history = run(config=config)[1].history
    assert history[-1]["loss"] < history[0]["loss"]


@pytest.mark.parametrize(("fast", "used"), [(True, "bfloat16"), (False, "float32")])
def test_the_machine_chooses_the_precision(monkeypatch, fast, used):
    """Without the instructions for bfloat16 a step takes many times as long in it."""
    monkeypatch.setattr(loop, "has_fast_bfloat16", lambda device: fast)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chosen, told = (
            run(config=replace(CONFIG, precision=precision)) for precision in ("auto", used)
        )
    assert chosen[1].precision == told[1].precision == used
    assert_same(chosen, told)


def test_slow_bfloat16_is_said(monkeypatch):
    monkeypatch.setattr(loop, "has_fast_bfloat16", lambda device: False)
    with pytest.warns(UserWarning, match=r"bfloat16 is slow on this cpu.*20 times.*auto"):
        result = run(config=replace(CONFIG, precision="bfloat16", steps=2))[1]
    assert result.precision == "bfloat16"


def test_runs_outside_the_main_thread():
    results = []
    thread = threading.Thread(target=lambda: results.append(run()))
    thread.start()
    thread.join()
    assert_same(run(), results[0])


def test_signal_handlers_are_given_back():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    run(config=replace(CONFIG, steps=1))
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_silence_and_progress(capsys):
    run()
    assert capsys.readouterr() == ("", "")
    run(progress=True)
    out, err = capsys.readouterr()
    assert "first_weight" in out
    assert "20/20" in err


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 0},
        {"batch_size": 0},
        {"learning_rate": 0.0},
        {"gradient_clip": -1.0},
        {"ema_decay": 1.0},
        {"precision": "float16"},
        {"warmup_steps": -1},
        {"evaluate_every": -1},
        {"seed": -1},
    ],
)
def test_impossible_configuration_is_refused(change):
    with pytest.raises(InputError, match=next(iter(change))):
        TrainingConfig(**{**asdict(CONFIG), **change})


def test_no_images_is_an_input_error():
    with pytest.raises(InputError, match="no images"):
        train(network(), noise_level_loss(), torch.empty(0, 6, 6), CONFIG)
