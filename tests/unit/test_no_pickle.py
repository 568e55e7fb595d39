"""Weights and data are numbers: nothing that could run a program is ever unpickled."""

from __future__ import annotations

import hashlib
import pickle
import re
from pathlib import Path

import pytest
import tomli_w
import torch

from emlab import weights
from emlab.errors import EmlabError
from emlab.recipes.cellpose3_authors import import_released
from emlab.recipes.tsm_own import load_trained
from emlab.training import TrainingConfig
from emlab.training.state import State

SOURCES = sorted((Path(__file__).resolve().parents[2] / "src").rglob("*.py"))
FORBIDDEN = (
    r"Unpickler|\b(pickle|cloudpickle|dill|joblib|shelve|marshal)\.(loads?|open)\(",
    r"allow_pickle=(?!False)",
    r"torch\.load\((?![^)]*weights_only=True)",
    r"np\.load\((?![^)]*allow_pickle=False)",
)


class Program:
    """What somebody hides in a pickle."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return pytest.fail, ("a pickle was loaded",)


@pytest.mark.parametrize("pattern", FORBIDDEN)
def test_no_source_loads_pickles(pattern: str) -> None:
    assert len(SOURCES) > 150
    found = [str(path) for path in SOURCES if re.search(pattern, path.read_text(), re.M)]
    assert found == []


def test_patterns_notice_what_they_forbid() -> None:
    lines = ("pickle.load(f)", "np.load(f, allow_pickle=True)", "torch.load(f)", "np.load(f)")
    for pattern, line in zip(FORBIDDEN, lines, strict=True):
        assert re.search(pattern, line, re.M)


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    path = tmp_path / "files" / "trap.safetensors"
    path.parent.mkdir()
    path.write_bytes(pickle.dumps(Program()))
    return path


def test_a_pickle_among_the_weights_is_refused(
    trap: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if its card has the right hash."""
    card = dict.fromkeys(("recipe", "data", "split", "device", "commit", "limits"), "none")
    card |= {"steps": 0, "seconds": 0.0, "seed": 0, "evaluation": {}, "model": {}}
    card |= {"objective": {}, "sha256": hashlib.sha256(trap.read_bytes()).hexdigest()}
    (tmp_path / "cards").mkdir()
    (tmp_path / "cards" / "trap.toml").write_text(tomli_w.dumps(card))
    monkeypatch.setenv("EMLAB_WEIGHTS", str(tmp_path))
    with pytest.raises(EmlabError, match="not a safetensors file"):
        weights.load("trap")


def test_a_pickle_as_checkpoint_is_refused(trap: Path) -> None:
    state = State(torch.nn.Linear(2, 2), TrainingConfig(steps=1))
    with pytest.raises(EmlabError, match="cannot be read"):
        state.load(trap)


def test_a_pickle_as_trained_denoiser_is_refused(trap: Path) -> None:
    with pytest.raises(EmlabError):
        load_trained(trap, torch.device("cpu"))


def test_a_program_in_a_released_network_is_refused(trap: Path, tmp_path: Path) -> None:
    torch.save({"weight": Program()}, trap)
    with pytest.raises(EmlabError) as caught:
        import_released(trap, "cellpose3_denoise", tmp_path / "released")
    assert "\n" not in str(caught.value)


def test_a_card_that_a_killed_program_left_is_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cards").mkdir()
    (tmp_path / "cards" / ".x1y2.tmp.toml").touch()
    monkeypatch.setenv("EMLAB_WEIGHTS", str(tmp_path))
    assert not [name for name in weights.names() if name.startswith(".")]
