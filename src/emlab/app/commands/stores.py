"""``emlab data``, ``weights`` and ``train``: data sets and networks, and how they are made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from emlab import data, weights
from emlab.app.commands.options import Device, Profile, argument, command, group, option
from emlab.bench import format_table
from emlab.data import download, empiar
from emlab.data.download import Progress
from emlab.data.registry import ROLES, record
from emlab.errors import EmlabError, InputError
from emlab.settings import check_profile

data_app = group(
    "List, fetch, verify and locate data sets.\n\n"
    "emlab looks in the folder that EMLAB_MIRROR names, then in your cache (EMLAB_CACHE), then in "
    "installed packages, then fetches or builds from public addresses; hashes are checked.\n\n"
    "**Example:** `emlab data list --role test`, then `emlab data fetch mnist_t10k`"
)
weights_app = group(
    "List, describe, verify and locate trained weights.\n\n"
    "Each checkpoint is a safetensors file with a card that says how it was made. The package "
    "ships some; a folder of your own, named by EMLAB_WEIGHTS, is looked up first.\n\n"
    "**Example:** `emlab weights list`, then `emlab weights card NAME`"
)
train_app = group()
SIDE_BY_SIDE = 4
Names = Annotated[list[str] | None, typer.Argument(help="As `list` shows them.")]
Name = Annotated[str, typer.Argument(help="As `list` shows it.")]


@data_app.command("list")
def list_data(
    role: Annotated[str, typer.Option(help="Show only: train, test, demo or metadata.")] = "",
) -> None:
    """Show all data sets: where each one is, its role, size, pixel size and title.

    **Example:** `emlab data list --role train`
    """
    if role and role not in ROLES:
        raise InputError(f"there is no role {role!r}; use one of {', '.join(ROLES)}")
    rows = []
    for each in data.records().values():
        if role in ("", each.role):
            megabytes, pixel = f"{each.size / 1e6:.1f}", _pixel_size(each.pixel_size_angstrom)
            row = (each.name, each.role, data.where(each.name), megabytes, pixel, each.title)
            rows.append(row)
    typer.echo(format_table(("name", "role", "where", "MB", "pixel (A)", "what"), rows))


@data_app.command()
def fetch(
    names: Names = None,
    everything: Annotated[bool, typer.Option("--all", help="All data sets.")] = False,
    chapters: Annotated[bool, typer.Option(help="What the chapters load.")] = False,
    micrographs: Annotated[int, typer.Option(help="How many of an EMPIAR entry.")] = 1,
    dry_run: Annotated[bool, typer.Option(help="Only say how much is missing.")] = False,
) -> None:
    """Bring data sets to this machine and check their hashes; interrupted downloads resume.

    **Example:** `emlab data fetch mnist_t10k mnist_train_60k`, or `emlab data fetch --all`

    `empiar-10025` (particles), `empiar-10081`, `empiar-10289` and `empiar-10291` (annotated
    micrographs) are large entries that are read as far as `--micrographs` asks.
    """
    from emlab.chapters import chapter_data, shipped

    wanted = list(data.records()) if everything else list(names or [])
    if chapters:
        wanted += [name for path in shipped() for name in chapter_data(path.stem)]
    if not wanted:
        raise InputError("name a data set, or use --all or --chapters; see `emlab data list`")
    wanted = list(dict.fromkeys(wanted))
    entries = [name for name in wanted if name.startswith("empiar-")]
    sets = [name for name in wanted if name not in entries]
    missing = [record(name) for name in sets if record(name) and not data.available(name)]
    size = sum(entry.size for entry in missing)
    if sets:
        typer.echo(f"{len(missing)} of {len(sets)} data sets are missing: {size / 1e6:.1f} MB")
    loaders = {name: _entry_loader(name) for name in entries}
    if entries:
        typer.echo(f"{', '.join(entries)}: {micrographs} micrographs each, of unknown size")
    if dry_run:
        return

    def bring(name: str) -> str:
        if name in entries:
            return loaders[name](micrographs, bar.update)
        return ", ".join(str(place) for place in data.fetch(name, bar.update))

    # how many bytes the pieces of a build have is not known before they come
    known = not entries and not any(file.build for entry in missing for file in entry.files)
    with (
        download.byte_bar(size if known else None) as bar,
        ThreadPoolExecutor(SIDE_BY_SIDE) as pool,
    ):
        futures = {name: pool.submit(bring, name) for name in wanted}
    _report(wanted, lambda name: futures[name].result())


@data_app.command("verify")
def verify_data(
    names: Names = None,
    everything: Annotated[
        bool, typer.Option("--all", help="All data sets on this machine.")
    ] = False,
) -> None:
    """Check the bytes of the files and the pixels they decode to; exit code 3 if any is wrong.

    **Example:** `emlab data verify --all`
    """
    if everything:
        names = [name for name in data.records() if data.available(name)]
    if not names:
        raise InputError("name at least one data set, or use --all for those on this machine")

    def check(name: str) -> str:
        found = data.verify(name)
        pixels = found.record.pixel_sha256
        return f"{found.source}, pixels {pixels[:16]}" if pixels else found.source

    _report(names, check)


@data_app.command("path")
def path_of_data(
    name: Name, file: Annotated[str, typer.Option(help="End of one file's name.")] = ""
) -> None:
    """Print where the checked files of a data set are, one a line, fetching what lacks.

    **Example:** `emlab data path k2_micrograph`
    """
    for place in [data.path(name, file)] if file else data.paths(name).values():
        typer.echo(str(place))


def _entry_loader(name: str) -> Callable[[int, Progress], str]:
    """Return what fetches micrographs of an EMPIAR entry and says what came."""
    entry = name.removeprefix("empiar-")
    if entry == "10025":
        return lambda n, seen: f"{len(empiar.load_empiar_10025(n, progress=seen).images)} particles"
    if entry not in empiar.ENTRIES:
        raise InputError(f"no loader for {name!r}; use 10025, {', '.join(empiar.ENTRIES)}")
    return lambda n, seen: ", ".join(m.name for m in empiar.load_cryoppp(entry, n, progress=seen))


def _pixel_size(size: float | tuple[float, ...] | None) -> str:
    sizes = size if isinstance(size, tuple) else () if size is None else (size,)
    return " x ".join(f"{value:g}" for value in sizes) or "-"


@weights_app.command("list")
def list_weights() -> None:
    """Show all checkpoints: size, training data and the recipe that makes them again.

    **Example:** `emlab weights list`
    """
    cards = [weights.card(name) for name in weights.names()]
    if not cards:
        typer.echo("no weights here; train some with `emlab train NAME` or set EMLAB_WEIGHTS")
        return
    rows = [(c.name, _megabytes(c.name), f"{c.data} ({c.split})", c.recipe) for c in cards]
    typer.echo(format_table(("name", "MB", "trained on", "recipe"), rows))


def _megabytes(name: str) -> str:
    file = weights.path(name)
    return f"{file.stat().st_size / 1e6:.1f}" if file.is_file() else "missing"


@weights_app.command()
def card(name: Name) -> None:
    """Print a card: data, split, steps, seconds, device, seed, commit, evaluation and limits.

    **Example:** `emlab weights card NAME`
    """
    weights.card(name)  # refuses what is no card
    file = weights.path(name).parents[1] / "cards" / f"{name}.toml"
    typer.echo(f'name = "{name}"\n{file.read_text(encoding="utf-8")}'.rstrip())


@weights_app.command("verify")
def verify_weights(
    names: Names = None,
    everything: Annotated[bool, typer.Option("--all", help="All checkpoints.")] = False,
) -> None:
    """Check the files against the hashes on their cards; exit code 3 if any is wrong.

    **Example:** `emlab weights verify --all`
    """
    chosen = weights.names() if everything else names
    if not chosen and not everything:
        raise InputError("name at least one checkpoint, or use --all")

    def check(name: str) -> str:
        tensors, found = weights.load(name)
        return f"{len(tensors)} tensors, sha256 {found.sha256[:16]}"

    _report(chosen or [], check)


@weights_app.command("path")
def path_of_weights(name: Name) -> None:
    """Print where the safetensors file of a checkpoint is.

    **Example:** `emlab weights path NAME`
    """
    typer.echo(str(weights.path(name)))


@weights_app.command("import-cellpose")
def import_cellpose(
    file: Annotated[Path, typer.Argument(help="As cellpose 3.1 keeps it in .cellpose/models.")],
    name: Annotated[str, typer.Argument(help="To load it by, for instance cellpose3_denoise.")],
    out: Annotated[Path, typer.Option(help="Folder of weights, for EMLAB_WEIGHTS.")],
) -> None:
    """Make weights of emlab from a network that the authors of Cellpose released.

    **Example:** `emlab weights import-cellpose denoise_nuclei cellpose3_denoise --out released`
    """
    from emlab.recipes.cellpose3_authors import import_released

    made = import_released(file, name, out)
    typer.echo(f"{made.name}: widths {made.model['widths']}; use it with EMLAB_WEIGHTS={out}")


def _report(names: Sequence[str], check: Callable[[str], str]) -> None:
    """Print what the check of each name returns, or raises; raise what was raised first, if any."""
    failed: dict[str, EmlabError] = {}
    for name in names:
        try:
            typer.echo(f"ok      {name} ({check(name)})")
        except InputError:
            raise
        except EmlabError as problem:
            failed[name] = problem
            typer.echo(f"FAILED  {problem}")
    if failed:
        kind = type(next(iter(failed.values())))
        raise kind(f"{len(failed)} of {len(names)} failed, see above: {', '.join(failed)}")


@command(train_app, "train")
class Train:
    """Train a network from its recipe.

    Example: emlab train NAME --profile cpu --out runs/train/NAME

    To use the result in place of the shipped weights, set EMLAB_WEIGHTS to its folder.

    **Your own tissue:** `emlab train generalist_depth --images MY/` goes on from the shipped
    weights for some minutes, on all but the last fifth of each image, and says what that gained.
    """

    name: str | None = argument("Recipe; see --list.", default=None)
    show: bool = option(False, "List the recipes and stop.", "--list")
    profile: Profile = "cpu"
    device: Device = "auto"
    out: Path | None = option(None, "Folder for checkpoints and weights.", shown="runs/train/NAME")
    resume: bool = option(False, "Go on from the last checkpoint.")
    images: Path | None = option(None, "Folder of images to go on with (generalist_depth).")

    def __call__(self) -> None:
        """Train, and print what the card says."""
        from emlab.recipes import generalist, generalist_own, recipes
        from emlab.runtime import choose_device, choose_threads

        known = recipes()
        if self.show:
            shipped = weights.names()
            for recipe in sorted(known):
                typer.echo(recipe + ("  (weights present)" if recipe in shipped else ""))
            return
        name, profile = self.name, self.profile
        if name not in known:
            problem = "say what to train" if name is None else f"no recipe is called {name!r}"
            raise InputError(f"{problem}; there are: {', '.join(sorted(known))}")
        check_profile(profile)
        choose_device(self.device)
        choose_threads()
        folder = self.out or Path("runs", "train", name)
        train = known[name]
        if self.images is not None:
            if name != generalist.NAME:
                raise InputError(f"--images is for {generalist.NAME}; leave it out for {name}")
            train = partial(generalist_own.train_on, self.images)
        made = train(profile=profile, device=self.device, out=folder, resume=self.resume)
        if made is not None:
            typer.echo(
                f"{made.name}: {made.steps} steps in {made.seconds:.0f} s, written to {folder}"
            )
            for metric, value in made.evaluation.items():
                typer.echo(f"  {metric} = {value}")
            gains = [value for key, value in made.evaluation.items() if key.startswith("gain_")]
            if gains and max(gains) <= 0:
                typer.echo("  no better on what was held out: keep the shipped weights")
