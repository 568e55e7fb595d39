"""What `make bench` measures becomes a table, a verdict and the costs in the book."""

import json
import tomllib

import pytest

pytest.importorskip("resource", reason="make bench is for POSIX systems")
from benchmarks import __main__ as bench
from benchmarks.measuring import Row, in_turn
from tools.book import costs

RATES = {"megapixels_per_second": 2.0, "operations_per_pixel": 1e5, "operations_per_second": 2e11}
ROWS = [
    Row("kept", "a / b", 2.0, "<= 4"),
    Row("generalist_depth_rate", "rate", 0.5, "", "one thread", RATES),
    Row("tsm_tsm_rate", "rate", 0.5, "", "one thread", RATES),
    Row("absent", "c / d", None, "<= 1", "not measured: no card"),
]


@pytest.fixture
def book(tmp_path, monkeypatch):
    """Root of a book beside which these rows were published."""
    (tmp_path / "book").mkdir()
    monkeypatch.setattr(bench, "PUBLISHED", tmp_path / "book" / "bench.toml")
    monkeypatch.setattr(bench, "PARTS", {"all": lambda: ROWS})
    assert bench.main(["--json", str(tmp_path / "bench.json"), "--publish"]) == 0
    return tmp_path


@pytest.mark.parametrize(
    ("ratio", "bound", "kept"),
    [
        (3.9, "<= 4", True),
        (4.1, "<= 4", False),
        (0.95, ">= 0.9", True),
        (0.8, ">= 0.9", False),
        (2.0, "", None),
        (None, "<= 4", None),
    ],
)
def test_verdicts_follow_the_bound(ratio, bound, kept):
    assert Row("name", "what", ratio, bound).kept is kept


def test_tasks_take_turns():
    done = []
    found = in_turn({name: lambda name=name: done.append(name) for name in "ab"}, 0.0)
    assert "".join(done) == "ab" * 4
    assert set(found) == {"a", "b"}


def test_a_broken_bound_is_the_status_of_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "PARTS", {"all": lambda: [Row("x", "a / b", 5.0, "<= 4")]})
    assert bench.main(["--json", str(tmp_path / "bench.json")]) == bench.REGRESSED
    assert "BROKEN" in capsys.readouterr().out
    assert json.loads((tmp_path / "bench.json").read_text())["rows"][0]["ratio"] == 5.0


def test_the_page_says_where_it_was_measured_and_what_was_not(book):
    page = costs.benchmark(book)
    assert "not measured: no card" in page
    assert "| a / b | 2 | at most 4 |" in page
    content = tomllib.loads((book / "book" / "bench.toml").read_text())
    assert content["environment"]["commit"][:12] in page


def test_costs_follow_from_the_rates(book):
    page = costs.work(book)
    repeated = (128 / 96) ** 2
    assert f"| {costs.figures(1e3 * repeated)} |" in page  # gigapixels of 1 TB, tiles overlap
    days = 1e12 * repeated / 2e6 / 86400
    assert f"| {costs.figures(days)} days |" in page
    at_worst = 1e12 * repeated * 1e5 / (312e12 * 0.1)
    files = 1e12 * (1 + 4) / costs.FED  # slower than the network at its best
    assert f"| {costs.figures(files / 60)} min to {costs.figures(at_worst / 60)} min |" in page
    assert "| either |" in page
    assert "extrapolated" in page.lower()


def test_without_measurements_the_page_says_how_to_make_them(tmp_path):
    assert "make bench-publish" in costs.work(tmp_path)
    assert "make bench-publish" in costs.benchmark(tmp_path)
