"""Settings: a TOML file beside the code that reads it, often with a table a profile."""

import tomllib
from collections.abc import Callable, Mapping
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
    check_profile(profile)
    return read_settings(place)[profile]


def check_profile(profile: str) -> None:
    """Refuse a profile that is none of smoke, cpu, gpu, paper."""
    if profile not in PROFILES:
        raise InputError(f"unknown profile {profile!r}; choose one of {', '.join(PROFILES)}")


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


def read_config(method: str, name: str) -> dict[str, Any]:
    """``[configs.NAME]`` of ``methods/METHOD.toml``; an `InputError` if there is none."""
    tables = read_settings(f"methods/{method}")["configs"]
    if name not in tables:
        raise InputError(f"unknown configuration {name!r}; choose one of {', '.join(tables)}")
    return tables[name]


def of_kind(kinds: Mapping[str, Callable[..., Any]], key: str, table: dict[str, Any]) -> Any:
    """Make what a table describes: its `key` says of which kind; an `InputError` if unknown."""
    kind, arguments = table.get(key, ""), {name: table[name] for name in table if name != key}
    if kind not in kinds:
        raise InputError(f"unknown {key} {kind!r}; choose one of {', '.join(kinds)}")
    return kinds[kind](**arguments)


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
