"""Train a score denoiser on the user's own micrographs, guided by a reference if there is one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emlab.data.potentials import potential
from emlab.errors import InputError
from emlab.io import read_image
from emlab.methods.tsm import to_working_size
from emlab.methods.tsm_guidance import Explained, standardise
from emlab.models import build
from emlab.physics.micrograph import MicrographConfig
from emlab.priors.networks import ScorePrior, wrap
from emlab.priors.pose_posterior import Reference
from emlab.priors.score_matching import Guidance, ScoreMatching
from emlab.recipes.lesson import settings_of
from emlab.recipes.tsm import GuidedLoss, Material, places, posterior_means
from emlab.runtime import atomic_path
from emlab.settings import read_profile, read_settings
from emlab.training import TrainingConfig, train

_BOX = 64  # voxels a side of a reference
_MODELS = (".pdb", ".cif", ".ent", ".mmcif")


@dataclass(frozen=True)
class Optics:
    """How a micrograph was taken, as far as its targets need to know.

    `defocus_angstrom` is the mean of the two defoci, positive is underfocus.
    """

    defocus_angstrom: float
    voltage_kv: float = 300.0
    cs_mm: float = 2.7
    amplitude_contrast: float = 0.1

    def config(self, pixel_size_angstrom: float) -> MicrographConfig:
        """As micrographs of a pixel size are described."""
        return MicrographConfig(
            pixel_size_angstrom=pixel_size_angstrom,
            voltage_kv=self.voltage_kv,
            defocus_angstrom=self.defocus_angstrom,
            astigmatism_angstrom=0.0,
            cs_mm=self.cs_mm,
            amplitude_contrast=self.amplitude_contrast,
        )


@dataclass(frozen=True)
class Trained:
    """A score trained on someone's micrographs.

    `tensors` are the network's weights; `model` and `objective` rebuild the network and the prior;
    `told` is how the reference fitted each micrograph, empty without one; `history` are the losses.
    """

    tensors: dict[str, Tensor]
    model: dict[str, Any]
    objective: dict[str, Any]
    told: list[str]
    history: list[dict[str, float]]

    def save(self, path: Path) -> Path:
        """Write one safetensors file that `load_trained` reads back."""
        from safetensors.torch import save

        card = {"model": self.model, "objective": self.objective, "told": self.told}
        content = save(
            {name: value.contiguous() for name, value in self.tensors.items()},
            metadata={"emlab_tsm": json.dumps(card)},
        )
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)
        return path


def load_trained(path: Path | str, device: torch.device | str = "cpu") -> ScorePrior:
    """The score in a file of `Trained.save`; an `InputError` where it is none, or not there."""
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise InputError(f"there is no file {path}; give weights of `emlab tsm train`")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        card = json.loads(metadata["emlab_tsm"])
    except (SafetensorError, KeyError, ValueError) as problem:
        raise InputError(f"{path} was not written by `emlab tsm train`: {problem}") from problem
    network = build(card["model"])
    network.load_state_dict(tensors)
    prior = wrap(network.to(device), card["objective"])
    assert isinstance(prior, ScorePrior)
    return prior


def train_on(
    micrographs: Sequence[NDArray[np.float32]],
    pixel_size_angstrom: float,
    *,
    reference: Tensor | None = None,
    optics: Sequence[Optics] | None = None,
    profile: str = "cpu",
    steps: int | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
    checkpoint: Path | None = None,
    resume: bool = False,
    progress: bool = True,
) -> Trained:
    """Learn the score of micrographs from nothing but themselves, and a reference.

    Parameters
    ----------
    micrographs : sequence of ndarray
        ``(H, W)`` each, protein dark; finer ones are brought to the network's pixel size.
    reference : Tensor, optional
        ``(64, 64, 64)`` at the pixel size of `working_size`; see `read_reference`.
    optics : sequence of Optics, optional
        One a micrograph; needed with a reference, whose poses are sought in each of them.
    profile : str
        Whose ``[training]`` table of recipes/tsm.toml says how long and how large.
    steps : int, optional
        Instead of the profile's.

    Raises
    ------
    InputError
        No micrograph, micrographs too small, a reference without optics, an empty reference, or
        one that explains no micrograph better than its decoys do.
    """
    if not micrographs:
        raise InputError("give at least one micrograph to train on")
    if reference is not None and (optics is None or len(optics) != len(micrographs)):
        raise InputError("targets are seen through the lens: give the defocus of each micrograph")
    name = "tsm_dsm" if reference is None else "tsm_tsm"
    recipe = read_settings("recipes/tsm")["recipes"][name]
    settings = dict(read_profile("recipes/tsm", profile)["training"][name])
    model, table = settings.pop("model"), settings.pop("material", {})
    settings |= {"seed": seed, "evaluate_every": 0} | ({} if steps is None else {"steps": steps})
    objective = ScoreMatching(**settings_of(recipe["objective"]))
    fields, working = [], pixel_size_angstrom
    for values in micrographs:
        coarse, working = to_working_size(np.asarray(values, np.float32), pixel_size_angstrom)
        fields.append(standardise(coarse, working).image)
    crop = min(table.get("crop", Material.crop), *(min(f.shape) for f in fields))
    guides: list[Explained] = []
    if reference is not None and optics is not None:
        seen = [one.config(working) for one in optics]
        guides = posterior_means(fields, Reference(reference, working), seen, progress)
        if not any(one.accepted for one in guides):
            raise InputError(
                "no micrograph looks more like the reference than like its decoys, so nothing "
                "would be guided; check the reference, the defocus and that protein is dark, or "
                "train without one"
            )
    guidance = Guidance(**recipe["guidance"]) if guides else None
    loss = GuidedLoss(fields, objective, crop, guidance, guides)
    corners = places([tuple(f.shape) for f in fields], crop, table.get("crops", 50_000), seed)
    torch.manual_seed(seed)
    result = train(
        build(model), loss, corners, TrainingConfig(**settings),
        device=device, checkpoint=checkpoint, resume=resume, progress=progress,
    )  # fmt: skip
    told = [str(one) for one in guides]
    return Trained(result.weights, model, recipe["objective"], told, result.history)


def working_size(shape: tuple[int, int], pixel_size_angstrom: float) -> float:
    """Pixel size at which a micrograph of this shape is denoised and compared with targets."""
    return to_working_size(np.zeros(shape, np.float32), pixel_size_angstrom)[1]


def read_reference(
    path: Path | str, pixel_size_angstrom: float, voxel_size_angstrom: float | None = None
) -> tuple[Tensor, str]:
    """A map or an atomic model as ``(64, 64, 64)`` at a pixel size, and what was done to it.

    It is a PDB or mmCIF model, or an MRC map with protein positive, whose voxel size may be given
    instead of its header's.

    Raises
    ------
    InputError
        Not a cubic map, no voxel size, a map that is empty, or a particle larger than the box.
    """
    path = Path(path)
    if path.suffix.lower() in _MODELS:
        made = potential(path, pixel_size_angstrom, _BOX)
        return made, f"potential of the model at {pixel_size_angstrom:.4g} A"
    image = read_image(path)
    size = voxel_size_angstrom or image.pixel_size_angstrom
    if image.pixels.ndim != 3 or len(set(image.pixels.shape)) != 1:
        raise InputError(f"{path} has shape {image.pixels.shape}; a reference map is a cube")
    if not isinstance(size, float):
        raise InputError(f"{path} does not say one voxel size; give --voxel-size in angstrom")
    if not image.pixels.std() > 0:
        raise InputError(f"{path} is constant: the target bank would be empty; check the map")
    volume = torch.from_numpy(image.pixels - np.median(image.pixels)).float()
    resampled = _resample(volume, size / pixel_size_angstrom)
    told = f"map of {size:.4g} A a voxel"
    if abs(size / pixel_size_angstrom - 1) > 0.01:
        told += f", rescaled to the micrographs' {pixel_size_angstrom:.4g} A"
    return resampled, told


def _resample(volume: Tensor, ratio: float) -> Tensor:
    """A cube whose voxels are `ratio` times those wanted, as ``(64, 64, 64)``, centres kept."""
    axis = (torch.arange(_BOX) - _BOX // 2).float()
    side = volume.shape[0]
    place = (axis / ratio + side // 2 + 0.5) / side * 2 - 1
    grid = torch.stack(torch.meshgrid(place, place, place, indexing="ij")[::-1], dim=-1)
    if ratio < 1:  # the map is finer: blur what the new grid cannot hold
        volume = _low_pass(volume, ratio)
    return torch.nn.functional.grid_sample(
        volume[None, None], grid[None], mode="bilinear", padding_mode="zeros", align_corners=False
    )[0, 0]


def _low_pass(volume: Tensor, ratio: float) -> Tensor:
    axis = torch.fft.fftfreq(volume.shape[0]).abs() <= ratio / 2
    half = torch.fft.rfftfreq(volume.shape[0]) <= ratio / 2
    keep = axis[:, None, None] & axis[:, None] & half
    return torch.fft.irfftn(torch.fft.rfftn(volume) * keep, s=volume.shape)
