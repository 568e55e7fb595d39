"""`emlab tsm train|denoise`: files and folders in and out, headers kept, bad input refused."""

from functools import partial

import mrcfile
import numpy as np
import pytest
import torch

from emlab.io import write_image
from emlab.models import build
from emlab.recipes.tsm_own import Trained

MODEL = {"kind": "unet", "widths": [8], "patch": 2, "embedding": 16}


@pytest.fixture
def emlab(command_line, monkeypatch):
    """Run a command line on one thread; returns (exit status, stdout, stderr)."""
    monkeypatch.setenv("EMLAB_THREADS", "1")

    return partial(command_line, "tsm")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    objective = {"kind": "score_matching"}
    trained = Trained(build(MODEL).state_dict(), MODEL, objective, [], [])
    return trained.save(tmp_path_factory.mktemp("model") / "mine.safetensors")


def micrograph(path, seed=0, extended=b"", size=2.63):
    """Counts of 100 electrons a pixel with a slow change of brightness."""
    generator = np.random.default_rng(seed)
    rows = np.linspace(0, 3, 96)[:, None]
    counts = generator.poisson(100 + 5 * np.sin(rows) * np.ones((96, 80))).astype(np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    with mrcfile.new(path, overwrite=True) as file:
        file.set_data(counts)
        file.voxel_size = size
        if extended:
            file.set_extended_header(np.frombuffer(extended, dtype="V1"))
            file.header.exttyp = b"SERI"
    return counts


def test_one_file_keeps_its_header(emlab, tmp_path, model):
    counts = micrograph(tmp_path / "in.mrc", extended=b"tilt 0.5")
    status, out, _ = emlab("denoise", tmp_path / "in.mrc", tmp_path / "out.mrc", "--model", model)
    assert status == 0
    assert "96 x 80 pixels of 2.63 A" in out
    with mrcfile.open(tmp_path / "out.mrc") as file:
        assert file.extended_header.tobytes() == b"tilt 0.5"
        assert float(file.voxel_size.x) == pytest.approx(2.63)
        assert file.data.std() < 0.7 * counts.std()
        assert file.data.mean() == pytest.approx(counts.mean(), rel=0.01)


def test_protein_that_is_bright_stays_bright(emlab, tmp_path, model):
    counts = micrograph(tmp_path / "dark.mrc")
    write_image(tmp_path / "bright.mrc", -counts, 2.63)
    for name, options in (("dark", ()), ("bright", ("--invert",))):
        source, target = tmp_path / f"{name}.mrc", tmp_path / f"{name}_out.mrc"
        assert emlab("denoise", source, target, "--model", model, *options)[0] == 0
    with (
        mrcfile.open(tmp_path / "dark_out.mrc") as a,
        mrcfile.open(tmp_path / "bright_out.mrc") as b,
    ):
        np.testing.assert_allclose(a.data, -b.data, atol=1e-3)


def test_folder_keeps_its_structure_and_is_resumed(emlab, tmp_path, model):
    for number, name in enumerate(("a/one.mrc", "b/two.mrc")):
        micrograph(tmp_path / "raw" / name, number)
    out = tmp_path / "clean"
    assert emlab("denoise", tmp_path / "raw", out, "--model", model)[0] == 0
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*.mrc")) == [
        "a/one.mrc",
        "b/two.mrc",
    ]
    status, _, err = emlab("denoise", tmp_path / "raw", out, "--model", model)
    assert status == 2
    assert "--resume" in err
    (out / "a" / "one.mrc").unlink()
    kept = (out / "b" / "two.mrc").stat().st_mtime_ns
    status, said, _ = emlab("denoise", tmp_path / "raw", out, "--model", model, "--resume")
    assert status == 0
    assert "1 were already there" in said
    assert (out / "a" / "one.mrc").is_file()
    assert (out / "b" / "two.mrc").stat().st_mtime_ns == kept


