"""Trained weights: one safetensors file and one card each, checked against its hash when loaded.

A folder of weights has ``files/<name>.safetensors`` and ``cards/<name>.toml``. The package ships
one; a folder of your own, named by EMLAB_WEIGHTS, is looked up first.
"""

from __future__ import annotations

import hashlib
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli_w

from emlab.errors import InputError, IntegrityError
from emlab.runtime import atomic_path

if TYPE_CHECKING:
    from torch import Tensor

PACKAGED = Path(__file__).parent
MAX_PACKAGED_BYTES = 16 * 10**6

__all__ = ["Card", "card", "folders", "load", "names", "path", "save"]


@dataclass(frozen=True)
class Card:
    """How a checkpoint was made, how good it is and where it must not be used.

    ``sha256`` is that of the safetensors file, ``recipe`` the command that makes it again, ``data``
    and ``split`` what it was trained on; ``evaluation`` has measured numbers by name, ``limits``
    the limits of use in words; from ``model`` and ``objective`` `emlab.models` and `emlab.priors`
    rebuild the network and its prior; ``raw`` is everything that the card's file says.
    """

    name: str
    sha256: str
    recipe: str
    data: str
    split: str
    steps: int
    seconds: float
    device: str
    seed: int
    commit: str
    evaluation: dict[str, Any]
    limits: str
    model: dict[str, Any]
    objective: dict[str, Any]
    raw: dict[str, Any] = field(repr=False)


_FIELDS = tuple(f.name for f in fields(Card) if f.name not in ("name", "raw"))


def folders() -> list[Path]:
    """Return the folders that are searched, first match wins: EMLAB_WEIGHTS, then the package."""
    own = os.environ.get("EMLAB_WEIGHTS", "")
    return [Path(own).expanduser(), PACKAGED] if own else [PACKAGED]


def names() -> list[str]:
    """Return the names of all checkpoints that have a card."""
    cards = (file for folder in folders() for file in (folder / "cards").glob("*.toml"))
    return sorted({file.stem for file in cards if not file.name.startswith(".")})


def path(name: str) -> Path:
    """Return the safetensors file of a checkpoint; an unknown name is an `InputError`."""
    return _folder(name) / "files" / f"{name}.safetensors"


def card(name: str) -> Card:
    """Return the card of a checkpoint.

    An unknown name is an `InputError` that lists those there are, a card that cannot be read or
    lacks a field an `IntegrityError`.
    """
    file = _folder(name) / "cards" / f"{name}.toml"
    try:
        raw = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise IntegrityError(f"the card {file} cannot be read ({problem}); restore it") from problem
    missing = [key for key in _FIELDS if key not in raw]
    if missing:
        raise IntegrityError(f"the card {file} lacks {', '.join(missing)}; train {name} again")
    return Card(name=name, raw=raw, **{key: raw[key] for key in _FIELDS})


def load(name: str) -> tuple[dict[str, Tensor], Card]:
    """Return the tensors of a checkpoint (on the CPU) and its card, after checking the hash.

    A file that is missing, truncated or altered is an `IntegrityError`.
    """
    found, file = card(name), path(name)
    if not file.is_file():
        raise IntegrityError(f"{name} has a card but {file} is missing; run `{found.recipe}`")
    content = file.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != found.sha256:
        raise IntegrityError(
            f"the weights file {file} is truncated or altered: sha256 {digest[:16]}... "
            f"({len(content)} bytes), its card says {found.sha256[:16]}...; "
            f"restore it or run `{found.recipe}`"
        )
    from safetensors import SafetensorError
    from safetensors.torch import load as parse

    try:
        return parse(content), found
    except SafetensorError as problem:
        raise IntegrityError(f"{file} is not a safetensors file ({problem})") from problem


def save(
    name: str,
    tensors: Mapping[str, Tensor],
    card_fields: Mapping[str, Any],
    folder: str | os.PathLike[str] | None = None,
) -> Card:
    """Write a checkpoint and its card, both or neither, and return the card.

    Parameters
    ----------
    tensors
        State dict; all values finite. Stored contiguous, on the CPU, in their own dtype.
    card_fields
        All fields of `Card` except ``name``, ``sha256`` and ``raw``; further ones are kept in
        ``raw``. Values are what TOML can hold: text, finite numbers, booleans, lists and tables.
    folder
        Folder of weights; default: the first of :func:`folders`.

    Raises
    ------
    InputError
        Bad name, a missing field, a value that TOML cannot hold, a tensor that is not finite, or a
        file of more than 16 MB for the package.
    """
    import torch
    from safetensors.torch import save as serialise

    _check_name(name)
    missing = [key for key in _FIELDS if key not in card_fields and key != "sha256"]
    if missing:
        raise InputError(f"the card of {name} lacks {', '.join(missing)}")
    plain = {key: t.detach().cpu().contiguous().clone() for key, t in tensors.items()}
    broken = [key for key, t in plain.items() if not torch.isfinite(t).all()]
    if broken or not plain:
        raise InputError(
            f"refusing to save {name}: {', '.join(broken) or 'no tensor'} is not finite"
        )
    target = folders()[0] if folder is None else Path(folder)
    content = serialise(plain)
    if target == PACKAGED and len(content) > MAX_PACKAGED_BYTES:
        raise InputError(f"{name} has {len(content) / 1e6:.1f} MB; the package takes at most 16 MB")
    described = {**card_fields, "sha256": hashlib.sha256(content).hexdigest()}
    _check_values(described, "")
    order = dict.fromkeys([*_FIELDS, *sorted(described)])
    text = tomli_w.dumps({key: described[key] for key in order})
    with (
        atomic_path(target / "files" / f"{name}.safetensors") as file,
        atomic_path(target / "cards" / f"{name}.toml") as card_file,
    ):
        file.write_bytes(content)
        card_file.write_text(text, encoding="utf-8")
    raw = tomllib.loads(text)
    return Card(name=name, raw=raw, **{key: raw[key] for key in _FIELDS})


def _check_values(value: Any, place: str) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check_values(item, f"{place}.{key}".lstrip("."))
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check_values(item, place)
    elif not isinstance(value, (str, int)) and not (isinstance(value, float) and isfinite(value)):
        raise InputError(
            f"a card cannot hold {place} = {value!r}; use text, finite numbers, lists, tables"
        )


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise InputError(f"{name!r} is no name for weights; use letters, digits, '-', '_' and '.'")


def _folder(name: str) -> Path:
    _check_name(name)
    for folder in folders():
        if (folder / "cards" / f"{name}.toml").is_file():
            return folder
    raise InputError(f"no weights are called {name!r}; there are: {', '.join(names()) or 'none'}")
