"""Networks of cellpose 3 give the same answers here as there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from emlab import weights
from emlab.app.commands.stores import weights_app as app
from emlab.errors import InputError
from emlab.methods.cellpose3 import load_segmenter
from emlab.models import build
from emlab.recipes.cellpose3_authors import converted, import_released

FIXTURE = Path(__file__).parents[1] / "fixtures" / "cellpose_oracle.npz"


@pytest.fixture(scope="module")
def oracle() -> dict[str, np.ndarray]:
    with np.load(FIXTURE) as file:
        return {name: file[name] for name in file.files if name.startswith("net")}


@pytest.fixture
def state(oracle: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix("net."): torch.from_numpy(value)
        for name, value in oracle.items()
        if name.startswith("net.")
    }


def test_answer_is_that_of_cellpose(oracle: dict, state: dict) -> None:
    model, tensors = converted(state)
    assert model == {"kind": "residual_unet", "widths": [3, 4], "outputs": 3, "channels": 2}
    network = build(model).eval()
    network.load_state_dict(tensors)
    with torch.no_grad():
        answer = network(torch.from_numpy(oracle["net_image"]))
    np.testing.assert_allclose(answer.numpy(), oracle["net_answer"], atol=1e-4)


def test_imported_file_is_loaded_like_shipped_weights(
    state: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(state, tmp_path / "nuclei")
    out = tmp_path / "released"
    arguments = ["import-cellpose", str(tmp_path / "nuclei"), "authors", "--out", str(out)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    monkeypatch.setenv("EMLAB_WEIGHTS", str(out))
    assert "authors" in weights.names()
    assert load_segmenter("authors").channels == 2


def test_other_files_are_refused(state: dict, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file"):
        import_released(tmp_path / "absent", "x", tmp_path)
    (tmp_path / "text").write_text("not a network")
    with pytest.raises(InputError, match="torch file"):
        import_released(tmp_path / "text", "x", tmp_path)
    torch.save([1, 2], tmp_path / "list")
    with pytest.raises(InputError, match="no state"):
        import_released(tmp_path / "list", "x", tmp_path)
    with pytest.raises(InputError, match="not part of"):
        converted({**state, "head.weight": torch.zeros(1)})
    del state["output.2.weight"]
    with pytest.raises(InputError, match="lacks parts"):
        converted(state)