def test_star_file_is_kept_beside_the_results(emlab, tmp_path, model):
    micrograph(tmp_path / "MotionCorr" / "one.mrc")
    star = tmp_path / "micrographs.star"
    star.write_text("data_micrographs\n\nloop_\n_rlnMicrographName #1\nMotionCorr/one.mrc\n")
    assert emlab("denoise", star, tmp_path / "out", "--model", model)[0] == 0
    assert (tmp_path / "out" / "MotionCorr" / "one.mrc").is_file()
    assert (tmp_path / "out" / "micrographs.star").read_text() == star.read_text()


def test_training_on_own_micrographs(emlab, tmp_path):
    micrograph(tmp_path / "one.mrc")
    mine = tmp_path / "mine.safetensors"
    common = "--profile", "smoke", "--steps", "2"
    status, out, _ = emlab("train", tmp_path / "one.mrc", mine, *common)
    assert status == 0
    assert "learned from 1 micrographs" in out
    assert not mine.with_suffix(".checkpoint").exists()
    status, _, _ = emlab("denoise", tmp_path / "one.mrc", tmp_path / "x.tif", "--model", mine)
    assert status == 0


def test_bad_input_is_refused_in_one_line(emlab, tmp_path, model):
    micrograph(tmp_path / "one.mrc")
    micrograph(tmp_path / "unsized.mrc", size=0.0)
    micrograph(tmp_path / "fine.mrc", size=1.0)
    write_image(tmp_path / "stack.mrc", np.stack([np.eye(64, dtype=np.float32)] * 3), 2.63)
    flat = write_image(tmp_path / "flat.mrc", np.ones((64, 64, 64), np.float32), 2.63)
    one, out = tmp_path / "one.mrc", tmp_path / "out.mrc"
    mine = tmp_path / "m.safetensors"
    for words, said in (
        (("denoise", one), "where the result goes"),
        (("denoise", tmp_path / "absent.mrc", out), "no file"),
        (("denoise", one, one, "--model", model), "the input itself"),
        (("denoise", tmp_path / "unsized.mrc", out, "--model", model), "pixel size"),
        (("denoise", tmp_path / "stack.mrc", out, "--model", model), "one micrograph"),
        (("denoise", one, out, "--model", "nobody"), "no weights are called"),
        (("denoise", one, out, "--model", model, "--noise", "-1"), "positive"),
        (("denoise", one, out, "--model", model, "--pixel-size", "0"), "positive"),
        (("denoise", one, tmp_path / "out.xyz", "--model", model), "no name of an image"),
        (("train", one, out), ".safetensors"),
        (("train", one, tmp_path / "fine.mrc", mine), "one size"),
        (("train", one, mine, "--reference", flat), "--defocus"),
        (("train", one, mine, "--reference", flat, "--defocus", "15000"), "empty"),
    ):
        status, _, err = emlab(*words)
        assert status == 2, words
        assert said in err
        assert len(err.strip().splitlines()) == 1
    assert not out.exists()


def test_a_reference_guides_or_says_that_it_does_not_fit(emlab, tmp_path, model):
    pytest.importorskip("torch_fourier_slice")
    micrograph(tmp_path / "in.mrc")
    volume = np.random.default_rng(0).normal(size=(32, 32, 32)).astype(np.float32)
    write_image(tmp_path / "map.mrc", volume, 2.63)
    words = "denoise", tmp_path / "in.mrc", tmp_path / "out.mrc", "--model", model, "--reference"
    status, _, error = emlab(*words, tmp_path / "map.mrc")
    assert status != 0
    assert "give --defocus" in error
    status, _, error = emlab(*words, tmp_path / "none.mrc", "--defocus", 15000)
    assert status != 0
    assert "there is no file" in error
    status, out, _ = emlab(*words, tmp_path / "map.mrc", "--defocus", 15000)
    assert status == 0
    assert "it was not used" in out
