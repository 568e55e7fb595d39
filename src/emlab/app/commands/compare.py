"""``emlab compare``: every method that fits on one image of your own, in one report."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import typer

from emlab import weights
from emlab.app.commands import job
from emlab.app.commands.job import Input, Seeded, check_outputs, note
from emlab.app.commands.options import Resume, argument, command, group, option
from emlab.app.journal import Pieces
from emlab.app.own_image import asked
from emlab.app.own_image.asked import SMALLEST, Answer, Grey, Progress, Question, answer
from emlab.app.own_image.entrants import choose
from emlab.app.own_image.page import Comparison, as_json, page
from emlab.bench import format_table
from emlab.errors import InputError
from emlab.io import WRITABLE
from emlab.runtime import atomic_path

app = group()


@command(app, "compare", no_args_is_help=True)
class Compare(Seeded):
    """Restore one image by every method that fits, and write what each did into one report.

    **Example:** `emlab compare noisy.tif -o report.html`

    **More:** `emlab compare soft.mrc -o report.html --task deblur --kernel 2 --save restored/`

    The report is one HTML file with its pictures inside; the numbers stand beside it as JSON. It
    has the noise (level, white or coloured), what each method took away, its resolution, what it
    makes of pure noise, its spread where it samples, time and memory. With --half or --frames also
    the Fourier ring correlation of two halves and the error that is left.
    """

    image: Path = argument("mrc, mrcs, tif, ome.tif, png, npy or zarr.", metavar="IMAGE")
    out: Path = option(..., "The report, .html.", "--out", "-o")
    task: str = option("denoise", "denoise, deblur or upsample.")
    pixel_size_angstrom: float | None = option(
        None, "Counts more than the header.", shown="from the header"
    )
    half: Path | None = option(
        None, "Another recording of the same field; both are averaged.", metavar="OTHER"
    )
    frames: bool = option(False, "IMAGE is a stack of aligned frames of one field.")
    plane: int | None = option(None, "Of a volume, counted from 0.", min=0, shown="the middle one")
    window: int = option(512, "Side in pixels of what is compared.", min=64)
    centre: str | None = option(
        None, "Of the window, in pixels.", metavar="Y,X", shown="the middle"
    )
    kernel: str | None = option(
        None, "Blur to undo: a Gaussian sigma in pixels (2) or nm (20nm), disc:R."
    )
    factor: int = option(2, "Of upsampling.", min=2, max=8)
    noise: float | None = option(None, "Standard deviation of white noise.", shown="estimated")
    coloured: bool | None = option(
        None, "What the noise counts as.", "--coloured/--white", shown="estimated"
    )
    specimen: str | None = option(
        None, "tissue, particles, cells or unknown.", shown="by the pixel size"
    )
    methods: str | None = option(None, "Only these, also where they do not fit.", metavar="A,B")
    diameter: float | None = option(None, "Of cells in pixels.", shown="estimated")
    invert: bool = option(False, "Particles are bright.")
    spread: int = option(128, "Side of the crop whose posterior is sampled; 0: none.", min=0)
    save: Path | None = option(None, "Also write the restored images here.", metavar="FOLDER")
    resume: Resume = False

    def open(self) -> None:
        """Refuse options that do not go together, read the window, choose the methods."""
        if self.task not in asked.TASKS:
            raise InputError(f"unknown task {self.task!r}; choose from {', '.join(asked.TASKS)}")
        if (self.kernel is not None) != (self.task == "deblur"):
            raise InputError("--task deblur needs --kernel, such as 2 or 20nm; other tasks do not")
        if self.half is not None and self.frames:
            raise InputError("give --half or --frames: the frames make the two halves themselves")
        if self.coloured and self.noise is not None:
            raise InputError("give --noise or --coloured: the spectrum is estimated with its level")
        job.check_positive(
            noise=self.noise, pixel_size_angstrom=self.pixel_size_angstrom, diameter=self.diameter
        )
        if 0 < self.spread < SMALLEST:
            raise InputError(f"--spread is 0 or at least {SMALLEST} pixels, got {self.spread}")
        reports = (".html", ".htm")
        check_outputs(self.out, inputs=[self.image], what="the report", endings=reports)
        self.partial(self.out)
        self.question, self.facts = self._read()
        wanted = [name.strip() for name in (self.methods or "").split(",") if name.strip()]
        self.entrants, self.left_out = choose(self.question, wanted)
        self.targets = self._targets()

    def run(self) -> dict[str, str]:
        """Compare, and write report, numbers and images."""
        question = self.question
        seen = b"".join(p.tobytes() for p in (question.pixels, *(question.halves or ())))
        names = [name for entrant in self.entrants for name in entrant.weights]
        facts = {
            "image": hashlib.sha256(seen).hexdigest(),
            "methods": [entrant.name for entrant in self.entrants],
            "pixel size": question.pixel_size_angstrom,
            "weights": [weights.card(name).sha256 for name in names],
        }
        with self.pieces(self.out, facts, len(self.entrants)) as pieces:
            compared = Comparison(
                self.image.name,
                question,
                self.facts,
                self.entrants,
                self._answers(pieces),
                self.left_out,
                self.spread,
                {"seed": self.seed, "device": str(self.place)},
            )
            if not compared.pairs():
                pieces.drop()
                reasons = "; ".join(f"{k}: {v}" for k, v in compared.refusals().items())
                raise InputError(f"no method could restore {self.image} ({reasons})")
            for target, found in zip(self.targets, compared.answers, strict=False):
                if found.image is not None:
                    job.write_output(target, found.image, question.fine_pixel_size_angstrom)
            with atomic_path(self.out) as path:
                path.write_text(page(compared), encoding="utf-8")
            with atomic_path(self.out.with_suffix(".json")) as path:
                text = json.dumps(as_json(compared), indent=1, allow_nan=False)
                path.write_text(text + "\n", encoding="utf-8")
        return self._told(compared)

    # --- before the work

    def _read(self) -> tuple[Question, dict[str, str]]:
        source = job.read_input(self.image, (2, 3), "comparing")
        shape = source.shape[-2:]
        box, where = self._box(shape)
        facts = {"file": f"{self.image.name}, {source}"}
        halves: tuple[Grey, Grey] | None = None
        if self.frames:
            pixels, halves = self._sum_frames(source, box)
            facts["frames"] = f"mean of {source.shape[0]}; halves are the even and the odd ones"
        else:
            pixels, which = self._plane(source, box)
            if which:
                facts["plane"] = which
        if self.half is not None:
            other = job.read_input(self.half, (2, 3), "comparing")
            if other.shape[-2:] != shape:
                raise InputError(
                    f"{self.half} has {other.shape[-2:]} pixels and {self.image} {shape}; the "
                    "halves must show the same field"
                )
            second = self._plane(other, box)[0]
            halves = pixels, second
            pixels = ((pixels + second) / 2).astype(np.float32)
            facts["halves"] = f"{self.image.name} and {self.half.name}, averaged"
        if halves is not None and np.array_equal(*halves):
            raise InputError("the two halves are the same image; give two recordings of one field")
        job.check_pixels(pixels, f"the window of {self.image}")
        size = self.pixel_size_angstrom or job.in_plane(source.pixel_size_angstrom)
        if isinstance(size, tuple):
            raise InputError(
                f"{self.image} has pixels of {size[0]:g} x {size[1]:g} angstrom; resample it to "
                "square ones, or give --pixel-size-angstrom"
            )
        kernel = None
        if self.kernel is not None:
            kernel = job.parse_kernel(self.kernel, size, self.image)
        question = Question(
            self.task,
            pixels,
            asked.find_noise(pixels, self.task, self.noise, self.coloured),
            size,
            kernel,
            self.factor if self.task == "upsample" else 1,
            self.specimen or asked.guess_specimen(size),
            self.diameter,
            self.invert,
            halves,
            self.place,
        )
        facts["window"] = where
        facts["pixel size"] = "unknown, so lengths are in pixels; give --pixel-size-angstrom"
        if size:
            given = "given" if self.pixel_size_angstrom else "from the header"
            facts["pixel size"] = f"{size:.6g} angstrom ({given})"
        origin = "given" if self.specimen else "by the pixel size; --specimen says otherwise"
        facts["counts as"] = f"{question.specimen} ({origin})"
        if self.kernel is not None:
            facts["blur"] = f"--kernel {self.kernel}"
        if question.factor > 1:
            facts["factor"] = str(question.factor)
        return question, facts

    def _box(self, shape: Sequence[int]) -> tuple[tuple[slice, slice], str]:
        """The window, and where it is in words."""
        sides = [min(self.window, length) for length in shape]
        middles = [length // 2 for length in shape]
        if self.centre is not None:
            try:
                middles = [round(float(word)) for word in self.centre.split(",")]
            except ValueError:
                middles = []
            if len(middles) != 2 or not all(
                0 <= m < n for m, n in zip(middles, shape, strict=True)
            ):
                raise InputError(
                    f"--centre {self.centre} is no place in {shape[0]} x {shape[1]} pixels; give "
                    "row,column, such as 400,650"
                )
        starts = [
            min(max(0, place - side // 2), length - side)
            for place, side, length in zip(middles, sides, shape, strict=True)
        ]
        rows, columns = (slice(s, s + side) for s, side in zip(starts, sides, strict=True))
        if tuple(sides) == tuple(shape):
            return (rows, columns), f"all of its {shape[0]} x {shape[1]} pixels"
        words = (
            f"only {sides[0]} x {sides[1]} of its {shape[0]} x {shape[1]} pixels, from row "
            f"{starts[0]} and column {starts[1]} (--window and --centre choose others)"
        )
        return (rows, columns), words

    def _plane(self, source: Input, box: tuple[slice, slice]) -> tuple[Grey, str]:
        if len(source.shape) == 2:
            if self.plane not in (None, 0):
                raise InputError(f"{source.path} is one image; leave out --plane")
            source.load()
            return source.part(box), ""
        depth = source.shape[0]
        number = depth // 2 if self.plane is None else self.plane
        if number >= depth:
            raise InputError(f"{source.path} has planes 0 to {depth - 1}; there is no {number}")
        said = "" if self.plane is not None else " (the middle one; --plane chooses)"
        return source.part((number, *box)), f"{number} of 0 to {depth - 1}{said}"

    def _sum_frames(
        self, source: Input, box: tuple[slice, slice]
    ) -> tuple[Grey, tuple[Grey, Grey]]:
        """Mean of all frames, and of the even and odd ones, read one at a time."""
        if len(source.shape) != 3 or source.shape[0] < 2:
            raise InputError(f"{self.image} has no frames; leave out --frames")
        if self.plane is not None:
            raise InputError("--frames takes all planes; leave out --plane")
        sums = np.zeros((2, *(side.stop - side.start for side in box)))
        for number in range(source.shape[0]):
            sums[number % 2] += source.part((number, *box))
        odd = source.shape[0] // 2
        means = sums[0] / (source.shape[0] - odd), sums[1] / odd, sums.sum(0) / source.shape[0]
        first, second, whole = (mean.astype(np.float32) for mean in means)
        return whole, (first, second)

    def _targets(self) -> list[Path]:
        """Where restored images go, refused before the work."""
        if self.save is None:
            return []
        suffix = self.image.suffix.lower()
        if suffix not in (*WRITABLE, ".zarr"):
            suffix = ".tif"
        stem = self.image.stem.removesuffix(".ome")
        targets = [self.save / f"{stem}_{entrant.name}{suffix}" for entrant in self.entrants]
        check_outputs(*targets, inputs=[self.image])
        return targets

    # --- the work

    def _answers(self, pieces: Pieces) -> list[Answer]:
        """Everybody's answer; each is kept until the report is written."""
        note(f"methods: {', '.join(e.label for e in self.entrants)}; this can be minutes")
        if pieces.done:
            note(f"going on with method {pieces.done + 1} of {pieces.count}")
        for number in pieces.todo:
            entrant = self.entrants[number]
            with ExitStack() as bars:
                follow, side = _one_bar(bars), self.spread
                found = answer(entrant, self.question, self.seed, spread_side=side, progress=follow)
            pieces.keep(number, found.arrays())
            told = f"{found.seconds:.1f} s" if found.image is not None else found.problem
            typer.echo(f"{number + 1}/{pieces.count} {entrant.label}: {told}", err=True)
        return [Answer.of(kept) for kept in pieces.kept()]

    # --- after it

    def _told(self, compared: Comparison) -> dict[str, str]:
        question, noise, numbers = self.question, self.question.noise, compared.numbers
        length = "nm" if question.pixel_size_angstrom else "px"
        columns = {
            "residual": "removed",
            "resolution": f"resolution/{length}",
            "blank_contrast": "from noise",
            "seconds": "s",
            "megabytes": "MB",
        } | ({"error": "error left"} if question.halves is not None else {})
        rows = []
        for entrant, _ in compared.pairs():
            values = [numbers[entrant.name].get(key) for key in columns]
            rows.append([entrant.label, *("-" if v is None else f"{v:.3g}" for v in values)])
        kind = "coloured" if noise.coloured else "white"
        table = format_table(["method", *columns.values()], rows)
        self.tell(compared.facts)
        self.tell({"noise": f"{noise.sigma:.5g} grey levels ({noise.origin}), {kind}\n"})
        typer.echo(table + "\n")
        for label, reason in compared.refusals().items():
            typer.echo(f"left out: {label}, {reason}")
        told = {"report": f"{self.out}, numbers in {self.out.with_suffix('.json').name}"}
        if self.save is None:
            return told
        npy = self.image.suffix.lower() == ".npy"
        kept = ", .npy holds no pixel size" if npy else job.unit(question.fine_pixel_size_angstrom)
        return {"images": f"{self.save}{kept}", **told}


def _one_bar(bars: ExitStack) -> Callable[[str], Progress]:
    """A bar for each step in the place of the one before."""

    def follow(what: str) -> Progress:
        bars.close()
        return bars.enter_context(job.bar(what))

    return follow
