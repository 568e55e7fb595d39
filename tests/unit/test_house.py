"""The repository keeps its own rules: layers, sizes, pins, workflows, README."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections import Counter
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from emlab import chapters
from tools import layers, lock, new_method, public, readme, release
from tools.book import api, notebooks
from tools.book.runs import Runs

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
# Names under which distributions are imported, where the two differ.
IMPORTED_AS = {"pillow": "PIL", "scikit-image": "skimage"}


def tracked(*patterns: str) -> list[Path]:
    """Files that git knows, also new ones, below the repository."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [path for name in listed.splitlines() if (path := ROOT / name).is_file()]


def canonical(requirement: str) -> str:
    """Name of the distribution that a requirement asks for, normalised."""
    return re.sub(r"[-_.]+", "-", re.match(r"[A-Za-z0-9._-]+", requirement)[0]).lower()


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().split()
    return {canonical(line): line.partition("==")[2] for line in lines}


def make_n(target: str, *variables: str) -> subprocess.CompletedProcess[str]:
    """What make would do for a target; nothing is executed."""
    command = ["make", "-n", target, *variables]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


# Layers and sizes


def test_imports_point_down() -> None:
    assert layers.violations() == []


def test_upward_and_sideways_imports_are_noticed(tmp_path: Path) -> None:
    (tmp_path / "io.py").write_text("def f():\n    from emlab.solvers import sampling\n")
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "__init__.py").write_text("from .. import data\n")
    (tmp_path / "novelty.py").write_text("import emlab.io\n")
    found = "\n".join(layers.violations(tmp_path))
    assert "io imports emlab.solvers" in found
    assert "weights imports emlab.data" in found
    assert "novelty has no layer" in found


def test_every_layer_exists() -> None:
    assert [unit for unit in layers.HEIGHT if not layers.summary(unit)] == []


def test_source_files_are_short() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in tracked("src/*.py")}
    assert {str(path): n for path, n in lengths.items() if n > 500} == {}


def test_a_chapters_room_has_at_most_four_modules() -> None:
    home = ROOT / "src" / "emlab" / "chapters"
    files = [path.relative_to(home) for path in tracked("src/emlab/chapters/*.py")]
    rooms = Counter(file.parts[0] for file in files if file.stem != "__init__")
    assert {room: count for room, count in rooms.items() if count > 4} == {}


def test_weights_are_small() -> None:
    sizes = [path.stat().st_size for path in tracked("*.safetensors")]
    assert max(sizes, default=0) <= 16e6
    assert sum(sizes) <= 64e6


def test_nothing_is_left_to_do_and_no_registry_is_named() -> None:
    marks = ["TO" + "DO", "FIX" + "ME", "raise NotImplemented" + "Error"]
    hosts = ["files.python" + "hosted", "py" + "pi.org", "registry.npm" + "js", "deb.deb" + "ian"]
    found = [
        f"{path.relative_to(ROOT)}: {word}"
        for path in tracked()
        if path.suffix not in (".safetensors", ".npz", ".png")
        for word in [*marks, *hosts]
        if word in path.read_text(encoding="utf-8")
    ]
    assert found == []


# Reference


def test_every_public_module_has_a_page() -> None:
    """If this fails, put the module's name into a marker of a page below book/api."""
    assert [module for module, place in api.assignment(ROOT).items() if not place] == []


def test_every_public_name_has_a_docstring() -> None:
    assert public.undocumented() == []


# Dependencies


def test_dependencies_are_those_that_are_imported(project: dict) -> None:
    declared = {canonical(item) for item in project["dependencies"]}
    modules = {IMPORTED_AS.get(name, name.replace("-", "_")) for name in declared}
    optional = {
        canonical(item).replace("-", "_")
        for extra in project["optional-dependencies"].values()
        for item in extra
    }
    # What IPython or a driver of torch provides comes with the extras.
    optional |= {"IPython", "nbclient"}
    imported = {item.distribution for item in layers.imports()}
    for path in tracked("notebooks/*.ipynb"):  # a chapter on Colab has the core only
        lines = [line for cell in json.loads(path.read_text())["cells"] for line in cell["source"]]
        found = (re.match(r"\s*(?:from|import) ([a-zA-Z_]\w*)[\w. ]*", line) for line in lines)
        imported |= {match[1] for match in found if match and match[1] in modules}
    foreign = imported - set(sys.stdlib_module_names) - {"emlab"}
    assert foreign - modules - optional == set()
    assert modules - foreign == set()


