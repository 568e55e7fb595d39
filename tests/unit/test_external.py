"""Other programs are found where it is documented, run in their own process, and judged by it."""

import sys
from pathlib import Path

import numpy as np
import pytest

from emlab.errors import EmlabError, InputError
from emlab.external import relion, topaz
from emlab.external.process import run_program

# Stands in for Topaz: reads the command line as it does, picks the darkest pixel of each image.
FAKE = """
import sys
import mrcfile
import numpy as np
assert "radius" not in sys.argv
words = sys.argv[1:]
files = [word for word in words if word.endswith(".mrc")]
out = words[words.index("-o") + 1]
if words[0] == "extract":
    with open(out, "w") as stream:
        print("image_name\\tx_coord\\ty_coord\\tscore", file=stream)
        for name in files:
            image = mrcfile.read(name)
            assert abs(image.std() - 1) < 1e-3
            y, x = np.unravel_index(image.argmin(), image.shape)
            print(f"{name[:-4]}\\t{x}\\t{y}\\t-1.5", file=stream)
            print(f"{name[:-4]}\\t{x + 1}\\t{y}\\t2.5", file=stream)
else:
    for name in files:
        with mrcfile.new(out + "/" + name) as file:
            file.set_data(mrcfile.read(name) / 2)
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    (tmp_path / "topaz").mkdir()
    (tmp_path / "topaz" / "__init__.py").write_text("")
    (tmp_path / "topaz" / "main.py").write_text(FAKE)
    monkeypatch.setenv("EMLAB_TOPAZ", str(tmp_path))
    return tmp_path


def dark_at(y, x, shape=(40, 60)):
    image = np.random.default_rng(x).normal(size=shape).astype(np.float32) * 3 + 100
    image[y, x] = 0
    return image


def test_picks_come_back_with_their_micrographs_best_first(fake):
    found, done = topaz.pick([dark_at(5, 50), dark_at(30, 2)], 3)
    assert found[0].coordinates.tolist() == [[5, 51], [5, 50]]
    assert found[1].coordinates.tolist() == [[30, 3], [30, 2]]
    assert found[0].scores.tolist() == [2.5, -1.5]
    assert done.cpu_seconds > 0
    assert done.peak_memory_mb > 5


def test_denoised_images_keep_their_grey_levels(fake):
    image = dark_at(5, 50)
    (found,), _ = topaz.denoise([image])
    np.testing.assert_allclose(found, (image + image.mean()) / 2, rtol=1e-3)
    with pytest.raises(InputError, match="at least one"):
        topaz.denoise([])
    with pytest.raises(InputError, match="not constant"):
        topaz.denoise([np.ones((8, 8), np.float32)])


def test_absent_programs_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("EMLAB_TOPAZ", "EMLAB_RELION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(topaz, "_PLACE", Path("nowhere"))
    assert topaz.find() is None
    assert relion.find() is None
    assert relion.version() == ""
    with pytest.raises(InputError, match="make topaz"):
        topaz.pick([dark_at(5, 50)], 3)
    with pytest.raises(InputError, match="EMLAB_RELION"):
        relion.reconstruct(tmp_path / "a.star")


@pytest.mark.parametrize("module", [topaz, relion])
def test_a_wrong_place_is_an_error(module, tmp_path, monkeypatch):
    monkeypatch.setenv(module.VARIABLE, str(tmp_path))
    with pytest.raises(InputError, match="correct or unset"):
        module.find()


def test_a_failing_program_says_why(tmp_path):
    with pytest.raises(EmlabError, match="no such thing"):
        run_program([sys.executable, "-c", "import sys; sys.exit('no such thing')"], tmp_path)


@pytest.mark.posix
def test_a_program_that_relion_names_is_run_in_the_folder_of_its_star_file(tmp_path, monkeypatch):
    program = tmp_path / "relion_reconstruct"
    program.write_text(
        f"#!{sys.executable}\nimport sys, mrcfile, numpy as np\n"
        "lines = open(sys.argv[sys.argv.index('--i') + 1]).read()\n"
        "with mrcfile.new(sys.argv[sys.argv.index('--o') + 1]) as file:\n"
        "    file.set_data(np.full((4, 4, 4), len(lines), np.float32))\n"
        "    file.voxel_size = 2.5\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("EMLAB_RELION", str(tmp_path))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.star").write_text("seven..")
    volume, voxel, _ = relion.reconstruct(tmp_path / "in" / "a.star")
    assert volume.shape == (4, 4, 4)
    assert volume.max() == 7
    assert voxel == pytest.approx(2.5)
