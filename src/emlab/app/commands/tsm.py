"""``emlab tsm``: train, denoise and judge denoisers of cryo-electron micrographs."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import lru_cache
from math import isnan, nan
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from emlab import weights
from emlab.app.commands.job import Job, Seeded, bar, check_positive, note
from emlab.app.commands.options import Device, Scheduler, Workers, argument, command, group, option
from emlab.app.commands.tsm_picking import PickEvaluation, PixelSize, read_micrographs
from emlab.app.tasks import check_crew, hire, quiet_threads
from emlab.data.micrographs import read_micrograph
from emlab.data.particles import read_star
from emlab.errors import InputError
from emlab.io.images import write_like
from emlab.methods.tsm import NAMES, Config, denoise, load_denoiser
from emlab.priors.networks import ScorePrior
from emlab.priors.pose_posterior import Reference
from emlab.recipes.tsm import lens_of
from emlab.recipes.tsm_own import (
    Optics,
    load_trained,
    read_reference,
    train_on,
    working_size,
)
from emlab.runtime import atomic_path, choose_device

app = group(
    "Denoise cryo-electron micrographs, for looking and picking.\n\n"
    "**Try it:** `emlab tsm denoise raw.mrc clean.mrc`, "
    "`emlab tsm train raw/*.mrc mine.safetensors --reference map.mrc --defocus 15000`\n\n"
    "Headers are kept, extended ones too. A denoised micrograph shows where particles are; "
    "*extract them from the raw one*. What the shipped networks were trained on: `emlab weights "
    "card tsm_tsm`."
)
SUFFIXES = (".mrc", ".mrcs", ".tif", ".tiff")
# Columns of a STAR file with what holds where it says nothing.
OPTICS = {
    "rlnDefocusU": nan,
    "rlnDefocusV": nan,
    "rlnVoltage": 300.0,
    "rlnSphericalAberration": 2.7,
    "rlnAmplitudeContrast": 0.1,
}


@dataclass(frozen=True)
class Source:
    """A micrograph to be read, and its place below the output folder."""

    path: Path
    relative: Path
    optics: Optics | None = None


def gather(files: list[Path]) -> tuple[list[Source], list[Path]]:
    """Micrographs in files, folders and STAR files, and the STAR files among them.

    Refused: a missing file, nothing found, two that would have the same name in the output.
    """
    found: list[Source] = []
    stars = []
    for file in files:
        if file.is_dir():
            inside = sorted(
                path
                for path in file.rglob("*")
                if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
            )  # hidden ones are what a killed program left, or a system's own
            found += [Source(path, path.relative_to(file)) for path in inside]
        elif file.suffix.lower() == ".star":
            stars.append(file)
            found += _listed(file)
        elif not file.is_file():
            raise InputError(f"there is no file {file}; check the name")
        else:
            found.append(Source(file, Path(file.name)))
    if not found:
        raise InputError(f"no mrc or tif in {', '.join(map(str, files))}; give micrographs")
    names = [str(source.relative) for source in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise InputError(f"two micrographs would be written as {twice}; give their folder instead")
    return found, stars


def _listed(star: Path) -> list[Source]:
    """Micrographs of a STAR file; names are relative to the project, that is here or beside it."""
    tables = read_star(star)
    table = next((t for t in tables.values() if "rlnMicrographName" in t), None)
    if table is None:
        raise InputError(f"{star} lists no rlnMicrographName; give a micrographs.star")
    groups = tables.get("optics", {})
    found = []
    for row, name in enumerate(table["rlnMicrographName"]):
        relative = Path(name)
        places = [Path(name), star.parent / name, *(up / name for up in star.resolve().parents)]
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            raise InputError(f"{star} lists {name}, which is not there; run in the project folder")
        if relative.is_absolute() or ".." in relative.parts:
            relative = Path(relative.name)
        said = {column: float(table[column][row]) for column in OPTICS if column in table}
        group = int(table["rlnOpticsGroup"][row]) - 1 if "rlnOpticsGroup" in table else 0
        shared = {column: float(groups[column][group]) for column in OPTICS if column in groups}
        found.append(Source(path, relative, _optics(OPTICS | shared | said)))
    return found


def _optics(said: dict[str, float]) -> Optics | None:
    u, v, *rest = (said[column] for column in OPTICS)
    return None if isnan(u) else Optics(u if isnan(v) else (u + v) / 2, *rest)


@command(app, "denoise")
class Denoise(Job):
    """Denoise micrographs: one file, whole folders, or those that a STAR file lists.

    **Example:** `emlab tsm denoise MotionCorr/ denoised/ --workers 4 --resume`

    Folders are searched for mrc and tif, and their structure is kept in OUT; with a STAR file
    OUT also gets the STAR file, so that a project can point to OUT instead.
    """

    files: list[Path] = argument(
        "mrc or tif files, folders, or a micrographs.star; last the result: a file for "
        "one micrograph, else a folder.",
        metavar="IN... OUT",
    )
    model: str = option("tsm", "tsm, dsm, a name of `emlab weights list` or a safetensors file.")
    pixel_size: PixelSize = None
    noise: float | None = option(None, "Standard deviation in grey levels.", shown="estimated")
    reference: Path | None = option(
        None, "MRC map or PDB/mmCIF model that guides where it fits; needs the defocus."
    )
    defocus: float | None = option(
        None, "Angstrom, underfocus positive, of all micrographs.", shown="from the STAR file"
    )
    voltage: float = option(300, "kV; a STAR file counts more.")
    voxel_size: float | None = option(None, "Of the map, angstrom.", shown="from its header")
    invert: bool = option(False, "Protein is bright in IN; it stays bright in OUT.")
    memory: float = option(800, "Working memory of the network in MB.")
    workers: Workers = 1
    scheduler: Scheduler = None
    resume: bool = option(False, "Leave out what is already in OUT.")
    device: Device = "auto"

    def open(self) -> None:
        """Refuse what cannot work before the work."""
        if len(self.files) < 2:
            raise InputError("give micrographs and, last, where the result goes")
        *inputs, self.out = self.files
        self.sources, self.stars = gather(inputs)
        self.config = Config(memory_mb=self.memory)
        single = len(inputs) == 1 and inputs[0].is_file() and not self.stars
        if single and self.out.suffix.lower() in SUFFIXES:
            self.targets = [self.out]
        elif single and self.out.suffix and not self.out.is_dir():
            raise InputError(
                f"{self.out} is no name of an image; end it in {', '.join(SUFFIXES)}, or give a "
                "folder that exists"
            )
        elif self.out.is_file():
            raise InputError(f"{self.out} is a file; give a folder for the results")
        else:
            self.targets = [self.out / source.relative for source in self.sources]
        for source, target in zip(self.sources, self.targets, strict=True):
            if source.path.resolve() == target.resolve():
                raise InputError(f"{target} is the input itself; give another output")
        check_positive(noise=self.noise)
        if self.reference is not None:
            for source in self.sources:
                _given(source, self.defocus, self.voltage)
            if not self.reference.is_file():
                raise InputError(f"there is no file {self.reference}; give a map or a model")
        check_crew(self.workers, self.scheduler)
        alone = len(self.targets) == 1 and self.workers == 1 and self.scheduler is None
        done = [target for target in self.targets if target.exists()]
        if done and not self.resume and not alone:
            raise InputError(
                f"{len(done)} results are already in {self.out}; add --resume to keep them and "
                f"go on, or give an empty folder"
            )
        load(self.model, self.place)

    def run(self) -> dict[str, str]:
        """Denoise what is not there yet; each result appears whole."""
        pairs = [
            (source, target)
            for source, target in zip(self.sources, self.targets, strict=True)
            if not (self.resume and target.exists())
        ]
        model = self.model
        if model.lower().endswith(".safetensors"):
            model = str(Path(model).absolute())
        arguments = model, self.pixel_size, self.noise, self.invert, self.config, self.device
        calls = [
            (one.path.absolute(), other.absolute(), *arguments, self._guide(one))
            for one, other in pairs
        ]
        with hire(self.workers, self.scheduler) as crew, bar("denoise") as progress:
            alone = (denoise_file(*call) for call in calls)
            lines = alone if crew is None else crew.each(_denoise_apart, calls)
            for number, (line, (_, target)) in enumerate(zip(lines, pairs, strict=True)):
                tqdm.write(f"{target}  {line}")
                progress(number + 1, len(pairs))
        for star in self.stars:
            with atomic_path(self.out / star.name) as path:
                shutil.copyfile(star, path)
        skipped = len(self.targets) - len(pairs)
        return {"left out": f"{skipped} were already there"} if skipped else {}

    def _guide(self, source: Source) -> Guide | None:
        if self.reference is None:
            return None
        optics = _given(source, self.defocus, self.voltage)
        return Guide(self.reference.absolute(), self.voxel_size, optics)


@dataclass(frozen=True)
class Guide:
    """A file with a reference, its voxel size if told, and how the micrograph was taken."""

    path: Path
    voxel_size: float | None
    optics: Optics


def _given(source: Source, defocus: float | None, voltage: float) -> Optics:
    """What a STAR file says of a micrograph, or the options."""
    if source.optics is not None:
        return source.optics
    if defocus is None:
        raise InputError("a reference is seen through the lens: give --defocus in angstrom")
    return Optics(defocus, voltage)


@lru_cache(maxsize=2)
def _reference(path: Path, voxel_size: float | None, pixel_size: float) -> Reference:
    return Reference(read_reference(path, pixel_size, voxel_size)[0], pixel_size)


def denoise_file(
    source: Path,
    target: Path,
    model: str,
    pixel_size: float | None,
    noise: float | None,
    invert: bool,
    config: Config,
    device: str,
    guide: Guide | None = None,
) -> str:
    """Denoise one file into another and return a line about it."""
    place, sign = choose_device(device), np.float32(-1 if invert else 1)
    found = read_micrograph(source, pixel_size)
    size, score = found.pixel_size_angstrom, load(model, place)
    told: dict[str, Any] = {"sigma": noise, "device": place}
    if guide is not None:
        height, width = found.pixels.shape
        working = working_size((height, width), size)
        told["reference"] = _reference(guide.path, guide.voxel_size, working)
        told["lens"] = lens_of(guide.optics.config(working))
    result = denoise(sign * found.pixels, size, score, config, **told)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_like(target, sign * result.image, source)
    height, width = found.pixels.shape
    line = f"{height} x {width} pixels of {size:.4g} A, noise {result.noise_sigma:.4g}"
    return ", ".join([line, f"{result.cost.seconds:.1f} s", *result.notes])


def _denoise_apart(source: Path, target: Path, *arguments: Any) -> str:
    """Task of a worker: as `denoise_file`, unless a worker that was lost has done it."""
    if target.exists():
        return "done by a worker that was lost after it"
    quiet_threads()
    return denoise_file(source, target, *arguments)


def load(model: str, place: torch.device) -> ScorePrior:
    """A score by name, or from a file of `emlab tsm train`."""
    if model.lower().endswith(".safetensors"):
        changed = Path(model).stat().st_mtime_ns if Path(model).is_file() else 0
        return _loaded(load_trained, model, place, str(changed))
    return _loaded(load_denoiser, model, place, weights.card(NAMES.get(model, model)).sha256)


@lru_cache(maxsize=1)
def _loaded(loader: Any, model: str, place: torch.device, version: str) -> ScorePrior:
    """The last one is kept, for the next micrograph; a worker may live longer than its files."""
    return loader(model, place)


@command(app, "train")
class Train(Seeded):
    """Train a denoiser on your own micrographs, and write it as one file.

    **Example:** `emlab tsm train raw/ mine.safetensors --reference 6z6u.pdb --defocus 12000`

    Then `emlab tsm denoise raw/ denoised/ --model mine.safetensors`. A reference pulls the result
    towards itself: look at `emlab tsm denoise` of a micrograph without particles, too.
    """

    files: list[Path] = argument(
        "Raw micrographs, folders or a micrographs.star; last the .safetensors to write.",
        metavar="MICROGRAPHS... OUT",
    )
    reference: Path | None = option(
        None, "MRC map or PDB/mmCIF model that guides; without it plain DSM."
    )
    defocus: float | None = option(
        None, "Angstrom, underfocus positive, of all micrographs.", shown="from the STAR file"
    )
    voltage: float = option(300, "kV; a STAR file counts more.")
    pixel_size: PixelSize = None
    voxel_size: float | None = option(None, "Of the map, angstrom.", shown="from its header")
    invert: bool = option(False, "Protein is bright.")
    profile: str = option("cpu", "smoke, cpu, gpu or paper: how long.")
    steps: int | None = option(None, "Instead of the profile's.", min=1)
    resume: bool = option(False, "Go on from the checkpoint beside OUT.")

    def open(self) -> None:
        """Read everything that training needs, and refuse what cannot work."""
        if len(self.files) < 2 or self.files[-1].suffix.lower() != ".safetensors":
            raise InputError("give micrographs and, last, the .safetensors file to write")
        *inputs, self.out = self.files
        self.sources, _ = gather(inputs)
        self.pixels, self.size = read_micrographs(
            [source.path for source in self.sources], self.pixel_size, self.invert
        )
        self.volume, self.optics = None, None
        if self.reference is not None:
            self.optics = [_given(one, self.defocus, self.voltage) for one in self.sources]
            height, width = self.pixels[0].shape
            working = working_size((height, width), self.size)
            self.volume, told = read_reference(self.reference, working, self.voxel_size)
            note(f"{self.reference}: {told}")

    def run(self) -> dict[str, str]:
        """Train and write one file."""
        trained = train_on(
            self.pixels,
            self.size,
            reference=self.volume,
            optics=self.optics,
            profile=self.profile,
            steps=self.steps,
            device=self.place,
            seed=self.seed,
            checkpoint=self.out.with_suffix(".checkpoint"),
            resume=self.resume,
        )
        trained.save(self.out)
        self.out.with_suffix(".checkpoint").unlink(missing_ok=True)
        rows = {"written": f"{self.out}, learned from {len(self.pixels)} micrographs"}
        if self.reference is not None:
            rows |= {
                str(s.relative): told for s, told in zip(self.sources, trained.told, strict=True)
            }
        return rows | {f"step {e['step']:.0f}": f"loss {e['loss']:.4f}" for e in trained.history}


command(app, "pick-eval")(PickEvaluation)
