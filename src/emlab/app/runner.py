"""Run chapters headless: papermill, a controlled environment, and a check of the numbers.

``<out>/<slug>/`` holds after a run: ``<slug>.ipynb`` (executed), ``metrics.json``, ``run.log`` and
``fingerprint.json``; a failed run leaves ``<slug>.failed.ipynb``, with the error in it, instead of
the executed notebook. ``<out>/status.json`` tells how every chapter did.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Any

from emlab.app.headless import end_all, execute
from emlab.app.reach import changed, fingerprint
from emlab.bench import compare, format_table, load_metrics
from emlab.chapters import expected_seconds, shipped
from emlab.errors import InputError
from emlab.runtime import (
    REFERENCE_PROBE_SECONDS,
    Stopwatch,
    atomic_path,
    probe_machine,
    usable_cores,
)
from emlab.settings import check_profile

PathLike = str | os.PathLike[str]
FAILED, REGRESSED = 1, 4


@dataclass(frozen=True)
class ChapterResult:
    """What became of one chapter.

    ``status`` is passed, failed (an error, a time-out, no numbers), regressed (it ran, but a number
    broke its bound) or not run (there was no time left); ``seconds`` are those of the earlier run
    if that was kept because nothing had changed (not ``fresh``); ``checked`` comparisons with
    expected numbers were made; the first of the ``problems`` says it all; ``notebook`` is the
    executed one, of a failed chapter with the error in it.
    """

    slug: str
    profile: str
    status: str
    seconds: float
    peak_memory_mb: float | None = None
    checked: int = 0
    problems: list[str] = field(default_factory=list)
    fresh: bool = True
    notebook: str = ""

    @property
    def passed(self) -> bool:
        """Whether the chapter ran and all its numbers hold."""
        return self.status == "passed"


def run_chapter(
    chapter: PathLike,
    profile: str = "cpu",
    out_dir: PathLike = "runs",
    seed: int = 0,
    device: str = "auto",
    parameters: Mapping[str, Any] | None = None,
    force: bool = False,
    timeout: float | None = None,
    threads: int | None = None,
    notebooks: PathLike | None = None,
    expected_dir: PathLike | None = None,
) -> ChapterResult:
    """Execute a chapter headless and compare its numbers with what is expected of them.

    A chapter whose notebook, package, weights, data and parameters are those of its last good run
    is not executed again, only compared again.

    Parameters
    ----------
    chapter
        Slug, start of a slug, or path of a notebook.
    timeout
        Seconds after which the chapter counts as failed.
    threads
        Threads for numerical libraries; default EMLAB_THREADS, else the cores there are, at most 4.
    notebooks, expected_dir
        Folders to use in place of notebooks/ and of tests/expected/ beside it.

    Raises
    ------
    InputError
        No such chapter or profile, a notebook without a parameters cell, a malformed expected file.
        A chapter that fails raises nothing: see `ChapterResult.status`.
    """
    check_profile(profile)
    path = chapter_path(chapter, notebooks)
    slug, root = path.stem, Path(out_dir).expanduser().resolve()
    known = {"PROFILE": profile, "SEED": seed, "DEVICE": device, "OUT_DIR": str(root)}
    values = {**(parameters or {}), **known}
    expected = (
        Path(expected_dir or path.parents[1] / "tests" / "expected") / profile / f"{slug}.json"
    )
    _require_parameters_cell(path)
    folder, mark = root / slug, root / slug / "fingerprint.json"
    executed = folder / f"{slug}.ipynb"

    def judged(seconds: float, fresh: bool) -> ChapterResult:
        metrics = load_metrics(folder / "metrics.json")
        outcomes = compare(metrics, expected) if expected.is_file() else []
        problems = [str(outcome) for outcome in outcomes if not outcome.ok]
        status, peak = "regressed" if problems else "passed", metrics["peak_memory_mb"]
        return ChapterResult(
            slug, profile, status, seconds, peak, len(outcomes), problems, fresh, str(executed)
        )

    now, earlier = fingerprint(path, values), _kept(mark)
    same = earlier.get("fingerprint") == now and (folder / "metrics.json").is_file()
    if same and executed.is_file() and not force:
        return judged(float(earlier["seconds"]), fresh=False)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("metrics.json", mark.name, f"{slug}.failed.ipynb"):  # not of the run to come
        (folder / name).unlink(missing_ok=True)
    running = folder / f".{slug}.running.ipynb"
    try:
        with Stopwatch() as watch:
            problems = execute(path, running, values, folder / "run.log", threads, timeout)
        if not problems and not (folder / "metrics.json").is_file():
            problems = [
                "it ended without writing metrics.json; its last cell has to save the report"
            ]
        if problems:
            executed.unlink(missing_ok=True)
            failed = _keep(running, folder / f"{slug}.failed.ipynb")
            return ChapterResult(
                slug, profile, "failed", watch.seconds, problems=problems, notebook=failed
            )
        _keep(running, executed)
    finally:
        running.unlink(missing_ok=True)
    with atomic_path(mark) as temporary:
        temporary.write_text(json.dumps({"fingerprint": now, "seconds": round(watch.seconds, 2)}))
    return judged(watch.seconds, fresh=True)


def run_all(
    profile: str = "cpu",
    out_dir: PathLike = "runs",
    only: Sequence[PathLike] = (),
    notebooks: PathLike | None = None,
    jobs: int | None = None,
    minutes: float | None = None,
    **options: Any,
) -> list[ChapterResult]:
    """Run chapters, go on after a failure, and write ``out_dir/status.json``.

    Parameters
    ----------
    only
        Chapters to run; empty for all of them.
    jobs
        Chapters side by side, which share the cores; default: one for every two cores, at most 4.
    minutes
        Time there is: chapters that changed since their numbers were last published run first, and
        none begins that is not expected to end in time.
    options
        Further arguments of `run_chapter`.
    """
    paths = [chapter_path(name, notebooks) for name in only] or chapters(notebooks)
    root = Path(out_dir).expanduser().resolve()
    watch, cores, writing = Stopwatch(), usable_cores(), Lock()
    jobs = max(1, min(jobs or min(cores // 2, 4), len(paths)))
    if jobs > 1 and options.get("threads") is None:
        options["threads"] = max(1, cores // jobs)
    probe = probe_machine()
    results: dict[Path, ChapterResult] = {}

    new = {path for path in paths if minutes is None or changed(path, profile)}

    def run(path: Path) -> None:
        expected = expected_seconds(path.stem, profile) * probe / REFERENCE_PROBE_SECONDS
        if minutes is not None and watch.seconds + expected > 60 * minutes:
            state = "changed" if path in new else "unchanged"
            problem = f"{state}, and no time was left: it takes about {expected:.0f} s here"
            result = ChapterResult(path.stem, profile, "not run", 0.0, problems=[problem])
        else:
            print(f"{path.stem} ({profile}) ...", file=sys.stderr, flush=True)
            result = run_chapter(path, profile, root, notebooks=notebooks, **options)
        with writing:
            results[path] = result
            took = f"in {result.seconds:.1f} s" if result.seconds else f"({result.problems[0]})"
            print(f"{path.stem} {result.status} {took}", file=sys.stderr, flush=True)
            _write_status(root, [results[p] for p in paths if p in results], probe)

    order = sorted(paths, key=lambda path: path not in new)
    with ThreadPoolExecutor(jobs) as pool:
        try:
            for done in [pool.submit(run, path) for path in order]:
                done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            end_all()
            raise
    return [results[path] for path in paths]


def _kept(path: Path) -> dict[str, Any]:
    """What a JSON file of an earlier run holds; nothing if it cannot be read."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _require_parameters_cell(path: Path) -> None:
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        tags = [tag for cell in cells for tag in cell.get("metadata", {}).get("tags", [])]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        raise InputError(f"{path} is not a notebook that can be read ({problem!r})") from problem
    if "parameters" not in tags:
        raise InputError(
            f"{path} has no cell tagged 'parameters'; see the chapters of emlab for one"
        )


