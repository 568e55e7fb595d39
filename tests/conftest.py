"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture
def mirror() -> Path:
    """Folder of real test data; the test is skipped, with the reason, where there is none."""
    named = os.environ.get("EMLAB_MIRROR", "")
    if named and Path(named).is_dir():
        return Path(named)
    reason = "no real data: set EMLAB_MIRROR to the folder of the test mirror"
    if os.environ.get("CI") == "true" and SHARED.is_dir():
        pytest.fail(f"{reason} ({SHARED} exists, and CI must not skip real-data tests)")
    pytest.skip(reason)
