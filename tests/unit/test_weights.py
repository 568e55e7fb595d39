"""Weights: what is saved comes back, and nothing altered is ever used."""

import tomllib

import pytest
import torch

from emlab import weights
from emlab.app import cli
from emlab.errors import InputError, IntegrityError

FIELDS = {
    "recipe": "emlab train tiny --profile cpu",
    "data": "mnist_train_10k",
    "split": "train",
    "steps": 3,
    "seconds": 0.5,
    "device": "cpu",
    "seed": 0,
    "commit": "abc",
    "evaluation": {"loss": 0.25, "psnr_db": {"sigma 0.1": 30.5}},
    "limits": 'digits only, not "letters"',
    "model": {"kind": "mlp", "widths": [4, 8]},
    "objective": {"kind": "dsm", "ema": True},
    "note": "two\nlines",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("EMLAB_WEIGHTS", str(tmp_path))
    return tmp_path


def tensors():
    return {"w": torch.arange(6.0).reshape(2, 3).T, "step": torch.tensor(7)}


def test_saved_weights_come_back_with_their_card(folder):
    saved = weights.save("tiny", tensors(), FIELDS)
    loaded, card = weights.load("tiny")
    assert card == saved
    assert "tiny" in weights.names()
    assert {k: card.raw[k] for k in FIELDS} == FIELDS
    assert card.model["widths"] == [4, 8]
    assert card.evaluation["psnr_db"]["sigma 0.1"] == 30.5
    assert loaded.keys() == tensors().keys()
    assert all(
        torch.equal(loaded[k], t) and loaded[k].dtype == t.dtype for k, t in tensors().items()
    )
    assert sorted(p.name for p in folder.rglob("*") if p.is_file()) == [
        "tiny.safetensors",
        "tiny.toml",
    ]


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "remove"])
def test_damaged_file_is_refused(folder, damage):
    weights.save("tiny", tensors(), FIELDS)
    file = weights.path("tiny")
    content = bytearray(file.read_bytes())
    if damage == "remove":
        file.unlink()
    else:
        content[-1] ^= damage == "flip"
        file.write_bytes({"truncate": content[:-5], "flip": content, "empty": b""}[damage])
    with pytest.raises(IntegrityError, match="emlab train tiny --profile cpu"):
        weights.load("tiny")


def test_file_that_is_no_safetensors_is_refused_even_if_the_card_agrees(folder):
    import hashlib

    weights.save("tiny", tensors(), FIELDS)
    weights.path("tiny").write_bytes(b"pickle?")
    card = folder / "cards" / "tiny.toml"
    old = weights.card("tiny").sha256
    card.write_text(card.read_text().replace(old, hashlib.sha256(b"pickle?").hexdigest()))
    with pytest.raises(IntegrityError, match="not a safetensors"):
        weights.load("tiny")


@pytest.mark.parametrize("text", ["sha256 = ", 'sha256 = "x"\n'])
def test_broken_card_is_refused(folder, text):
    weights.save("tiny", tensors(), FIELDS)
    (folder / "cards" / "tiny.toml").write_text(text)
    with pytest.raises(IntegrityError, match="card"):
        weights.load("tiny")


@pytest.mark.parametrize("name", ["absent", "../tiny", "", "a/b"])
def test_unknown_name_says_what_there_is(folder, name):
    weights.save("tiny", tensors(), FIELDS)
    with pytest.raises(InputError, match=r"tiny|letters"):
        weights.load(name)


def test_incomplete_card_or_bad_tensor_leaves_nothing_behind(folder):
    without = {k: v for k, v in FIELDS.items() if k != "limits"}
    with pytest.raises(InputError, match="limits"):
        weights.save("tiny", tensors(), without)
    with pytest.raises(InputError, match="w is not finite"):
        weights.save("tiny", {"w": torch.tensor([1.0, float("nan")])}, FIELDS)
    with pytest.raises(InputError, match=r"evaluation\.loss"):
        weights.save("tiny", tensors(), {**FIELDS, "evaluation": {"loss": float("nan")}})
    assert not list(folder.rglob("*.*"))


def test_failed_second_save_keeps_the_first(folder):
    weights.save("tiny", tensors(), FIELDS)
    with pytest.raises(InputError):
        weights.save("tiny", {"w": torch.tensor([float("inf")])}, FIELDS)
    assert torch.equal(weights.load("tiny")[0]["w"], tensors()["w"])


def test_a_card_says_what_was_put_into_it(folder):
    told = {
        "text": 'quote " slash \\ tab \t é \x7f',
        "numbers": [1, -2.5, 1e-300, 1e22],
        "flag": False,
        "odd key": {"deep.er": {"x": 1}, "plain": "v"},
        "empty": {},
    }
    weights.save("tiny", tensors(), {**FIELDS, **told})
    assert {key: weights.card("tiny").raw[key] for key in told} == told
    with pytest.raises(InputError, match=r"a card cannot hold note = None"):
        weights.save("tiny", tensors(), {**FIELDS, "note": None})


@pytest.mark.parametrize(
    "name", weights.names() or [pytest.param("", marks=pytest.mark.skip("none"))]
)
def test_every_packaged_checkpoint_loads(name):
    loaded, card = weights.load(name)
    assert loaded
    assert card.recipe.startswith("emlab train")
    assert weights.path(name).stat().st_size <= weights.MAX_PACKAGED_BYTES


def test_packaged_weights_fit_and_none_lacks_a_card():
    files = list((weights.PACKAGED / "files").glob("*.safetensors"))
    cards = {p.stem for p in (weights.PACKAGED / "cards").glob("*.toml")}
    assert {f.stem for f in files} == cards
    assert sum(f.stat().st_size for f in files) <= 64 * 10**6


def test_command_line_lists_describes_verifies_and_locates(folder, capsys):
    def run(*words):
        code = cli.main(["weights", *words])
        return code, *capsys.readouterr()

    weights.save("tiny", tensors(), FIELDS)
    code, out, _ = run("list")
    assert code == 0
    assert any(line.startswith("tiny ") for line in out.splitlines())
    card = tomllib.loads(run("card", "tiny")[1])
    assert card["limits"] == FIELDS["limits"]
    assert run("path", "tiny")[1] == f"{weights.path('tiny')}\n"
    assert run("verify", "tiny")[1].startswith("ok      tiny (2 tensors")
    weights.path("tiny").write_bytes(b"")
    code, out, err = run("verify", "tiny")
    assert code == 3
    assert out.startswith("FAILED  ")
    assert err.startswith("emlab: error: 1 of 1 failed")
    code, _, err = run("card", "absent")
    assert code == 2
    assert err.startswith("emlab: error: no weights are called 'absent'")


@pytest.mark.parametrize("command", ["list", "card", "verify", "path"])
def test_help_teaches_with_an_example(capsys, command):
    assert cli.main(["weights", command, "--help"]) == 0
    assert f"emlab weights {command}" in capsys.readouterr().out
