"""The chapters that the package ships: titles, settings, claims, times, copies to work in."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from functools import cache, reduce
from importlib.metadata import files, version
from operator import getitem
from pathlib import Path
from typing import Any

import emlab
from emlab import data
from emlab.bench import Report
from emlab.bench.claims import Claim, Target, parse
from emlab.errors import InputError
from emlab.recorded import Recording
from emlab.runtime import atomic_path, choose_device, usable_cores
from emlab.settings import only_first, read_profile

FOLDER = Path(__file__).parent
TIMES = FOLDER / "times.json"
# Seconds that a chapter may take on the reference machine; `make bench` enforces them.
BUDGETS = {"smoke": 60, "cpu": 120, "gpu": 1800}


def shipped() -> list[Path]:
    """Return the chapters in reading order: those of the checkout, or what was installed."""
    folder = Path(emlab.__file__).parents[2] / "notebooks"
    if folder.is_dir():
        return sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    found = [file for file in files(emlab.DISTRIBUTION) or [] if file.parent.name == "notebooks"]
    return sorted(Path(str(file.locate())).resolve() for file in found)


def title(notebook: Path) -> str:
    """Return the first heading of a chapter; an `InputError` for what does not begin with one."""
    try:
        source = json.loads(notebook.read_text(encoding="utf-8"))["cells"][0]["source"]
    except (OSError, ValueError, LookupError, TypeError) as problem:
        raise InputError(f"{notebook} is not a notebook that can be read ({problem!r})") from None
    found = re.match(r"# (.+)", source if isinstance(source, str) else "".join(source))
    if not found:
        raise InputError(f"{notebook} does not begin with a heading; give a chapter of emlab")
    return found[1].strip()


def copy(folder: Path, names: Sequence[str] = (), force: bool = False) -> list[Path]:
    """Copy shipped chapters into a folder, which is made if need be; returns what was written.

    Names are slugs (``04_mtd``) or starts of slugs (``04``), none for all; an unknown one is an
    `InputError`. Files appear whole or not at all, and without `force` none is written if one is in
    the way: a file of the same name with other content, perhaps a reader's work. Equal files are
    left alone.
    """
    known = shipped()
    unknown = [name for name in names if not any(_named(path, name) for path in known)]
    if unknown:
        slugs = ", ".join(path.stem for path in known)
        raise InputError(f"no chapter is called {', '.join(unknown)}; there are: {slugs}")
    chosen = [p for p in known if not names or any(_named(p, name) for name in names)]
    wanted = {folder / path.name: path.read_bytes() for path in chosen}
    changed = {place for place, content in wanted.items() if _differs(place, content)}
    if changed and not force:
        files = ", ".join(sorted(place.name for place in changed))
        raise InputError(
            f"{folder} has other versions of {files}; copy elsewhere or overwrite with --force"
        )
    written = []
    for place, content in wanted.items():
        if place in changed or not place.exists():
            with atomic_path(place) as temporary:
                temporary.write_bytes(content)
            written.append(place)
    return written


def table(slug: str) -> dict[str, Any]:
    """Return a chapter's ``chapter.toml``: data, claims, profiles; empty for an unknown chapter."""
    file = FOLDER / slug.partition("_")[2] / "chapter.toml"
    return tomllib.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def chapter_data(slug: str) -> tuple[str, ...]:
    """Return the names of the data sets that a chapter loads; none for an unknown chapter."""
    return tuple(table(slug).get("data", ()))


def settings(slug: str, profile: str) -> dict[str, Any]:
    """Return how much a chapter computes: ``[PROFILE]`` of its ``chapter.toml``."""
    return read_profile(f"chapters/{slug.partition('_')[2]}/chapter", profile)


def shortcuts(slug: str, profile: str, labels: Mapping[str, str] | None = None) -> list[str]:
    """Return a sentence for everything that a profile does less of than the ``paper`` profile.

    ``[told]`` of ``chapter.toml`` names settings (those in tables with dots) and their words;
    ``first`` of a profile, if it has one, counts the cases that a method of these `labels` gets.
    """
    here, full, found = settings(slug, profile), settings(slug, "paper"), []
    for key, text in table(slug).get("told", {}).items():
        few, all_of = (reduce(getitem, key.split("."), one) for one in (here, full))
        found += [f"{text}: {few} here, {all_of} at full scale"] if few != all_of else []
    return found + (only_first(labels, here, full) if labels else [])


