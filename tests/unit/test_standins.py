"""Numbers from stand-ins are named, and not published."""

from pathlib import Path

import pytest
import yaml

from emlab.bench import Report
from tools.standins import main


@pytest.fixture
def runs(tmp_path):
    """Runs of two chapters on data simulated on purpose, without a program."""
    for slug in ("00_one", "01_other"):
        report = Report(slug, tmp_path, "smoke", 0)
        report.simulated("fields", "drawn here on purpose")
        report.absent("topaz", "picking is left out")
        report.value("a", 1.0)
        report.save()
    return tmp_path


def test_data_simulated_on_purpose_may_be_published(runs, capsys):
    assert main([str(runs)]) == 0
    assert "real data" in capsys.readouterr().out


def test_a_stand_in_is_named(runs, capsys):
    report = Report("01_other", runs, "smoke", 0)
    report.simulated("phantom", "discs", stands_in_for="tissue")
    report.value("a", 1.0)
    report.save()
    assert main([str(runs)]) == 1
    assert capsys.readouterr().out.splitlines() == ["01_other: phantom stands in for tissue"]


def test_nothing_run_is_no_success(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "make book" in capsys.readouterr().err


WORKFLOWS = Path(__file__).resolve().parents[2] / ".github" / "workflows"


@pytest.mark.parametrize(("name", "profile"), [("nightly", "cpu"), ("gpu", "gpu")])
def test_numbers_are_published_from_kept_and_real_data_only(name, profile):
    workflow = yaml.safe_load((WORKFLOWS / f"{name}.yml").read_text())
    jobs = [job for job in workflow["jobs"].values() if "actions/upload" in str(job["steps"])]
    (job,) = jobs
    steps = [step.get("run") or step["uses"].partition("@")[0] for step in job["steps"]]
    order = [
        "actions/cache", "make data", f"make book PROFILE={profile}",
        f".venv/bin/python -m tools.standins _build/runs/{profile}",
    ]  # fmt: skip
    places = [steps.index(step) for step in order]
    published = [place for place, step in enumerate(steps) if "actions/upload" in step]
    assert places == sorted(places)
    assert all(place > places[-1] for place in published)
    assert published
    (cache,) = (step["with"] for step in job["steps"] if "actions/cache" in step.get("uses", ""))
    assert job["env"]["EMLAB_CACHE"].endswith(cache["path"])
    assert "registry.toml" in cache["key"]
    if "publish" in workflow["jobs"]:
        assert workflow["jobs"]["publish"]["needs"] == "book"