def _keep(running: Path, target: Path) -> str:
    """Move the executed notebook into place, without the traces that papermill leaves in it."""
    if not running.is_file():
        return ""
    notebook = json.loads(running.read_text(encoding="utf-8"))
    notebook["metadata"].pop("papermill", None)
    for cell in notebook["cells"]:
        cell["metadata"].pop("papermill", None)
        tags = cell["metadata"].get("tags", [])
        if "injected-parameters" in tags:  # it repeats the parameters cell with local paths
            cell["metadata"]["tags"] = [*tags, "remove-cell"]
    with atomic_path(target) as temporary:
        temporary.write_text(json.dumps(notebook, indent=1, ensure_ascii=False), encoding="utf-8")
    return str(target)


# --- how they did


def format_status(results: Sequence[ChapterResult]) -> str:
    """Return a table of chapters, followed by the problems of those that did not pass."""
    rows = [
        [
            item.slug,
            item.status if item.fresh else f"{item.status} (unchanged)",
            round(item.seconds, 1),
            None if item.peak_memory_mb is None else round(item.peak_memory_mb),
            item.checked,
        ]
        for item in results
    ]
    lines = [format_table(["chapter", "result", "seconds", "peak MB", "numbers checked"], rows)]
    for item in results:
        if not item.passed:
            lines += ["", f"{item.slug} {item.status}:", *(f"  {line}" for line in item.problems)]
            lines += [f"  see {item.notebook}"] if item.notebook else []
    return "\n".join(lines)


