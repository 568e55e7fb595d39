"""Run one chapter or all of them, skip what has not changed, and check the numbers."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

from emlab.app.runner.lookup import PathLike, chapter_path, chapters
from emlab.app.runner.process import end_all, execute
from emlab.app.runner.reach import changed, fingerprint
from emlab.app.runner.status import ChapterResult, write_status
from emlab.bench import PROFILES, compare, load_metrics
from emlab.chapters import expected_seconds
from emlab.errors import InputError
from emlab.runtime import (
    REFERENCE_PROBE_SECONDS,
    Stopwatch,
    atomic_path,
    probe_machine,
    usable_cores,
)


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
    profile, seed, device
        Parameters PROFILE, SEED and DEVICE of the notebook.
    out_dir
        Folder of the runs; passed to the notebook as an absolute OUT_DIR.
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
    if profile not in PROFILES:
        raise InputError(f"unknown profile {profile!r}; use one of {', '.join(PROFILES)}")
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
    now = fingerprint(path, values)
    if not force and executed.is_file() and (earlier := _earlier_run(mark, now)) is not None:
        return _judge(slug, profile, folder, expected, seconds=earlier, fresh=False)

    _prepare(folder, slug)
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
    return _judge(slug, profile, folder, expected, watch.seconds, fresh=True)


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
            write_status(root, [results[p] for p in paths if p in results], probe)

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


def _judge(
    slug: str, profile: str, folder: Path, expected: Path, seconds: float, fresh: bool
) -> ChapterResult:
    metrics = load_metrics(folder / "metrics.json")
    outcomes = compare(metrics, expected) if expected.is_file() else []
    problems = [str(outcome) for outcome in outcomes if not outcome.ok]
    return ChapterResult(
        slug=slug,
        profile=profile,
        status="regressed" if problems else "passed",
        seconds=seconds,
        peak_memory_mb=metrics["peak_memory_mb"],
        checked=len(outcomes),
        problems=problems,
        fresh=fresh,
        notebook=str(folder / f"{slug}.ipynb"),
    )


def _prepare(folder: Path, slug: str) -> None:
    """Make the folder and remove what would pass for a result of the run to come."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("metrics.json", "fingerprint.json", f"{slug}.failed.ipynb"):
        (folder / name).unlink(missing_ok=True)


def _earlier_run(mark: Path, now: str) -> float | None:
    """Return the seconds of the earlier run if it had this fingerprint and left its numbers."""
    try:
        content = json.loads(mark.read_text(encoding="utf-8"))
        same = content["fingerprint"] == now and mark.with_name("metrics.json").is_file()
        return float(content["seconds"]) if same else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


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
