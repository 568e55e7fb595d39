"""All tests of a page follow one another, so that each page is opened once."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort by page; tests without one come first, the order is otherwise kept."""
    items.sort(key=_page)


def _page(item: pytest.Item) -> str:
    return item.callspec.params.get("visit", "") if hasattr(item, "callspec") else ""