def test_every_requirement_is_pinned(project: dict, pins: dict[str, str]) -> None:
    extras = [item for extra in project["optional-dependencies"].values() for item in extra]
    wanted = {canonical(item) for item in [*project["dependencies"], *extras]}
    assert wanted - set(pins) == set()
    assert all(re.fullmatch(r"[0-9][0-9A-Za-z.]*", version) for version in pins.values())


def closure(name: str, extras: tuple[str, ...] = ()) -> set[str]:
    """Names of all distributions that a distribution needs here, itself included."""
    found: set[str] = set()
    waiting = [(name, extras)]
    seen = set()
    while waiting:
        item = waiting.pop()
        if item in seen:
            continue
        seen.add(item)
        found.add(canonical(item[0]))
        for line in metadata.requires(item[0]) or []:
            needed = Requirement(line)
            contexts = [{"extra": extra} for extra in ("", *item[1])]
            if needed.marker is None or any(needed.marker.evaluate(c) for c in contexts):
                waiting.append((canonical(needed.name), tuple(sorted(needed.extras))))
    return found


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the pins are those of Python 3.11")
def test_pins_are_the_complete_environment_and_nothing_else(
    project: dict, pins: dict[str, str]
) -> None:
    """Only what CUDA builds of torch add is not listed: torch itself pins it exactly."""
    needed = closure(release.NAME, tuple(project["optional-dependencies"])) | {"setuptools"}
    listed = {n for n in needed if not n.startswith(("nvidia-", "cuda-", "triton", release.NAME))}
    assert set(pins) == listed
    installed = {name: metadata.version(name).split("+")[0] for name in listed}
    assert installed == pins


def test_lock_has_a_hash_for_every_pin_and_names_no_place(pins: dict[str, str]) -> None:
    """If this fails, say `python -m tools.lock`."""
    text = (ROOT / "requirements.lock").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    found = [re.fullmatch(r"([\w.-]+)==([\w.]+) --hash=sha256:[0-9a-f]{64}", x) for x in lines]
    locked = {match[1]: match[2] for match in found}
    assert locked == {name: pins[name] for name in pins if name not in lock.LEFT_OUT}
    assert "://" not in text


def test_conda_environment_has_the_same_pins(project: dict, pins: dict[str, str]) -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    lines = environment["dependencies"][-1]["pip"]
    assert lines[0] == f"torch=={pins['torch']}"
    assert "-c constraints.txt" in lines
    extras = re.search(r"^-e \.\[(.*)\]$", lines[-1])[1].split(",")
    assert set(extras) == set(project["optional-dependencies"])
    assert re.search(rf"\.\[{','.join(extras)}\]", (ROOT / "Makefile").read_text())
    python = next(item for item in environment["dependencies"] if str(item).startswith("python="))
    assert tuple(map(int, python[7:].split("."))) >= (3, 11)


