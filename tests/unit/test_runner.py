"""Chapters run in a controlled process, end when they should, and are judged by their numbers."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import nbformat
import psutil
import pytest

from emlab.app.headless import ERROR_LINES, _environment, end_all
from emlab.app.reach import code_hash, fingerprint, reached
from emlab.app.runner import (
    ChapterResult,
    chapter_path,
    chapters,
    exit_code,
    format_status,
    run_all,
    run_chapter,
)
from emlab.bench import Report
from emlab.errors import InputError
from emlab.runtime import REFERENCE_PROBE_SECONDS

PARAMETERS = 'PROFILE = "cpu"\nSEED = 0\nDEVICE = "auto"\nOUT_DIR = "../runs/cpu"'
GOOD = """
import json, os, sys
from emlab.bench import Report
report = Report("00_good", OUT_DIR, PROFILE, SEED, "cpu")
report.value("error", 0.4)
report.save()
facts = {"python": sys.executable, "cwd": os.getcwd(), "out": OUT_DIR, "device": DEVICE,
         "threads": os.environ["OMP_NUM_THREADS"], "extra": EXTRA}
open(os.path.join(OUT_DIR, "facts.json"), "w").write(json.dumps(facts))
"""
WAIT = """
import os, pathlib, time
pathlib.Path(OUT_DIR, "pid").write_text(str(os.getpid()))
time.sleep(120)
"""


def write_notebook(path, *code, parameters=PARAMETERS):
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell(text.strip()) for text in (parameters, *code)]
    notebook.cells[0].metadata["tags"] = ["parameters"] if parameters == PARAMETERS else []
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    return path


def write_bound(root, slug, maximum, profile="smoke"):
    path = root / "tests" / "expected" / profile / f"{slug}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    bound = {"error": {"max": maximum, "data": [], "why": "measured when it was written"}}
    path.write_text(json.dumps({"bounds": bound}))


def is_alive(pid):
    try:
        return psutil.Process(int(pid)).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_for(path, seconds=180):
    end = time.monotonic() + seconds
    while not (path.is_file() and path.read_text()):
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.1)
    return path.read_text()


@pytest.fixture
def stub(monkeypatch):
    """Replace papermill by a function that copies the notebook and records error = 0.4."""
    calls = []
    monkeypatch.setattr("emlab.app.runner.probe_machine", lambda: REFERENCE_PROBE_SECONDS)

    def execute(notebook, output, parameters, log, threads=None, timeout=None):
        calls.append(notebook.stem)
        shutil.copy(notebook, output)
        if "broken" in notebook.stem:
            return ["ValueError: broken"]
        report = Report(notebook.stem, parameters["OUT_DIR"], parameters["PROFILE"], 0)
        report.value("error", 0.4)
        report.save()
        return []

    monkeypatch.setattr("emlab.app.runner.execute", execute)
    return calls


def test_a_chapter_runs_with_its_parameters_in_this_python(tmp_path, monkeypatch):
    bogus = tmp_path / "jupyter" / "kernels" / "python3"
    bogus.mkdir(parents=True)
    specification = {"argv": ["/bin/false"], "display_name": "x", "language": "python"}
    (bogus / "kernel.json").write_text(json.dumps(specification))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.chdir(tmp_path)
    write_notebook(tmp_path / "notebooks" / "00_good.ipynb", GOOD)
    write_bound(tmp_path, "00_good", 0.5)
    result = run_chapter("00", "smoke", "out", 7, "cpu", {"EXTRA": [1, "a"]}, threads=1)
    assert (result.status, result.checked, result.problems) == ("passed", 1, [])
    assert result.peak_memory_mb > 10
    facts = json.loads((tmp_path / "out" / "facts.json").read_text())
    folder = tmp_path / "out" / "00_good"
    assert facts["python"] == sys.executable
    assert (facts["cwd"], facts["out"]) == (str(folder), str(tmp_path / "out"))
    assert (facts["threads"], facts["device"], facts["extra"]) == ("1", "cpu", [1, "a"])
    assert json.loads((folder / "metrics.json").read_text())["seed"] == 7
    executed = nbformat.read(folder / "00_good.ipynb", as_version=4)
    injected = [c for c in executed.cells if "injected-parameters" in c.metadata.get("tags", [])]
    assert ["remove-cell" in cell.metadata["tags"] for cell in injected] == [True]
    assert "papermill" not in executed.metadata
    assert executed.cells[-1].execution_count
    assert sorted(path.name for path in folder.iterdir()) == [
        "00_good.ipynb",
        "fingerprint.json",
        "metrics.json",
        "run.log",
    ]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def f(n):\n    return f(n - 1) if n else 1 / 0\nf(40)", "ZeroDivisionError"),
        ("import os; os._exit(1)", "the kernel died"),
        ("x = 1", "without writing metrics.json"),
    ],
)
def test_a_failed_chapter_says_why_in_a_few_lines(tmp_path, code, message):
    path = write_notebook(tmp_path / "notebooks" / "01_bad.ipynb", code)
    stale = tmp_path / "out" / "01_bad"
    stale.mkdir(parents=True)
    for name in ("metrics.json", "fingerprint.json", "01_bad.ipynb"):
        (stale / name).write_text("{}")
    result = run_chapter(path, "smoke", tmp_path / "out")
    assert result.status == "failed"
    assert message in result.problems[0]
    assert len(result.problems) <= ERROR_LINES + 1
    assert sorted(p.name for p in stale.iterdir()) == ["01_bad.failed.ipynb", "run.log"]
    assert exit_code([result]) == 1
    assert message in format_status([result])


def test_a_time_out_ends_the_kernel(tmp_path):
    path = write_notebook(tmp_path / "notebooks" / "02_slow.ipynb", WAIT)
    result = run_chapter(path, "smoke", tmp_path / "out", timeout=6)
    assert result.status == "failed"
    assert "stopped after 6 s" in result.problems[0]
    assert not is_alive(wait_for(tmp_path / "out" / "pid", 1))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.posix
def test_an_interrupt_ends_the_kernel_and_leaves_no_half_result(tmp_path, number, status):
    path = write_notebook(tmp_path / "notebooks" / "02_slow.ipynb", WAIT)
    # what runs in the background of a shell inherits that SIGINT is ignored
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from emlab.app.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "run", str(path), "--out", str(tmp_path / "out")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    kernel = wait_for(tmp_path / "out" / "pid")
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == status
    assert "Traceback" not in errors
    assert not is_alive(kernel)
    assert [item.name for item in (tmp_path / "out" / "02_slow").iterdir()] == ["run.log"]


def test_an_unchanged_chapter_is_not_run_again_but_judged_again(tmp_path, stub):
    path = write_notebook(tmp_path / "notebooks" / "00_good.ipynb", GOOD)
    out = tmp_path / "out"
    write_bound(tmp_path, "00_good", 0.5)
    assert run_chapter(path, "smoke", out).fresh
    assert not run_chapter(path, "smoke", out).fresh
    write_bound(tmp_path, "00_good", 0.3)
    regressed = run_chapter(path, "smoke", out)
    assert (regressed.status, regressed.fresh, stub) == ("regressed", False, ["00_good"])
    assert "error is 0.4; required: <= 0.3" in regressed.problems[0]
    assert exit_code([regressed]) == 4
    assert run_chapter(path, "smoke", out, seed=1).fresh
    assert run_chapter(path, "smoke", out, seed=1, force=True).fresh
    (out / "00_good" / "metrics.json").unlink()
    assert run_chapter(path, "smoke", out, seed=1).fresh


def test_the_fingerprint_follows_notebook_parameters_weights_and_data(tmp_path, monkeypatch):
    path = write_notebook(tmp_path / "00_a.ipynb", "x = 1")
    seen = {fingerprint(path, {"SEED": 0})}
    assert fingerprint(path, {"SEED": 0}) in seen
    seen.add(fingerprint(path, {"SEED": 1}))
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "a.safetensors").write_bytes(b"1")
    with monkeypatch.context() as patch:
        patch.setenv("EMLAB_WEIGHTS", str(tmp_path / "weights"))
        seen.add(fingerprint(path, {"SEED": 0}))
    with monkeypatch.context() as patch:
        patch.setenv("EMLAB_MIRROR", str(tmp_path))
        seen.add(fingerprint(path, {"SEED": 0}))
    write_notebook(path, "x = 2")
    seen.add(fingerprint(path, {"SEED": 0}))
    assert len(seen) == 5


def test_all_chapters_run_after_a_failure_and_status_json_tells(tmp_path, stub):
    for slug in ("00_good", "01_broken", "02_fine"):
        write_notebook(tmp_path / "notebooks" / f"{slug}.ipynb", GOOD)
    write_notebook(tmp_path / "notebooks" / "draft.ipynb", GOOD)
    folder, out = tmp_path / "notebooks", tmp_path / "out"
    results = run_all("smoke", out, notebooks=folder)
    assert [item.status for item in results] == ["passed", "failed", "passed"]
    run_all("smoke", out, only=["02"], notebooks=folder)
    status = json.loads((out / "status.json").read_text())
    assert status["profile"] == "smoke"
    assert {slug: entry["status"] for slug, entry in status["chapters"].items()} == {
        "00_good": "passed",
        "01_broken": "failed",
        "02_fine": "passed",
    }
    run_all("cpu", out, only=["02"], notebooks=folder)
    assert list(json.loads((out / "status.json").read_text())["chapters"]) == ["02_fine"]
    table = format_status(results).splitlines()
    assert table[0].split() == ["chapter", "result", "seconds", "peak", "MB", "numbers", "checked"]
    assert "  ValueError: broken" in table


def test_the_status_tells_how_fast_the_machine_is(tmp_path, stub, monkeypatch):
    monkeypatch.setattr("emlab.app.runner.probe_machine", lambda: 3 * REFERENCE_PROBE_SECONDS)
    write_notebook(tmp_path / "notebooks" / "00_good.ipynb", GOOD)
    run_all("smoke", tmp_path / "out", notebooks=tmp_path / "notebooks")
    assert json.loads((tmp_path / "out" / "status.json").read_text())["times_reference"] == 3


def test_when_time_is_short_what_changed_goes_first_and_the_rest_is_named(
    tmp_path, stub, monkeypatch
):
    paths = [
        write_notebook(tmp_path / "notebooks" / f"{slug}.ipynb", GOOD)
        for slug in ("00_same", "01_quick", "02_other", "03_long")
    ]
    known = {
        "00_same": {"scaled": 50.0, "code": code_hash(paths[0])},
        "01_quick": {"scaled": 5.0, "code": code_hash(paths[1])},
        "02_other": {"scaled": 20.0, "code": "0" * 64},
        "03_long": {"scaled": 31.0, "code": "0" * 64},
    }
    monkeypatch.setattr("emlab.chapters._times", lambda: {"smoke": known})
    results = run_all("smoke", tmp_path / "out", notebooks=tmp_path / "notebooks", minutes=0.5)
    assert [item.status for item in results] == ["not run", "passed", "passed", "not run"]
    assert stub == ["02_other", "01_quick"]
    assert "unchanged, and no time was left" in results[0].problems[0]
    assert exit_code(results) == 0
    assert "00_same not run" in format_status(results)


def test_chapters_run_side_by_side_and_share_the_cores(tmp_path, stub, monkeypatch):
    seen, together = [], threading.Barrier(2, timeout=30)

    def run(path, *_, threads=None, **__):
        together.wait()
        seen.append(threads)
        return ChapterResult(path.stem, "smoke", "passed", 1.0)

    monkeypatch.setattr("emlab.app.runner.run_chapter", run)
    monkeypatch.setattr("emlab.app.runner.usable_cores", lambda: 4)
    for slug in ("00_a", "01_b", "02_c", "03_d"):
        write_notebook(tmp_path / "notebooks" / f"{slug}.ipynb", GOOD)
    results = run_all("smoke", tmp_path / "out", notebooks=tmp_path / "notebooks")
    assert [item.slug for item in results] == ["00_a", "01_b", "02_c", "03_d"]
    assert seen == [2, 2, 2, 2]


def test_all_that_runs_can_be_ended(tmp_path):
    path = write_notebook(tmp_path / "notebooks" / "02_slow.ipynb", WAIT)
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(run_chapter, path, "smoke", tmp_path)
        kernel = wait_for(tmp_path / "pid")
        end_all()
        assert isinstance(run.exception(30), KeyboardInterrupt)
    assert not is_alive(kernel)
    assert [item.name for item in (tmp_path / "02_slow").iterdir()] == ["run.log"]


def test_a_chapter_reaches_what_it_imports_and_nothing_else(tmp_path):
    package = tmp_path / "emlab"
    for name, text in {
        "__init__": "",
        "a/__init__": "",
        "a/b": "def f():\n    from ..c import g\n    return 'blue_print'",
        "c": "",
        "d": "import emlab.c",
    }.items():
        (package / "a").mkdir(parents=True, exist_ok=True)
        (package / f"{name}.py").write_text(text)
    for name in ("blue_sky.toml", "red.toml", "recorded/00_x/n.json", "recorded/01_y/n.json"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text("")
    code = "if True:\n    %pip install emlab\nfrom emlab.a import b"
    notebook = write_notebook(tmp_path / "00_x.ipynb", code)
    found = {path.relative_to(package).as_posix() for path in reached(notebook, package)}
    modules = {"__init__.py", "a/__init__.py", "a/b.py", "c.py"}
    assert found == modules | {"blue_sky.toml", "recorded/00_x/n.json"}


def test_chapters_are_found_by_slug_prefix_and_path(tmp_path, monkeypatch):
    for slug in ("00_start", "04_mtd", "04_more"):
        write_notebook(tmp_path / "notebooks" / f"{slug}.ipynb")
    (tmp_path / "deep" / "er").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "deep" / "er")
    assert [path.stem for path in chapters()] == ["00_start", "04_more", "04_mtd"]
    assert chapter_path("04_mtd").stem == "04_mtd"
    assert chapter_path("00").stem == "00_start"
    assert chapter_path(tmp_path / "notebooks" / "04_mtd.ipynb").stem == "04_mtd"
    for name, message in {"04": "several", "07": "no chapter", "": "no chapter"}.items():
        with pytest.raises(InputError, match=f"{message}.*00_start, 04_more, 04_mtd"):
            chapter_path(name)
    with pytest.raises(InputError, match="no notebook"):
        chapter_path("absent.ipynb")


def test_unusable_requests_are_one_clear_error(tmp_path, stub):
    good = write_notebook(tmp_path / "notebooks" / "00_good.ipynb", GOOD)
    plain = write_notebook(tmp_path / "notebooks" / "01_plain.ipynb", parameters="x = 1")
    text = tmp_path / "notebooks" / "02_text.ipynb"
    text.write_text("not a notebook")
    with pytest.raises(InputError, match="unknown profile"):
        run_chapter(good, "fast", tmp_path / "out")
    with pytest.raises(InputError, match="tagged 'parameters'"):
        run_chapter(plain, "smoke", tmp_path / "out")
    with pytest.raises(InputError, match="not a notebook"):
        run_chapter(text, "smoke", tmp_path / "out")
    assert stub == []


def test_the_child_gets_absolute_paths_and_the_thread_count(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EMLAB_MIRROR", "data")
    monkeypatch.setenv("PYTHONPATH", f"src{os.pathsep}lib")
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    environment = _environment(tmp_path / "a", threads=None)
    assert environment["EMLAB_MIRROR"] == str(tmp_path / "data")
    assert environment["PYTHONPATH"] == f"{tmp_path / 'src'}{os.pathsep}{tmp_path / 'lib'}"
    assert "MPLBACKEND" not in environment
    assert environment["OMP_NUM_THREADS"] == "3"
    assert _environment(tmp_path / "b", threads=2)["OMP_NUM_THREADS"] == "2"
    monkeypatch.setenv("EMLAB_THREADS", "none")
    with pytest.raises(InputError, match="EMLAB_THREADS"):
        _environment(tmp_path / "c", threads=None)