def exit_code(results: Sequence[ChapterResult]) -> int:
    """Return 0 if all that ran passed, 1 if a chapter failed, 4 if a number regressed."""
    found = {item.status for item in results}
    return FAILED if "failed" in found else REGRESSED if "regressed" in found else 0


def _write_status(out_dir: Path, results: Sequence[ChapterResult], probe: float) -> None:
    """Write status.json; chapters of the same profile that were not run now keep their entry."""
    path, profile = out_dir / "status.json", results[0].profile
    old = _kept(path).get("chapters", {}).items()
    entries = {slug: entry for slug, entry in old if entry.get("profile") == profile}
    entries |= {item.slug: asdict(item) for item in results}
    content = {
        "schema": 1,
        "profile": profile,
        "utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "probe_seconds": round(probe, 4),
        "times_reference": round(probe / REFERENCE_PROBE_SECONDS, 3),
        "chapters": dict(sorted(entries.items())),
    }
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


# --- which notebook a user means


def chapters(folder: PathLike | None = None) -> list[Path]:
    """Return all chapters (``NN_name.ipynb``) in reading order.

    Of the folder that is given, else of ./notebooks (here or above), else of the package.
    """
    pattern = "[0-9][0-9]_*.ipynb"
    if folder is not None:
        if not Path(folder).is_dir():
            raise InputError(f"{folder} is not a folder; give the one that holds the notebooks")
        return sorted(Path(folder).resolve().glob(pattern))
    for place in (Path.cwd(), *Path.cwd().parents):
        if found := sorted((place / "notebooks").resolve().glob(pattern)):
            return found
    if found := list(shipped()):
        return found
    raise InputError(
        "no notebooks/ folder here or above; make one with `emlab notebooks copy notebooks`"
    )


def chapter_path(name: PathLike, folder: PathLike | None = None) -> Path:
    """Return the notebook for a path, a slug (``04_mtd``) or the start of one (``04``).

    If none fits, or more than one, the error lists the chapters.
    """
    text = os.fspath(name)
    if text.endswith(".ipynb"):
        if not Path(text).is_file():
            raise InputError(f"there is no notebook {text}")
        return Path(text).resolve()
    known = chapters(folder)
    exact = [path for path in known if path.stem == text]
    fitting = exact or [path for path in known if text and path.stem.startswith(text)]
    if len(fitting) != 1:
        problem = "several chapters start with" if fitting else "no chapter is called"
        slugs = ", ".join(path.stem for path in known)
        raise InputError(f"{problem} {text!r}; there are: {slugs}")
    return fitting[0]
