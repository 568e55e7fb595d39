"""Networks that the authors of Cellpose released, in the form of emlab's own weights.

They are not part of this repository. cellpose 3.1 downloads them at its first use into the folder
``.cellpose/models`` of the user: ``nuclei`` segments, ``denoise_nuclei``, ``deblur_nuclei`` and
``upsample_nuclei`` restore. Each is a torch file of a network of widths 32 to 256.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from emlab import weights
from emlab.errors import InputError
from emlab.models import build

_NAMES = (
    (r"downsample\.down\.res_down_(\d+)\.conv\.conv_([01])\.", r"down.\1.unit1.\2."),
    (r"downsample\.down\.res_down_(\d+)\.conv\.conv_2\.", r"down.\1.unit2.0."),
    (r"downsample\.down\.res_down_(\d+)\.conv\.conv_3\.", r"down.\1.unit2.1."),
    (r"downsample\.down\.res_down_(\d+)\.proj\.", r"down.\1.skip."),
    (r"upsample\.up\.res_up_(\d+)\.conv\.conv_0\.", r"up.\1.enter."),
    (r"upsample\.up\.res_up_(\d+)\.conv\.conv_1\.conv\.", r"up.\1.convolutions.0."),
    (r"upsample\.up\.res_up_(\d+)\.conv\.conv_2\.conv\.", r"up.\1.convolutions.1."),
    (r"upsample\.up\.res_up_(\d+)\.conv\.conv_3\.conv\.", r"up.\1.convolutions.2."),
    (r"upsample\.up\.res_up_(\d+)\.conv\.conv_1\.full\.", r"up.\1.styles.0."),
    (r"upsample\.up\.res_up_(\d+)\.conv\.conv_2\.full\.", r"up.\1.styles.1."),
    (r"upsample\.up\.res_up_(\d+)\.conv\.conv_3\.full\.", r"up.\1.styles.2."),
    (r"upsample\.up\.res_up_(\d+)\.proj\.", r"up.\1.skip."),
    (r"output\.", "leave."),
)


def converted(state: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Model table and tensors for `ResidualUNet` from the state of a network of cellpose 3.

    An `InputError` if the state is of another network.
    """
    tensors = {}
    for key, value in state.items():
        if key.startswith("diam_"):
            continue
        name = next((re.sub(a, b, key) for a, b in _NAMES if re.match(a, key)), None)
        if name is None or not isinstance(value, Tensor):
            raise InputError(f"{key} is not part of a network of cellpose 3; give one of its files")
        tensors[name] = value
    levels = sorted({int(name.split(".")[1]) for name in tensors if name.startswith("down.")})
    try:
        model: dict[str, Any] = {
            "kind": "residual_unet",
            "widths": [len(tensors[f"down.{level}.skip.1.weight"]) for level in levels],
            "outputs": len(tensors["leave.2.weight"]),
            "channels": tensors["down.0.skip.1.weight"].shape[1],
        }
        build(model).load_state_dict(tensors)
    except (KeyError, RuntimeError, InputError) as problem:
        raise InputError(
            f"the file lacks parts of a network of cellpose 3 ({problem}); download it again"
        ) from problem
    return model, tensors


def import_released(
    file: str | os.PathLike[str], name: str, folder: str | os.PathLike[str]
) -> weights.Card:
    """Write a released network as weights and card into a folder, to be named by EMLAB_WEIGHTS.

    Parameters
    ----------
    file : path
        As cellpose 3.1 downloaded it; only tensors are read from it, no code is run. An
        `InputError` if it is not one of cellpose 3.
    name : str
        To load it by, for instance ``cellpose3_denoise`` in place of the shipped one.
    """
    source = Path(file)
    if not source.is_file():
        raise InputError(f"there is no file {source}; cellpose 3.1 keeps its in .cellpose/models")
    try:
        state = torch.load(source, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, OSError) as problem:
        raise InputError(f"{source} is not a torch file of tensors; download it again") from problem
    if not isinstance(state, Mapping):
        raise InputError(f"{source} holds no state of a network; give a file of cellpose 3")
    model, tensors = converted(state)
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    fields = {
        "recipe": f"emlab weights import-cellpose {source.name} {name}",
        "data": "that of the authors of Cellpose",
        "split": f"released file {source.name}, sha256 {digest}",
        "steps": 0,
        "seconds": 0.0,
        "device": "unknown",
        "seed": 0,
        "commit": "none",
        "evaluation": {},
        "limits": "Nuclei of 17 pixels; for other released networks give diameter * 17 / 30.",
        "model": model,
        "objective": {"kind": "segmenter" if model["outputs"] == 3 else "restorer"},
    }
    return weights.save(name, tensors, fields, folder)
