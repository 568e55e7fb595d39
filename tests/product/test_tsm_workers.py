"""`emlab tsm denoise --workers`: micrographs through Dask's processes, the same as one by one."""

import mrcfile
import numpy as np
import pytest
import torch

from emlab.app import cli
from emlab.models import build
from emlab.recipes.tsm_own import Trained

MODEL = {"kind": "unet", "widths": [8], "patch": 2, "embedding": 16}


def test_workers_give_what_one_process_gives_and_are_resumed(tmp_path, monkeypatch, capsys):
    pytest.importorskip("dask")
    monkeypatch.setenv("EMLAB_THREADS", "1")
    torch.manual_seed(0)
    trained = Trained(build(MODEL).state_dict(), MODEL, {"kind": "score_matching"}, [], [])
    model = str(trained.save(tmp_path / "mine.safetensors"))
    names = ("grid 1/a.mrc", "grid 1/b.mrc", "grid 2/ä.mrc")
    for number, name in enumerate(names):
        path = tmp_path / "raw" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        counts = np.random.default_rng(number).poisson(100, (96, 80)).astype(np.float32)
        with mrcfile.new(path) as file:
            file.set_data(counts)
            file.voxel_size = 2.63

    def denoise(out, *options):
        words = ["tsm", "denoise", str(tmp_path / "raw"), str(tmp_path / out), "--model", model]
        return cli.main([*words, *options]), capsys.readouterr().out

    assert denoise("one")[0] == 0
    status, said = denoise("two", "--workers", "2")
    assert status == 0
    assert said.count("96 x 80 pixels") == len(names)
    for name in names:
        pair = [mrcfile.read(tmp_path / out / name) for out in ("one", "two")]
        np.testing.assert_allclose(*pair, atol=1e-3)
    (tmp_path / "two" / names[0]).unlink()
    status, said = denoise("two", "--workers", "2", "--resume")
    assert (status, "2 were already there" in said) == (0, True)
    assert (tmp_path / "two" / names[0]).is_file()
