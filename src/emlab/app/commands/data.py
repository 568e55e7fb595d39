"""``emlab data``: list, fetch, verify and locate data sets."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated

import typer

from emlab import data
from emlab.app.commands.job import report_checks
from emlab.app.commands.options import group
from emlab.bench import format_table
from emlab.data import download, empiar
from emlab.data.download import Progress
from emlab.data.registry import ROLES, record
from emlab.errors import InputError

app = group(
    "List, fetch, verify and locate data sets.\n\n"
    "emlab looks in the folder that EMLAB_MIRROR names, then in your cache (EMLAB_CACHE), then in "
    "installed packages, then fetches or builds from public addresses; hashes are checked.\n\n"
    "**Example:** `emlab data list --role test`, then `emlab data fetch mnist_t10k`"
)
Names = Annotated[list[str] | None, typer.Argument(help="Names as shown by `emlab data list`.")]
SIDE_BY_SIDE = 4
Everything = Annotated[bool, typer.Option("--all", help="All data sets on this machine.")]


@app.command("list")
def list_data(
    role: Annotated[str, typer.Option(help="Show only: train, test, demo or metadata.")] = "",
) -> None:
    """Show all data sets: where each one is, its role, size, pixel size and title.

    **Example:** `emlab data list --role train`
    """
    if role and role not in ROLES:
        raise InputError(f"there is no role {role!r}; use one of {', '.join(ROLES)}")
    rows = [
        (
            r.name,
            r.role,
            data.where(r.name),
            f"{r.size / 1e6:.1f}",
            _pixel_size(r.pixel_size_angstrom),
            r.title,
        )
        for r in data.records().values()
        if role in ("", r.role)
    ]
    typer.echo(format_table(("name", "role", "where", "MB", "pixel (A)", "what"), rows))


@app.command()
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
    if sets:
        megabytes = sum(entry.size for entry in missing) / 1e6
        typer.echo(f"{len(missing)} of {len(sets)} data sets are missing: {megabytes:.1f} MB")
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
        download.byte_bar(sum(entry.size for entry in missing) if known else None) as bar,
        ThreadPoolExecutor(SIDE_BY_SIDE) as pool,
    ):
        futures = {name: pool.submit(bring, name) for name in wanted}
    report_checks(wanted, lambda name: futures[name].result())


@app.command()
def verify(names: Names = None, everything: Everything = False) -> None:
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

    report_checks(names, check)


@app.command()
def path(
    name: Annotated[str, typer.Argument(help="A name as shown by `emlab data list`.")],
    file: Annotated[str, typer.Option(help="End of one file's name.")] = "",
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
    sizes = () if size is None else size if isinstance(size, tuple) else (size,)
    return " x ".join(f"{value:g}" for value in sizes) or "-"
