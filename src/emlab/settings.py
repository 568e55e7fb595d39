"""Settings: a TOML file beside the code that reads it, often with a table a profile."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emlab.errors import InputError

_PACKAGE = Path(__file__).parent
PROFILES = ("smoke", "cpu", "gpu", "paper")


def read_settings(place: str) -> dict[str, Any]:
    """All of ``src/emlab/PLACE.toml``, such as ``methods/mtd`` or ``chapters/mtd/chapter``."""
    return tomllib.loads((_PACKAGE / f"{place}.toml").read_text(encoding="utf-8"))


def read_profile(place: str, profile: str) -> dict[str, Any]:
    """One profile's table.

    Raises
    ------
    InputError
        If the profile is none of smoke, cpu, gpu, paper.
    """
    if profile not in PROFILES:
        raise InputError(f"unknown profile {profile!r}; choose one of {', '.join(PROFILES)}")
    return read_settings(place)[profile]


def tuned(chapter: str, task: str = "") -> dict[str, dict[str, Any]]:
    """Settings by peer of a chapter, or of one of its tasks: the best on validation data.

    Raises
    ------
    InputError
        No peers are tuned for the task.
    """
    peers = read_settings(f"chapters/{chapter}/peers")["peers"]
    if task and task not in peers:
        raise InputError(f"no peers are tuned for {task!r}; there are: {', '.join(peers)}")
    found = peers[task] if task else peers
    return {
        peer: {key: value for key, value in entry.items() if not key.startswith("validation_")}
        for peer, entry in found.items()
    }


def only_first(
    labels: Mapping[str, str], here: Mapping[str, Any], full: Mapping[str, Any]
) -> list[str]:
    """One sentence for every method that a profile's ``first`` gives fewer micrographs."""
    return [
        f"{labels[name]}: {f'the first {count}' if count else 'none'} of the micrographs here, all "
        f"{full['first'].get(name, full['micrographs'])} at full scale"
        for name, count in here["first"].items()
        if count < here["micrographs"]
    ]
