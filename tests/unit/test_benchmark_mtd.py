"""The E-step costs little more than its transforms, and its memory is bounded."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "mtd_estep.py"
BUSY_MACHINE = 6.0  # the benchmark's own bound is 4, on a machine with nothing else to do


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """The benchmark's text, numbers and exit status."""
    out = tmp_path_factory.mktemp("benchmark") / "numbers.json"
    command = [sys.executable, str(BENCHMARK), "--quick", "--json", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.stderr == ""
    return done.stdout, json.loads(out.read_text()), done.returncode


def test_the_table_has_a_line_for_every_case(quick):
    printed, numbers, _ = quick
    head, *lines = printed.splitlines()
    assert head.split()[:4] == ["L", "N", "dtype", "memory_mb"]
    assert [line.split()[:3] for line in lines[:3]] == [
        ["28", "308", "float32"],
        ["28", "924", "float32"],
        ["5", "55", "float32"],
    ]
    assert re.search(r"^N x 3: area x 9, time x \d", printed, re.MULTILINE)
    assert len(numbers["rows"]) == 3
    assert numbers["environment"]["threads"] == 1


def test_an_estep_costs_a_small_multiple_of_its_transforms(quick):
    printed, numbers, status = quick
    ratio = numbers["rows"][0]["ratio"]
    assert 1 < ratio < BUSY_MACHINE
    assert status == (0 if ratio <= numbers["bound"] else 4)
    assert ("kept" if status == 0 else "BROKEN") in printed


def test_memory_is_bounded_by_the_argument_on_a_field_nine_times_larger(quick):
    rows = quick[1]["rows"]
    if rows[1]["peak_mb"] is None:
        assert not Path("/proc/self/clear_refs").exists()
        return
    assert rows[1]["case"]["memory_mb"] == 8
    assert rows[1]["peak_mb"] < 5 * 8
