"""The command line starts fast, teaches, and turns errors into one line and an exit status."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from emlab.app import cli
from emlab.bench import Report
from emlab.errors import DataUnavailableError, InputError


@pytest.fixture
def emlab(command_line):
    """Run a command line; returns (exit status, stdout, stderr)."""

    return command_line


@pytest.fixture
def metrics(tmp_path):
    report = Report("04_mtd", tmp_path, "smoke", 0)
    report.value("error", 0.4, low=0.3, high=0.5)
    report.shortcut("10 targets here, 50 in the paper")
    return report.save()


@pytest.fixture
def raising(monkeypatch):
    """Make `emlab report show` raise."""

    def arrange(problem):
        def load(path):
            raise problem

        monkeypatch.setattr("emlab.bench.load_metrics", load)

    return arrange


def test_help_is_quick_because_it_imports_nothing_heavy():
    code = (
        "import sys, time; from emlab.app.cli import main; main(['--help']);"
        "main(['run', '--help']);"
        "heavy = {'torch', 'matplotlib', 'papermill', 'skimage', 'scipy', 'numpy'};"
        "print(heavy & set(sys.modules), time.process_time() < 1, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "set() True"
    for name in cli.COMMANDS:
        assert name in done.stdout


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_exists_and_explains_itself(emlab, name):
    status, out, _ = emlab(name, "--help")
    assert status == 0
    assert "Usage: emlab " + name in out


def test_version(emlab):
    status, out, _ = emlab("--version")
    assert (status, out.split()[0]) == (0, "emlab")


@pytest.mark.parametrize("arguments", [["rum"], ["run", "--profil"], ["report", "check", "x"]])
def test_wrong_usage_is_status_2(emlab, arguments):
    assert emlab(*arguments)[0] == 2


@pytest.mark.parametrize(
    ("problem", "status"),
    [(InputError("odd size"), 2), (DataUnavailableError("set EMLAB_MIRROR"), 3)],
)
def test_errors_are_one_line_and_a_status(emlab, raising, problem, status):
    raising(problem)
    assert emlab("report", "show", "x") == (status, "", f"emlab: error: {problem}\n")
    with pytest.raises(type(problem)):
        emlab("--debug", "report", "show", "x")


def test_an_interrupt_is_status_130(emlab, raising):
    raising(KeyboardInterrupt())
    status, _, err = emlab("report", "show", "x")
    assert status == 130
    assert "Traceback" not in err


def test_report_show_prints_numbers_and_shortcuts(emlab, metrics):
    status, out, _ = emlab("report", "show", metrics)
    assert status == 0
    assert "[0.3, 0.5]" in out
    assert "shortcut: 10 targets here, 50 in the paper" in out


@pytest.mark.parametrize(("maximum", "status"), [(0.5, 0), (0.3, 4)])
def test_report_check_fails_with_4_when_a_number_regressed(
    emlab, metrics, tmp_path, maximum, status
):
    bound = {"max": maximum, "data": [], "why": "measured in issue 2"}
    bounds = {"bounds": {"error": bound}}
    (tmp_path / "expected.json").write_text(json.dumps(bounds))
    found, out, err = emlab("report", "check", metrics, tmp_path / "expected.json")
    assert found == status
    assert "measured in issue 2" in out
    assert ("regressed: error is 0.4" in err) == (status == 4)
    assert emlab("report", "check", "--quiet", metrics, tmp_path / "expected.json")[1] == ""


def test_report_on_a_missing_file_is_status_2(emlab, tmp_path):
    status, _, err = emlab("report", "show", tmp_path / "absent.json")
    assert status == 2
    assert err.startswith("emlab: error: cannot read")


@pytest.mark.parametrize("arguments", [[], ["04", "--all"], ["04", "-p", "TARGETS"]])
def test_run_wants_chapters_or_all_and_well_formed_parameters(emlab, arguments):
    status, _, err = emlab("run", *arguments)
    assert status == 2
    assert err.startswith("emlab: error: ")


def test_run_passes_its_options_on(emlab, monkeypatch, tmp_path):
    seen = {}
    monkeypatch.setattr("emlab.app.runner.run_all", lambda **options: seen.update(options) or [])
    monkeypatch.chdir(tmp_path)
    arguments = ["run", "04", "--profile", "smoke", "--seed", "3", "-p", "N=5", "-p", "KIND=a=b"]
    assert emlab(*arguments)[0] == 0
    assert (seen["only"], seen["profile"], seen["seed"]) == (["04"], "smoke", 3)
    assert str(seen["out_dir"]) == "runs/smoke"
    assert seen["parameters"] == {"N": 5, "KIND": "a=b"}


@pytest.fixture
def recipe(monkeypatch):
    """Replace the recipes by one that records how it was called."""
    calls = []
    card = SimpleNamespace(name="tiny", steps=2, seconds=1.0, evaluation={"loss": 0.5})
    monkeypatch.setattr(
        "emlab.recipes.recipes",
        lambda: {"tiny": lambda **given: calls.append(given) or card},
    )
    return calls


def test_train_calls_the_recipe(emlab, recipe, tmp_path):
    arguments = ("--profile", "smoke", "--device", "cpu", "--out", tmp_path, "--resume")
    status, out, _ = emlab("train", "tiny", *arguments)
    assert status == 0
    assert recipe == [{"profile": "smoke", "device": "cpu", "out": tmp_path, "resume": True}]
    assert "loss = 0.5" in out


def test_train_lists_recipes_and_refuses_unknown_ones(emlab, recipe):
    assert emlab("train", "--list")[:2] == (0, "tiny\n")
    strange = ["tiny", "--images", "mine"]  # a recipe that does not take images
    bad = ["huge"], [], ["tiny", "--profile", "x"], ["tiny", "--device", "abacus"], strange
    for arguments in bad:
        status, _, err = emlab("train", *arguments)
        assert status == 2
        assert err.startswith("emlab: error: ")
    assert recipe == []
