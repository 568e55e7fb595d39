"""``emlab flowdps``: retrieve the phase of single particles, with samples and their spread."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from emlab import weights
from emlab.app.commands.job import Seeded, bar, check_outputs, count, identity, note, unit
from emlab.app.commands.options import PriorName, Resume, argument, command, group, option
from emlab.data.particles import OPTIONS, STACKS, read_particles, write_star
from emlab.errors import InputError
from emlab.io import write_image
from emlab.methods.flowdps import Config, Retrieval, load, load_config, retrieve
from emlab.methods.flowdps_config import MEASURED
from emlab.methods.flowdps_observation import CONTRASTS, check, find_contrast
from emlab.runtime import Stopwatch, atomic_path, make_generator
from emlab.settings import read_settings

NUMBERS = ("chi2", "chi2_low", "dose_per_angstrom2", "gain", "offset")
UNSEEN = 2.0  # electrons per square angstrom below which the user is told
NEAR_FOCUS = 1000.0  # angstrom below which a defocus is hardly meant
app = group(
    "The phase that a particle gave the electrons, from one image of it.\n\n"
    "**Try it:** `emlab flowdps retrieve particles.star phases.mrcs --spread doubt.mrcs`\n\n"
    "The shipped prior knows one protein, the 20S proteasome; every other particle is pulled "
    "towards it (`emlab weights card flowdps_flow`). Look at chi2_low in the table beside the "
    "result: it is about 1 where prior and metadata explain an image."
)


@app.callback()
def _group() -> None: ...


@command(app, "retrieve")
class Retrieve(Seeded):
    """Write the phase of each particle in radians, 64 x 64 pixels of about 2.63 A.

    **RELION, cryoSPARC:** `emlab flowdps retrieve particles.star phases.mrcs --crop`

    **A bare stack:** `emlab flowdps retrieve stack.mrcs phases.mrcs --pixel-size 1.3
    --voltage-kv 300 --cs-mm 2.7 --amplitude-contrast 0.1 --defocus 15000`

    Particles are moved to the middle where the file knows their shifts, and resampled. Beside OUT
    stand a STAR file and a table (.csv) with chi^2, its coarse part (which tells another particle),
    the fitted dose, gain and offset of each.
    Phases have no contrast transfer left: use them without correction for it. A killed run leaves
    what it finished; --resume goes on there.
    """

    source: Path = argument(
        "RELION .star, cryoSPARC .cs, or a stack .mrcs, .mrc with options.", metavar="IN"
    )
    out: Path = argument("Stack of phases: .mrcs or .mrc.", metavar="OUT")
    pixel_size: float | None = option(None, "Angstrom.", shown="of the file")
    voltage_kv: float | None = option(None, "For example 300.", shown="of the file")
    cs_mm: float | None = option(None, "Spherical aberration in mm, 2.7.", shown="of the file")
    amplitude_contrast: float | None = option(None, "As a share, 0.1.", shown="of the file")
    defocus: float | None = option(
        None,
        "Angstrom (1.5 um is 15000), underfocus positive; one for all particles.",
        shown="of the file",
    )
    samples: int | None = option(None, "Draws of each particle.", min=1, shown="of the config")
    spread: Path | None = option(
        None, "Also write the standard deviation over the samples.", metavar="OUT2"
    )
    prior: PriorName = None
    config: str = option("ours", "ours (calibrated), paper (its eq. 13), kim or corrected.")
    contrast: str = option("auto", "How matter looks in normalised images: bright, dark or auto.")
    dose: float | None = option(
        None, "Pixels count electrons, of so many per square angstrom.", shown="normalised, fitted"
    )
    b_factor: float = option(0.0, "Envelope of the lens in square angstrom, for example 60.", min=0)
    crop: bool = option(False, "Restore the middle of boxes larger than the field.")
    resume: Resume = False

    def open(self) -> None:
        """Refuse what cannot work before the work, then read the particles."""
        asked = {"samples": self.samples, "prior": self.prior}
        given: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
        self.settings: Config = replace(load_config(self.config), **given)
        if self.contrast not in CONTRASTS:
            raise InputError(f"--contrast is {', '.join(CONTRASTS)}, not {self.contrast!r}")
        if self.spread is not None and self.settings.samples < 2:
            raise InputError("--spread is over samples; give --samples 2 or more")
        weights.card(self.settings.prior)
        self.star, self.table = (self.out.with_suffix(suffix) for suffix in (".star", ".csv"))
        self._check_outputs([self.source])
        said = {name: getattr(self, _option(name)) for name in OPTIONS}
        self.known = {name: value for name, value in said.items() if value is not None}
        self.particles = _read(self.source, self.known)
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

    def run(self) -> dict[str, str]:
        """Retrieve batch by batch; what is done stays if the run is interrupted."""
        size = self.settings.batch
        starts = range(0, len(self.particles), size)
        facts = {
            "input": identity(self.source),
            "particles": len(self.particles),
            "weights": weights.card(self.settings.prior).sha256,
            "settings": repr(self.settings),
        }
        with Stopwatch() as watch, self.pieces(self.out, facts, len(starts)) as pieces:
            if pieces.todo:
                prior, spread, origin = load(self.settings, self.place)
                note(f"spread of the prior's answers: {origin}")
            with bar("particles") as progress:
                for number in pieces.todo:

                    def within(done: int, total: int, number: int = number) -> None:
                        progress(number * total + done, len(starts) * total)

                    found = retrieve(
                        self.particles.subset(slice(starts[number], starts[number] + size)),
                        None,
                        self.settings,
                        make_generator(_seed(self.seed, number)),
                        prior=prior,
                        spread=spread,
                        dose_per_angstrom2=self.dose,
                        contrast=self.contrast,  # type: ignore[arg-type]
                        crop=self.crop,
                        b_factor_angstrom2=self.b_factor,
                        device=self.place,
                        progress=within,
                    )
                    pieces.keep(number, _arrays(found))
            parts = pieces.kept()
            pixel = float(parts[0].pop("pixel_size_angstrom"))
            whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            self._write(whole, pixel)
        return self._told(whole, pixel, pieces.done * size, watch.seconds)

    def _write(self, whole: dict[str, np.ndarray], pixel: float) -> None:
        write_image(self.out, whole["phase"], pixel)
        if self.spread is not None:
            write_image(self.spread, whole["spread"], pixel)
        centred = replace(self.particles, pixel_size_angstrom=pixel, shifts_angstrom=None)
        write_star(self.star, centred, self.out.name, whole["phase"].shape[-1])
        with (
            atomic_path(self.table) as path,
            open(path, "w", newline="", encoding="utf-8") as stream,
        ):
            rows = csv.writer(stream)
            rows.writerow(["particle", "image", *NUMBERS])
            for i, (stack, place) in enumerate(self.particles.images_at):
                numbers = [f"{whole[name][i]:.6g}" for name in NUMBERS]
                rows.writerow([i + 1, f"{place + 1:06d}@{stack}", *numbers])

    def _told(
        self, whole: dict[str, np.ndarray], pixel: float, done: int, seconds: float
    ) -> dict[str, str]:
        data, chi2, config = self.particles, whole["chi2_low"], self.settings
        middle, side = float(np.median(chi2)), data.images.shape[-1]
        warn_above = read_settings(MEASURED)["warning"]["warn_above"]
        defocus = (data.defocus_u_angstrom + data.defocus_v_angstrom) / 2e4
        dose = float(np.median(whole["dose_per_angstrom2"]))
        if middle > warn_above:
            note(
                f"a coarse chi^2 of {middle:.2f} says that prior and metadata do not explain most "
                "images: another particle, neighbours, or a wrong defocus; do not trust the phases"
            )
        if self.dose is None and dose < UNSEEN:
            note(
                "most images do not show the prior's particle, the phases are the prior's own: "
                "look at the contrast, the defocus and the particle"
            )
        rows = {
            "input": f"{len(data)} particles of {side} x {side} pixels"
            f"{unit(data.pixel_size_angstrom)}",
            "optics": f"{data.voltage_kv:g} kV, Cs {data.cs_mm:g} mm, amplitude contrast "
            f"{data.amplitude_contrast:g}, defocus {defocus.min():.2f} to {defocus.max():.2f} um",
            "prior": f"{config.prior}, mean of {count(config.samples, 'sample')} ({self.config})",
            "dose": f"{dose:.3g} electrons per square angstrom, median "
            f"({'fitted' if self.dose is None else 'given'})",
            "chi^2": f"{np.median(whole['chi2']):.3f} median; 1 is expected",
            "coarse chi^2": f"{middle:.2f} median, {chi2.min():.2f} to {chi2.max():.2f}; "
            f"above {warn_above:g} are 5 % of the prior's own particles",
            "seconds": f"{seconds:.1f}, {max(0, len(data) - done)} particles now",
            "written": f"{self.out}, phases {whole['phase'].min():.3g} to "
            f"{whole['phase'].max():.3g} rad{unit(pixel)}",
            "beside it": f"{self.star}, {self.table}",
        }
        if self.spread is not None:
            rows["spread"] = f"{self.spread}, {whole['spread'].mean():.3g} rad on average"
        return rows

    def _check_outputs(self, inputs: list[Path]) -> None:
        """No output may be an input or another output, and all must be files that can be made."""
        images = (self.out, self.spread)
        check_outputs(*images, inputs=inputs, what="phases", endings=STACKS)
        beside = (self.star, self.table)
        check_outputs(*images, *beside, inputs=inputs, endings=(*STACKS, ".star", ".csv"))

    def _stacks(self) -> list[Path]:
        """Where the stacks of the table may lie, see `read_particles`."""
        names = {Path(name) for name, _ in self.particles.images_at}
        beside = [self.source.parent / name.name for name in names]
        return [*beside, *(up / name for name in names for up in self.source.absolute().parents)]


def _option(name: str) -> str:
    """Field of the job that holds a number of `OPTIONS`."""
    return name.removesuffix("_angstrom")


def _read(source: Path, known: dict[str, float]) -> Any:
    """Particles; what they lack is asked for by the names of the options."""
    try:
        return read_particles(source, **known)
    except InputError as problem:
        text = str(problem)
        if known or "without metadata" in text or "does not say" in text:
            text = text.replace("defocus_u_angstrom is", "--defocus is")
            for name in OPTIONS:
                text = text.replace(name, f"--{_option(name).replace('_', '-')}")
        raise InputError(text) from problem


def _seed(seed: int, number: int) -> int:
    """Seed of a batch: what it becomes does not hang on when the run was interrupted."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint32)[0])


def _arrays(found: Retrieval) -> dict[str, np.ndarray]:
    none = np.zeros((len(found.image), 0, 0), np.float32)
    return {
        "pixel_size_angstrom": np.array(found.pixel_size_angstrom),
        "phase": found.image,
        "spread": none if found.spread is None else found.spread,
        **{name: getattr(found, name) for name in NUMBERS},
    }
