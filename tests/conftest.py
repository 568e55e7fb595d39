"""Real data in tests: skipped with a reason where there is no mirror, demanded where CI has one.

Examples of hypothesis are the same in every run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
import torch
from hypothesis import Phase, settings

from emlab.data import download

settings.register_profile(
    "same",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=30,
    report_multiple_bugs=False,
    phases=(Phase.explicit, Phase.generate),
)
settings.load_profile("same")
NONE = "no real data: EMLAB_MIRROR names no folder"
BESIDE = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def small_numbers() -> None:
    """Let every test begin with numbers below the smallest normal one; chapters flush them."""
    torch.set_flush_denormal(False)


@pytest.fixture(autouse=True)
def every_host_is_asked() -> None:
    """Let every test begin without memories of hosts that could not be reached."""
    download._unreached.clear()


def mirror_folder() -> Path | None:
    """Return the folder named by EMLAB_MIRROR, if it exists."""
    name = os.environ.get("EMLAB_MIRROR", "")
    return Path(name) if name and Path(name).is_dir() else None


@pytest.fixture(scope="session")
def mirror() -> Path:
    """The folder of real data; a test that takes it is skipped where there is none."""
    folder = mirror_folder()
    if folder is None:
        pytest.skip(NONE)
    return folder


@pytest.fixture
def command_line(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command of emlab; returns (exit status, stdout, stderr)."""
    from emlab.app import cli

    def call(*arguments: object) -> tuple[int, str, str]:
        status = cli.main([str(item) for item in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def pytest_report_header() -> str:
    """Say at the top of the output whether real data are tested."""
    folder = mirror_folder()
    return f"real data: {folder or 'none (EMLAB_MIRROR names no folder); their tests are skipped'}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test that takes the mirror; without one, whatever is marked is skipped."""
    for item in items:
        if os.name == "nt" and item.get_closest_marker("posix"):
            item.add_marker(pytest.mark.skip(reason="Windows is no POSIX system"))
        if "mirror" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.real_data)
        elif mirror_folder() is None and item.get_closest_marker("real_data"):
            item.add_marker(pytest.mark.skip(reason=NONE))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Under CI=true, and with the data at hand, a skipped test of real data is a failure."""
    report = yield
    at_hand = mirror_folder() is not None or BESIDE.is_dir()
    demanded = os.environ.get("CI") == "true" and at_hand
    if demanded and report.skipped and item.get_closest_marker("real_data"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"skipped although CI has the data: {reason}"
    return report