def name_absent(report: Report) -> None:
    """Record those of a chapter's data sets that are not here and that nothing stands in for."""
    told = {entry["stands_in_for"] for entry in report.metrics()["data"]}
    for name in chapter_data(report.slug):
        if name not in told and not data.available(name):
            report.absent(name, f"the profile {report.profile} shows nothing of it")


def recording(
    slug: str, name: str, measure: Callable[..., Any], *networks: str, **more: Any
) -> Recording:
    """Return a recording by ``[recorded.NAME]`` of a chapter's ``chapter.toml`` and `more`."""
    return Recording(slug, name, measure, {**table(slug)["recorded"][name], **more}, networks)


def claims(slug: str, key: str = "claim") -> tuple[Claim, ...]:
    """Return the claims that a chapter tests; an `InputError` where a condition makes no sense."""
    return tuple(parse(record) for record in table(slug).get(key, ()))


def targets(slug: str) -> tuple[Target, ...]:
    """Return what a chapter set out to reach."""
    return tuple(Target(**record) for record in table(slug).get("target", ()))


def duration(slug: str, profile: str) -> str:
    """Return how long a chapter takes: measured, or at most what it may take."""
    measured = published(slug, profile)
    if measured:
        return f"{clock(measured['seconds'])} (measured: {measured['hardware']})"
    return f"at most {clock(BUDGETS[profile])}" if profile in BUDGETS else "hours"


def published(slug: str, profile: str) -> dict[str, Any]:
    """Return what `make readme` kept of a chapter's last run: seconds, hardware, scaled, code."""
    return _times().get(profile, {}).get(slug, {})


def expected_seconds(slug: str, profile: str) -> float:
    """Return the seconds that a chapter takes on the reference machine, measured or allowed."""
    return published(slug, profile).get("scaled") or BUDGETS.get(profile, 3600)


def clock(seconds: float) -> str:
    """Return seconds as people say them: ``46 s``, ``4.6 min``."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"


def introduce(slug: str) -> None:
    """Print what a chapter runs on, and how long each profile takes: its first cell ends so."""
    import torch

    device = choose_device("auto")
    if device.type == "cuda":
        place = f"the graphics card {torch.cuda.get_device_name(device)}"
    else:
        place = f"{device.type.upper()} ({usable_cores()} cores): there is no CUDA device"
    versions = {"emlab": emlab.__version__, "torch": version("torch"), "numpy": version("numpy")}
    print(", ".join(f"{name} {number}" for name, number in versions.items()))
    print(f'DEVICE = "auto" picks {place}')
    for profile in BUDGETS:
        print(f'PROFILE = "{profile}" takes {duration(slug, profile)}')
    print("\n".join(data_lines(slug)))


def data_lines(slug: str) -> list[str]:
    """Return which data sets of a chapter are on this machine, and what becomes of the others."""
    names = chapter_data(slug)
    here = [name for name in names if data.available(name)]
    lines = [f"Real data at hand: {', '.join(here) or 'none'}"] if names else []
    gone = [name for name in names if name not in here]
    if used := [f"{data.at_hand(name)} for {name}" for name in gone if data.at_hand(name) != name]:
        lines.append(f"Real data in place of absent ones: {', '.join(used)}")
    if gone:
        size = sum(data.records()[name].size for name in gone) / 1e6
        lines.append(
            f"Not on this machine: {', '.join(gone)} ({size:.0f} MB; bring them with `emlab data "
            "fetch --chapters`). What cannot be had is stood in for, by simulated specimens or "
            "other real data, or left out; its numbers say so."
        )
    return lines


def _named(path: Path, name: str) -> bool:
    return bool(name) and path.stem.startswith(name)


def _differs(place: Path, content: bytes) -> bool:
    return place.exists() and not (place.is_file() and place.read_bytes() == content)


@cache
def _times() -> dict[str, Any]:
    return json.loads(TIMES.read_text(encoding="utf-8")) if TIMES.is_file() else {}