def test_architecture_says_why_each_dependency_is_there(project: dict) -> None:
    text = (ROOT / "book" / "architecture.md").read_text()
    rows = {line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")}
    assert {canonical(item) for item in project["dependencies"]} - rows == set()


# Workflows and make


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_calls_what_exists(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text())
    assert True in workflow, "a workflow says when it runs ('on' is read as true)"
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    commands = [line for step in steps for line in step.get("run", "").splitlines()]
    for command in commands:
        words = shlex.split(command)
        if words[0] == "make":
            assert make_n(*words[1:]).returncode == 0, command
            continue
        assert words[:2] in ([".venv/bin/python", "-m"], ["python", "-m"]), command
        known = find_spec(words[2]) is not None
        assert known, f"{command}: workflows call make and modules that there are"
        files = [word for word in words[3:] if word.startswith(("tests/", "constraints"))]
        assert [name for name in files if not (ROOT / name).exists()] == []
    for step in steps:
        settings = step.get("with", {})
        for name in ("path", "cache-dependency-path"):
            for place in str(settings.get(name, "")).split():
                built = place.startswith("_build/")
                assert built or (ROOT / place).exists(), f"{path.name}: {place}"
    built = [
        place
        for step in steps
        for place in str(step.get("with", {}).get("path", "")).split()
        if place.startswith("_build/")
    ]
    assert set(built) <= {"_build/html", "_build/runs", "_build/data"}


def test_places_to_work_in_have_one_python_and_the_commands_of_make() -> None:
    """Docker, the development container, Binder, conda, the lock: the Python that is tested."""
    docker = (ROOT / "Dockerfile").read_text()
    version = re.search(r"^FROM python:(\S+)-slim AS tools$", docker, re.MULTILINE)[1]
    for place in ("environment.yml", ".binder/environment.yml"):
        assert f"python={version}" in yaml.safe_load((ROOT / place).read_text())["dependencies"]
    assert f"and Python {version}." in (ROOT / "requirements.lock").read_text().splitlines()[0]
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    assert (ROOT / ".devcontainer" / container["build"]["dockerfile"]).resolve().is_file()
    assert f" AS {container['build']['target']}\n" in docker
    assert os.access(ROOT / ".binder" / "postBuild", os.X_OK)
    targets = re.findall(r"\bmake ([a-z-]+)", docker + container["postCreateCommand"])
    targets += json.loads(re.search(r"^CMD (.*)$", docker, re.MULTILINE)[1])[1:]
    assert {"setup", "book", "test"} <= set(targets)
    assert [name for name in targets if make_n(name).returncode] == []


def test_there_is_a_workflow_for_each_purpose() -> None:
    assert [path.stem for path in WORKFLOWS] == ["colab", "gpu", "nightly", "pull-request"]


def test_ci_calls_targets_that_exist() -> None:
    text = (ROOT / ".ci" / "run").read_text()
    targets = re.findall(r"^make ([a-z-]+)", text, re.MULTILINE)
    assert targets == ["axe", "topaz", "setup", "test", "book", "check-book"]
    assert all(make_n(target).returncode == 0 for target in targets)
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_make_refuses_an_unknown_profile() -> None:
    done = make_n("book", "PROFILE=huge")
    assert done.returncode != 0
    assert "smoke cpu gpu paper" in done.stderr


def test_make_takes_the_mirror_beside_the_clone_unless_told_otherwise(tmp_path: Path) -> None:
    """EMLAB_MIRROR is set from ../shared/data, kept when the user set it, absent otherwise."""
    clone = tmp_path / "clone"
    clone.mkdir()
    (clone / "Makefile").write_text(
        (ROOT / "Makefile").read_text() + '\nshow:\n\t@echo "mirror=$$EMLAB_MIRROR"\n'
    )
    plain = {name: value for name, value in os.environ.items() if name != "EMLAB_MIRROR"}

    def show(environment: dict[str, str]) -> str:
        command = ["make", "-s", "--no-print-directory", "show"]
        done = subprocess.run(
            command, cwd=clone, env=environment, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    assert show(plain) == "mirror="
    (tmp_path / "shared" / "data").mkdir(parents=True)
    assert show(plain) == f"mirror={tmp_path / 'shared' / 'data'}"
    assert show({**plain, "EMLAB_MIRROR": "/elsewhere"}) == "mirror=/elsewhere"


# Contributors


def test_hooks_are_programs_of_the_environment() -> None:
    """Nothing is downloaded before a commit, and every pattern of files matches some."""
    content = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    hooks = [hook for repo in content["repos"] for hook in repo["hooks"]]
    assert {repo["repo"] for repo in content["repos"]} == {"local"}
    names = [path.relative_to(ROOT).as_posix() for path in tracked()]
    for hook in hooks:
        program = shlex.split(hook["entry"])[0]
        assert program.startswith(".venv/bin/"), hook["id"]
        assert Path(sys.executable).with_name(Path(program).name).exists(), hook["id"]
        assert any(re.search(hook.get("files", ""), name) for name in names), hook["id"]


def test_contributing_names_what_exists() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    made = new_method.places("07_wiener")
    named = {name.strip(",.") for name in re.findall(r"`([\w./-]+/[\w./-]+)`", text)}
    templates = {name for name in named if "wiener" in name or "PROFILE" in name}
    assert {n.replace("PROFILE", "cpu") for n in templates} <= set(made)
    present = named - templates
    assert [name for name in present if not list(ROOT.glob(f"**/{name}"))] == []


def test_the_newest_release_of_the_changelog_is_the_version(project: dict) -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    headings = re.findall(r"^## (\S+)", text, re.MULTILINE)
    assert headings[headings[0] == "Unreleased"] == project["version"]


# README


def readme_commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def test_readme_commands_run() -> None:
    """Quick ones for real; make targets are looked up, long ones parsed up to the work itself.

    The chapters themselves are run by tests/notebooks.
    """
    emlab = str(Path(sys.executable).with_name("emlab"))
    slugs = Runs(ROOT, "smoke", ROOT / "no-runs").slugs
    commands = readme_commands()
    assert {shlex.split(command)[0] for command in commands} == {"make", ".venv/bin/emlab"}
    for command in commands:
        words = shlex.split(command)
        if words[0] == "make":
            assert make_n(*words[1:]).returncode == 0, command
            continue
        if words[1] == "run":
            assert words[2] in slugs
        parse_only = ["--help"] if words[1] in ("run", "report") else []
        done = subprocess.run(
            [emlab, *words[1:], *parse_only], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def test_readme_table_has_every_chapter_with_a_badge() -> None:
    """The block is what `make readme` writes, whatever the numbers."""
    text = (ROOT / "README.md").read_text()
    runs = Runs(ROOT, "cpu", ROOT / "no-runs")
    block = readme.BLOCK.search(text)[0]
    rows = block.splitlines()[3:-1]
    assert readme.with_table(text, runs).replace(
        readme.BLOCK.search(readme.with_table(text, runs))[0], ""
    )
    assert len(rows) == len(runs.slugs)
    for slug, row in zip(runs.slugs, rows, strict=True):
        assert notebooks.title(runs.notebook(slug)) in row
        assert f"(notebooks/{slug}.ipynb)" in row
        assert f"blob/main/notebooks/{slug}.ipynb" in row
        assert "not measured" not in row


def test_readme_links_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / "README.md").read_text())
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


# Book


def test_toc_lists_every_page_and_chapter() -> None:
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    entries = [entry for part in toc["parts"] for entry in part["chapters"]]
    files = {toc["root"], *(entry["file"] for entry in entries)}
    files |= {section["file"] for entry in entries for section in entry.get("sections", [])}
    pages = {path.relative_to(ROOT).with_suffix("") for path in (ROOT / "book").rglob("*.md")}
    chapters = {path.relative_to(ROOT).with_suffix("") for path in tracked("notebooks/*.ipynb")}
    assert {Path(file) for file in files} == pages | chapters


def test_every_reference_is_listed_once() -> None:
    keys = re.findall(r"^@\w+\{([^,]+)", (ROOT / "book" / "references.bib").read_text(), re.M)
    assert sorted(keys) == sorted(set(keys))


def test_every_claim_has_conditions_says_why_it_differs_and_what_shows_it() -> None:
    runs = Runs(ROOT, "cpu", ROOT / "no-runs")
    claims = {slug: chapters.claims(slug) for slug in runs.slugs}
    counts = {"G": 13, "T": 9, "F": 3, "M": 5, "C": 14}
    known = [f"{letter}{n}" for letter, last in counts.items() for n in range(1, last + 1)]
    assert [claim.id for found in claims.values() for claim in found] == known
    for slug, found in claims.items():
        cells = notebooks.cell_ids(runs.notebook(slug))
        for claim in found:
            assert claim.conditions, claim.id
            assert claim.why, claim.id
            assert claim.measured, claim.id
            assert claim.cell in cells, claim.id
            assert {condition for condition, _ in claim.unless} <= set(claim.conditions), claim.id
