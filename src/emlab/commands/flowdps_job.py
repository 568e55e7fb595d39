"""What ``emlab flowdps retrieve`` does with a file, batch by batch, once its options are read."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer

from emlab import weights
from emlab.commands.restoring import bar, note, unit
from emlab.data.particles import OPTIONS, STACKS, read_particles, write_star
from emlab.errors import InputError
from emlab.io import write_image
from emlab.methods.flowdps import Config, Retrieval, load, load_config, retrieve
from emlab.methods.flowdps_misfit import WARNING
from emlab.methods.flowdps_observation import CONTRASTS, check, find_contrast
from emlab.runtime import Stopwatch, atomic_path, choose_device, choose_threads, make_generator
from emlab.solvers.block_journal import Journal, keep_arrays, kept_arrays
from emlab.solvers.block_layout import BlockAxis

ARRAYS = ("image", "spread", "chi2", "chi2_low", "dose_per_angstrom2", "gain", "offset")
UNSEEN = 2.0  # electrons per square angstrom below which the user is told
NEAR_FOCUS = 1000.0  # angstrom below which a defocus is hardly meant


@dataclass
class Job:
    """One call of the command: what the user asked for, then what was read."""

    source: Path
    out: Path
    spread: Path | None
    samples: int | None
    prior_name: str | None
    config_name: str
    contrast: str
    dose: float | None
    b_factor: float
    crop: bool
    seed: int
    device: str

    def open(self, known: dict[str, float]) -> None:
        """Refuse what cannot work before the work, then read the particles and load the prior."""
        self.config: Config = load_config(self.config_name)
        if self.samples is not None:
            self.config = replace(self.config, samples=self.samples)
        if self.prior_name is not None:
            self.config = replace(self.config, prior=self.prior_name)
        if self.contrast not in CONTRASTS:
            raise InputError(f"--contrast is {', '.join(CONTRASTS)}, not {self.contrast!r}")
        if self.spread is not None and self.config.samples < 2:
            raise InputError("--spread is over samples; give --samples 2 or more")
        weights.card(self.config.prior)
        self.star, self.table = (self.out.with_suffix(suffix) for suffix in (".star", ".csv"))
        self._check_outputs([self.source])
        self.known = known
        self.particles = _read(self.source, known)
        self._check_outputs(self._stacks())
        defocus = np.minimum(self.particles.defocus_u_angstrom, self.particles.defocus_v_angstrom)
        if float(np.abs(defocus).min()) < NEAR_FOCUS:
            note(
                f"a defocus of {np.abs(defocus).min():g} angstrom is next to none: it is given in "
                "angstrom, 1.5 um is 15000"
            )
        for sentence in check(self.particles, crop=self.crop, dose_per_angstrom2=self.dose):
            note(sentence)
        if self.contrast == "auto" and self.dose is None:
            self.contrast, sentence = find_contrast(self.particles)
            note(sentence)
        choose_threads()
        self.place: torch.device = choose_device(self.device)

    def run(self, resume: bool) -> None:
        """Retrieve batch by batch; what is done stays if the run is interrupted."""
        count, size = len(self.particles), self.config.batch
        starts = range(0, count, size)
        axes = [BlockAxis(len(starts), 1, 0, 0, 1), *(BlockAxis(1, 1, 0, 0, 1) for _ in "yx")]
        folder = self.out.with_name(f".{self.out.stem}.partial")
        if folder.exists() and not resume:
            raise InputError(
                f"{folder} is left of an interrupted run; add --resume to go on with it, or "
                "delete it"
            )
        journal = Journal(folder, self._facts(), axes, lasting=True)
        with Stopwatch() as watch, journal.opened(fresh=False):
            done = journal.written
            if done < len(starts):
                prior, spread, origin = load(self.config, self.place)
                note(f"spread of the prior's answers: {origin}")
            with bar("particles") as progress:
                for number in range(done, len(starts)):
                    found = retrieve(
                        self.particles.subset(slice(starts[number], starts[number] + size)),
                        None,
                        self.config,
                        make_generator(_seed(self.seed, number)),
                        prior=prior,
                        spread=spread,
                        dose_per_angstrom2=self.dose,
                        contrast=self.contrast,  # type: ignore[arg-type]
                        crop=self.crop,
                        b_factor_angstrom2=self.b_factor,
                        device=self.place,
                        progress=_within(progress, number, len(starts)),
                    )
                    _keep(folder / f"{number}.npz", found)
                    journal.close_block((number, 0, 0))
            parts = [kept_arrays(folder / f"{number}.npz") for number in range(len(starts))]
            whole = {name: np.concatenate([part[name] for part in parts]) for name in ARRAYS}
            pixel = float(parts[0]["pixel_size_angstrom"])
            self._write(whole, pixel)
            self._tell(whole, pixel, min(count, done * size), watch.seconds)
        shutil.rmtree(folder)

    def _write(self, whole: dict[str, np.ndarray], pixel: float) -> None:
        write_image(self.out, whole["image"], pixel)
        if self.spread is not None:
            write_image(self.spread, whole["spread"], pixel)
        side = whole["image"].shape[-1]
        centred = replace(self.particles, pixel_size_angstrom=pixel, shifts_angstrom=None)
        write_star(self.star, centred, self.out.name, side)
        names = ("chi2", "chi2_low", "dose_per_angstrom2", "gain", "offset")
        with (
            atomic_path(self.table) as path,
            open(path, "w", newline="", encoding="utf-8") as stream,
        ):
            rows = csv.writer(stream)
            rows.writerow(["particle", "image", *names])
            for i, (stack, place) in enumerate(self.particles.images_at):
                numbers = [f"{whole[name][i]:.6g}" for name in names]
                rows.writerow([i + 1, f"{place + 1:06d}@{stack}", *numbers])

    def _tell(self, whole: dict[str, np.ndarray], pixel: float, done: int, seconds: float) -> None:
        data, chi2 = self.particles, whole["chi2_low"]
        middle, side = float(np.median(chi2)), data.images.shape[-1]
        warn_above = WARNING.values["warn_above"]
        defocus = (data.defocus_u_angstrom + data.defocus_v_angstrom) / 2e4
        if middle > warn_above:
            note(
                f"a coarse chi^2 of {middle:.2f} says that prior and metadata do not explain most "
                "images: another particle, neighbours, or a wrong defocus; do not trust the phases"
            )
        if self.dose is None and np.median(whole["dose_per_angstrom2"]) < UNSEEN:
            note(
                "most images do not show the prior's particle, the phases are the prior's own: "
                "look at the contrast, the defocus and the particle"
            )
        dose = f"{np.median(whole['dose_per_angstrom2']):.3g} electrons per square angstrom"
        found = "fitted" if self.dose is None else "given"
        rows = {
            "input": f"{len(data)} particles of {side} x {side} pixels"
            f"{unit(data.pixel_size_angstrom)}",
            "optics": f"{data.voltage_kv:g} kV, Cs {data.cs_mm:g} mm, amplitude contrast "
            f"{data.amplitude_contrast:g}, defocus {defocus.min():.2f} to {defocus.max():.2f} um",
            "prior": f"{self.config.prior}, mean of {self.config.samples} "
            f"sample{'' if self.config.samples == 1 else 's'} ({self.config_name})",
            "dose": f"{dose}, median ({found})",
            "chi^2": f"{np.median(whole['chi2']):.3f} median; 1 is expected",
            "coarse chi^2": f"{middle:.2f} median, {chi2.min():.2f} to {chi2.max():.2f}; "
            f"above {warn_above:g} are 5 % of the prior's own particles",
            "seconds": f"{seconds:.1f}, {len(data) - done} particles now",
            "written": f"{self.out}, phases {whole['image'].min():.3g} to "
            f"{whole['image'].max():.3g} rad{unit(pixel)}",
            "beside it": f"{self.star}, {self.table}",
        }
        if self.spread is not None:
            rows["spread"] = f"{self.spread}, {whole['spread'].mean():.3g} rad on average"
        for key, text in rows.items():
            typer.echo(f"{key:<16}{text}")

    def _check_outputs(self, inputs: list[Path]) -> None:
        """No output may be an input or another output, and all must be files that can be made."""
        images = [path for path in (self.out, self.spread) if path is not None]
        for path in images:
            if path.suffix.lower() not in STACKS:
                raise InputError(f"{path}: phases are written as {', '.join(STACKS)}")
        outputs = [*images, self.star, self.table]
        if len({path.resolve() for path in outputs}) < len(outputs):
            raise InputError(f"{self.spread} would hold both results; give --spread another name")
        for path in outputs:
            if path.is_dir() or (path.parent.exists() and not path.parent.is_dir()):
                raise InputError(f"cannot write {path}: give a file name in a folder")
            if path.resolve() in {given.resolve() for given in inputs}:
                raise InputError(f"{path} is an input itself; give the result another name")

    def _stacks(self) -> list[Path]:
        """Where the stacks of the table may lie, see `read_particles`."""
        names = {Path(name) for name, _ in self.particles.images_at}
        beside = [self.source.parent / name.name for name in names]
        return [*beside, *(up / name for name in names for up in self.source.absolute().parents)]

    def _facts(self) -> dict[str, Any]:
        """All that the result depends on."""
        facts = self.source.stat()
        return {
            "input": f"{self.source.name}, {facts.st_size} bytes, changed {facts.st_mtime_ns}",
            "options": self.known,
            "particles": len(self.particles),
            "weights": weights.card(self.config.prior).sha256,
            "config": repr(self.config),
            "contrast": self.contrast,
            "dose": self.dose,
            "b_factor": self.b_factor,
            "crop": self.crop,
            "seed": self.seed,
        }


def _read(source: Path, known: dict[str, float]) -> Any:
    """Particles; what they lack is asked for by the names of the options."""
    try:
        return read_particles(source, **known)
    except InputError as problem:
        text = str(problem)
        if known or "without metadata" in text or "does not say" in text:
            text = text.replace("defocus_u_angstrom is", "--defocus is")
            for name in OPTIONS:
                option = name.removesuffix("_angstrom").replace("_", "-")
                text = text.replace(name, f"--{option}")
        raise InputError(text) from problem


def _seed(seed: int, number: int) -> int:
    """Seed of a batch: what it becomes does not hang on when the run was interrupted."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint32)[0])


def _within(
    progress: Callable[[int, int], None], number: int, batches: int
) -> Callable[[int, int], None]:
    """Steps of one batch as those of the whole run."""
    return lambda done, total: progress(number * total + done, batches * total)


def _keep(file: Path, found: Retrieval) -> None:
    arrays = {name: getattr(found, name) for name in ARRAYS}
    if arrays["spread"] is None:
        arrays["spread"] = np.zeros((len(found.image), 0, 0), np.float32)
    keep_arrays(file, {"pixel_size_angstrom": np.array(found.pixel_size_angstrom), **arrays})
