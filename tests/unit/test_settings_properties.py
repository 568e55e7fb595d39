"""Settings: whatever value is given, they are made or refuse it in one sentence that names it."""

from __future__ import annotations

import ast
import json
from dataclasses import MISSING, asdict, fields, is_dataclass, replace
from importlib import import_module
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from emlab.errors import InputError
from emlab.methods import flowdps_config, generalist
from emlab.settings import of_kind

SOURCE = Path(__file__).resolve().parents[2] / "src"
NEEDED = {
    "TrainingConfig": {"steps": 10},
    "EpsilonMatching": {"mean": 0.1, "std": 0.3},
    "PhaseScale": {"mean": 0.1, "std": 0.3},
    "Downsample": {"factor": 2},
}
JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 300),
    st.sampled_from([10**400, -(10**30)]),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=3),
    st.lists(st.floats(-2, 2), max_size=3),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
    st.builds(object),
)


def settings_classes() -> dict[str, type]:
    """Every dataclass of the package that checks its fields, by module and name."""
    found = {}
    for file in sorted((SOURCE / "emlab").rglob("*.py")):
        if "check_fields(self)" not in file.read_text():
            continue
        module = import_module(".".join(file.relative_to(SOURCE).with_suffix("").parts))
        for name, value in vars(module).items():
            own = "__dataclass_fields__" in getattr(value, "__dict__", {})
            if own and is_dataclass(value) and value.__module__ == module.__name__:
                check = getattr(value, "__post_init__", None)
                if check and "check_fields" in check.__code__.co_names:
                    found[f"{module.__name__.removeprefix('emlab.')}.{name}"] = value
    return found


CLASSES = settings_classes()


def example(kind: type) -> object:
    """Good settings of a class."""
    if kind is generalist.Config:
        return generalist.load_config("ours")
    if kind is flowdps_config.Config:
        return flowdps_config.load_config("ours")
    if kind.__module__ == "emlab.methods.mtd":
        return kind(size=28)
    return kind(**NEEDED.get(kind.__name__, {}))


def test_every_configuration_checks_its_fields() -> None:
    """Dataclasses called Config, wherever they are, unless they have nothing to set."""
    wanted = set()
    for file in (SOURCE / "emlab").rglob("*.py"):
        place = ".".join(file.relative_to(SOURCE / "emlab").with_suffix("").parts)
        if "Config:\n" not in (text := file.read_text()):
            continue
        for node in ast.parse(text).body:
            has_fields = any(isinstance(item, ast.AnnAssign) for item in getattr(node, "body", ()))
            if isinstance(node, ast.ClassDef) and node.name.endswith("Config") and has_fields:
                wanted.add(f"{place}.{node.name}")
    assert len(wanted) > 15
    assert wanted - set(CLASSES) == set()


@pytest.mark.parametrize("name", CLASSES)
@given(data=st.data())
@settings(max_examples=8)
def test_any_value_is_taken_or_refused_in_one_sentence(name: str, data: st.DataObject) -> None:
    good = example(CLASSES[name])
    field = data.draw(st.sampled_from([item.name for item in fields(good)]))
    value = data.draw(JUNK)
    try:
        made = replace(good, **{field: value})
    except InputError as problem:
        refusal = str(problem)
    else:
        refusal = ""
        again = {item.name: getattr(made, item.name) for item in fields(made)}
        assert type(made)(**again) == made
    assert "\n" not in refusal


@pytest.mark.parametrize("name", CLASSES)
def test_every_field_refuses_what_is_of_another_kind(name: str) -> None:
    good = example(CLASSES[name])
    for item in fields(good):
        for value in (object(), float("nan"), b"bytes"):
            with pytest.raises(InputError, match=item.name):
                replace(good, **{item.name: value})


@pytest.mark.parametrize("name", CLASSES)
@given(data=st.data())
@settings(max_examples=3)
def test_settings_survive_a_file(name: str, data: st.DataObject) -> None:
    """What a checkpoint or a journal keeps makes the same settings again."""
    good = example(CLASSES[name])
    plain = [i.name for i in fields(good) if type(getattr(good, i.name)) in (int, float)]
    changes = {}
    for field in data.draw(st.lists(st.sampled_from(plain), unique=True, max_size=2)):
        whole = type(getattr(good, field)) is int
        changes[field] = data.draw(st.integers(1, 64) if whole else st.floats(0.01, 1))
    try:
        made = replace(good, **changes)
    except InputError:
        made = good
    kept = json.loads(json.dumps(asdict(made)))
    simple = {i.name: kept[i.name] for i in fields(made) if i.name in plain}
    others = {i.name: getattr(made, i.name) for i in fields(made) if i.name not in plain}
    assert type(made)(**simple, **others) == made


def test_examples_are_of_every_class() -> None:
    assert len(CLASSES) > 25
    for kind in CLASSES.values():
        required = [i.name for i in fields(kind) if i.default is MISSING is i.default_factory]
        assert example(kind) is not None, required


def test_settings_of_an_unknown_kind_are_refused():
    table = {"solver": "best", "steps": 3}
    with pytest.raises(InputError, match="unknown solver 'best'; choose one of one, other"):
        of_kind({"one": dict, "other": dict}, "solver", table)
    assert of_kind({"best": dict}, "solver", table) == {"steps": 3}
