"""Numbers from stand-ins are named, and not published."""

import pytest

from emlab.report import Report
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
