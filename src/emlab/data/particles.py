"""Particle stacks with their metadata (RELION, cryoSPARC, bare MRC), and their images resampled."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emlab import data
from emlab.data.metadata import Metadata, Numbers, Particles, merge_constant
from emlab.errors import DataUnavailableError, InputError
from emlab.io import read_image
from emlab.runtime import atomic_path

OPTIONS = ("pixel_size_angstrom", "voltage_kv", "cs_mm", "amplitude_contrast", "defocus_angstrom")
STACKS = (".mrcs", ".mrc", ".map")
MIN_DEFOCUS_ANGSTROM, MAX_DEFOCUS_ANGSTROM = 11_400.0, 22_100.0  # EMPIAR-10025
_IN_STAR = {
    "pixel_size_angstrom": "rlnImagePixelSize",
    "voltage_kv": "rlnVoltage",
    "cs_mm": "rlnSphericalAberration",
    "amplitude_contrast": "rlnAmplitudeContrast",
}
_COLUMNS = {
    "rlnDefocusU": "defocus_u_angstrom",
    "rlnDefocusV": "defocus_v_angstrom",
    "rlnDefocusAngle": "astigmatism_deg",
    "rlnPhaseShift": "phase_shift_deg",
}
_ANGLES = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
_ORIGIN = ("rlnOriginXAngst", "rlnOriginYAngst")
_IN_CS = {
    "pixel_size_angstrom": "blob/psize_A",
    "voltage_kv": "ctf/accel_kv",
    "cs_mm": "ctf/cs_mm",
    "amplitude_contrast": "ctf/amp_contrast",
}


def read_particles(path: Path | str, **known: float) -> Particles:
    """Particle images and their metadata.

    Parameters
    ----------
    path : path
        ``.star`` (RELION, with or without optics groups), ``.cs`` (cryoSPARC) or a bare stack
        ``.mrcs`` / ``.mrc``. Stacks that a table names are looked for below its folder and the
        folders above it, then beside it.
    **known : float
        Numbers of `OPTIONS` that count more than what the file says; a bare stack needs them all
        (the pixel size may be in its header).

    Raises
    ------
    InputError
        Something is missing, mixed, not finite, or in the wrong unit; one sentence says what to do.
    """
    path = Path(path)
    table = _bare(path, known) if path.suffix.lower() in STACKS else read_metadata(path, **known)
    values = {item.name: getattr(table, item.name) for item in fields(Metadata)}
    return Particles(images=_images(table, path), **values)


def read_metadata(path: Path | str, **known: float) -> Metadata:
    """What a ``.star`` or ``.cs`` file says about its particles; no image is opened.

    Parameters and errors are those of `read_particles`.
    """
    path = Path(path)
    _check_known(known)
    if not path.is_file():
        raise InputError(f"there is no file {path}; check the name")
    if path.name.lower().endswith((".star", "_dotstar.txt")):
        return _metadata(path, *_star_columns(path), known)
    if path.suffix.lower() == ".cs":
        return _metadata(path, *_cs_columns(path), known)
    raise InputError(f"{path} holds no particles; give a .star, .cs, .mrcs or .mrc file")


def draw_metadata(n: int, seed: int = 0) -> Metadata:
    """Optics and poses of n particles of EMPIAR-10025, drawn with replacement.

    Without network and mirror the defocus is uniform over the range of the real ones, with 120 A
    of astigmatism, and there are no poses; `Metadata.source` says so.
    """
    generator = np.random.default_rng([seed, 10025])
    try:
        real = read_metadata(data.path("t20s_metadata", ".cs"))
    except DataUnavailableError:
        mean = generator.uniform(MIN_DEFOCUS_ANGSTROM, MAX_DEFOCUS_ANGSTROM, n)
        return Metadata(
            pixel_size_angstrom=1.027,
            voltage_kv=300.0,
            cs_mm=2.7,
            amplitude_contrast=0.1,
            defocus_u_angstrom=mean + 60,
            defocus_v_angstrom=mean - 60,
            astigmatism_deg=generator.uniform(0, 180, n),
            phase_shift_deg=np.zeros(n),
            optics_group=np.ones(n, np.int64),
            source="simulated: uniform over the defocus range of EMPIAR-10025",
        )
    return real.subset(generator.integers(len(real), size=n))


def write_star(path: Path | str, table: Metadata, stack: str, image_size: int) -> None:
    """Write a RELION 3.1 STAR file, atomically.

    Parameters
    ----------
    stack : str
        Name of the stack that holds the particles in this order, relative to the STAR file.
    image_size : int
        Its side in pixels.
    """
    columns: dict[str, Any] = {
        "rlnImageName": [f"{i + 1:06d}@{stack}" for i in range(len(table))],
        "rlnOpticsGroup": table.optics_group,
        **{name: getattr(table, ours) for name, ours in _COLUMNS.items()},
    }
    if table.rotations is not None:
        columns |= dict(zip(_ANGLES, euler_angles(table.rotations).T, strict=True))
    if table.shifts_angstrom is not None:
        columns |= dict(zip(_ORIGIN, -table.shifts_angstrom.T, strict=True))
    groups = np.unique(table.optics_group)
    optics: dict[str, Any] = {
        "rlnOpticsGroup": groups,
        "rlnOpticsGroupName": [f"opticsGroup{group}" for group in groups],
        **{name: [getattr(table, ours)] * len(groups) for ours, name in _IN_STAR.items()},
        "rlnImageSize": [image_size] * len(groups),
        "rlnImageDimensionality": [2] * len(groups),
    }
    with atomic_path(path) as temporary:
        temporary.write_text(_loop("optics", optics) + _loop("particles", columns), "utf-8")


def resample(particles: Particles, pixel_size_angstrom: float, box: int) -> Particles:
    """Bring particles to other pixels and another window, each at the centre of its window.

    Where their shifts are known, the images are moved by these first (periodically).

    Parameters
    ----------
    pixel_size_angstrom : float
        Wanted; what is reached, the nearest that an even number of pixels across the image gives,
        stands in the result.
    box : int
        Side of the window in pixels, even. What lies beyond an image gets its mean.
    """
    if box < 2 or box % 2 or pixel_size_angstrom <= 0:
        raise InputError("particles are resampled to an even box and a positive pixel size")
    side = particles.images.shape[-1]
    width = side * particles.pixel_size_angstrom
    target = max(2, 2 * round(width / pixel_size_angstrom / 2))
    shifts = particles.shifts_angstrom
    moved = np.zeros((len(particles), 2)) if shifts is None else -shifts
    images = fourier_resize(particles.images, target, moved / particles.pixel_size_angstrom)
    return replace(
        particles,
        images=centre_window(images, box),
        pixel_size_angstrom=width / target,
        shifts_angstrom=None,
    )


def fourier_resize(
    images: NDArray[np.float32], side: int, shifts: NDArray[np.float64] | None = None
) -> NDArray[np.float32]:
    """Images ``(n, H, H)`` on `side` even pixels across the same width, moved by (x, y) pixels.

    Values are kept: finer ones are band-limited away, not summed. Pixel ``H // 2`` stays the
    centre.
    """
    height = images.shape[-1]
    frequency = np.fft.fftfreq(height)
    spectrum = np.fft.fft2(images)
    start = height // 2 - (np.zeros((len(images), 2)) if shifts is None else shifts)
    x, y = (np.exp(2j * np.pi * frequency * start[:, [axis]]) for axis in (0, 1))
    kept = min(side, height)
    half = (kept - 1) // 2
    rows = np.r_[0 : half + 1, -half:0]
    new = np.zeros((len(images), side, side), complex)
    new[:, rows[:, None], rows] = (spectrum * y[:, :, None] * x[:, None])[:, rows[:, None], rows]
    turn = np.exp(-2j * np.pi * np.fft.fftfreq(side) * (side // 2))
    values = np.fft.ifft2(new * turn[:, None] * turn).real * (side / height) ** 2
    return values.astype(np.float32)


def centre_window(images: NDArray[np.float32], box: int) -> NDArray[np.float32]:
    """The middle `box` pixels of square images, padded with each image's mean."""
    side = images.shape[-1]
    if box > side:
        wide = np.broadcast_to(images.mean((1, 2), keepdims=True), (len(images), box, box)).copy()
        start = box // 2 - side // 2
        wide[:, start : start + side, start : start + side] = images
        return wide
    start = side // 2 - box // 2
    return images[:, start : start + box, start : start + box].copy()


def rotation_matrices(angles_deg: Numbers) -> Numbers:
    """Rotations ``(n, 3, 3)`` of `emlab.data.phase_maps.project` from RELION's rot, tilt, psi.

    RELION's matrix turns the particle into the view (Heymann et al. 2005); this is its transpose.
    """
    from scipy.spatial.transform import Rotation

    return Rotation.from_euler("ZYZ", angles_deg, degrees=True).as_matrix()


def euler_angles(rotations: Numbers) -> Numbers:
    """RELION's rot, tilt, psi in degrees, ``(n, 3)``; rot is 0 where only a sum is defined."""
    matrix = rotations.transpose(0, 2, 1)
    tilt = np.arccos(np.clip(matrix[:, 2, 2], -1, 1))
    pole = np.hypot(matrix[:, 2, 0], matrix[:, 2, 1]) < 1e-7
    rot = np.where(pole, 0, np.arctan2(matrix[:, 2, 1], matrix[:, 2, 0]))
    psi = np.where(
        pole,
        np.arctan2(matrix[:, 0, 1], matrix[:, 1, 1]),
        np.arctan2(matrix[:, 1, 2], -matrix[:, 0, 2]),
    )
    return np.degrees(np.stack([rot, tilt, psi], axis=1))


def _check_known(known: dict[str, float]) -> None:
    if unknown := sorted(set(known) - set(OPTIONS)):
        raise InputError(f"unknown {', '.join(unknown)}; particles take {', '.join(OPTIONS)}")


def _bare(path: Path, known: dict[str, float]) -> Metadata:
    _check_known(known)
    image = read_image(path)
    given = dict(known)
    if isinstance(image.pixel_size_angstrom, float):
        given.setdefault("pixel_size_angstrom", image.pixel_size_angstrom)
    if missing := [name for name in OPTIONS if name not in given]:
        raise InputError(
            f"{path} comes without metadata: give {', '.join(missing)}, or a STAR or .cs file"
        )
    n = len(image.pixels.reshape(-1, *image.pixels.shape[-2:]))
    return _metadata(path, {}, {"images_at": tuple((path.name, i) for i in range(n))}, given)


def _metadata(
    path: Path, optics: dict[str, Numbers], columns: dict[str, Any], known: dict[str, float]
) -> Metadata:
    for name in _IN_STAR:
        if name in known:
            optics[name] = np.array([known[name]])
        if name not in optics:
            raise InputError(f"{path} does not say the {name}; give it")
    if "defocus_angstrom" in known:
        size = len(columns["images_at"])
        for axis in "uv":
            columns[f"defocus_{axis}_angstrom"] = np.full(size, known["defocus_angstrom"])
    if "defocus_u_angstrom" not in columns:
        raise InputError(f"{path} does not say the defocus; give defocus_angstrom")
    n = len(columns["defocus_u_angstrom"])
    if not n:
        raise InputError(f"{path} lists no particles; give one that does")
    columns.setdefault("defocus_v_angstrom", columns["defocus_u_angstrom"])
    for name in ("astigmatism_deg", "phase_shift_deg"):
        columns.setdefault(name, np.zeros(n))
    columns.setdefault("optics_group", np.ones(n, np.int64))
    constants: dict[str, Any] = {
        name: merge_constant(name, values, str(path))
        for name, values in optics.items()
        if name in _IN_STAR
    }
    return Metadata(**constants, **columns, source=str(path))


def _star_columns(path: Path) -> tuple[dict[str, Numbers], dict[str, Any]]:
    tables = read_star(path)
    rows = next((t for t in tables.values() if "rlnImageName" in t), None)
    if rows is None:
        raise InputError(f"{path} has no table with rlnImageName; give a particle STAR file")
    optics_table = tables.get("optics", rows)
    optics = {
        ours: _numbers(path, name, optics_table[name])
        for ours, name in _IN_STAR.items()
        if name in optics_table
    }
    old = ("rlnDetectorPixelSize", "rlnMagnification")
    if "pixel_size_angstrom" not in optics and all(name in optics_table for name in old):
        detector, magnification = (_numbers(path, name, optics_table[name]) for name in old)
        optics["pixel_size_angstrom"] = detector * 1e4 / magnification
    columns: dict[str, Any] = {
        ours: _numbers(path, name, rows[name]) for name, ours in _COLUMNS.items() if name in rows
    }
    if "rlnOpticsGroup" in rows:
        groups = _numbers(path, "rlnOpticsGroup", rows["rlnOpticsGroup"]).astype(np.int64)
        listed = set(tables.get("optics", rows).get("rlnOpticsGroup", []))
        if absent := sorted({str(g) for g in groups} - listed):
            raise InputError(f"{path}: no row of optics for group {absent[0]}; add it")
        columns["optics_group"] = groups

    def stacked(names: tuple[str, ...]) -> Numbers | None:
        if not all(name in rows for name in names):
            return None
        return np.stack([_numbers(path, name, rows[name]) for name in names], axis=1)

    if (angles := stacked(_ANGLES)) is not None:
        columns["rotations"] = rotation_matrices(angles)
    if (origin := stacked(_ORIGIN)) is not None:
        columns["shifts_angstrom"] = -origin
    columns["images_at"] = tuple(_place(path, name) for name in rows["rlnImageName"])
    return optics, columns


def read_star(path: Path | str) -> dict[str, dict[str, list[str]]]:
    """Loops of a STAR file (gemmi reads it): ``{block: {column: texts}}``, no underscores."""
    try:
        from gemmi import cif
    except ImportError as error:
        raise InputError("STAR files need gemmi; pip install 'emlab-book[cryoem]'") from error
    try:
        document = cif.read(str(path))
    except (RuntimeError, ValueError, OSError) as error:
        raise InputError(f"{path} is no STAR file: {error}") from error
    tables: dict[str, dict[str, list[str]]] = {}
    for block in document:
        for item in block:
            if item.loop is not None:
                table = tables.setdefault(block.name.strip(), {})
                for number, tag in enumerate(item.loop.tags):
                    column = item.loop.values[number :: item.loop.width()]
                    table[tag.removeprefix("_")] = [cif.as_string(text) for text in column]
    return tables


def _cs_columns(path: Path) -> tuple[dict[str, Numbers], dict[str, Any]]:
    try:
        table = np.load(path, allow_pickle=False)
        present = set(table.dtype.names or ())
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"{path} is no cryoSPARC table: {error}; export it again") from error
    if "blob/path" not in present:
        raise InputError(f"{path} has no column blob/path; give a table of particles")
    optics = {ours: table[name].astype(float) for ours, name in _IN_CS.items() if name in present}
    columns: dict[str, Any] = {}
    for name, ours, factor in (
        ("ctf/df1_A", "defocus_u_angstrom", 1.0),
        ("ctf/df2_A", "defocus_v_angstrom", 1.0),
        ("ctf/df_angle_rad", "astigmatism_deg", 180 / np.pi),
        ("ctf/phase_shift_rad", "phase_shift_deg", 180 / np.pi),
    ):
        if name in present:
            columns[ours] = table[name].astype(float) * factor
    if "ctf/exp_group_id" in present:
        columns["optics_group"] = table["ctf/exp_group_id"].astype(np.int64) + 1
    if "alignments3D/pose" in present:
        from scipy.spatial.transform import Rotation

        turned = Rotation.from_rotvec(table["alignments3D/pose"].astype(float)).as_matrix()
        columns["rotations"] = turned.transpose(0, 2, 1)
    if {"alignments3D/shift", "alignments3D/psize_A"} <= present:
        pixel = table["alignments3D/psize_A"].astype(float)[:, None]
        columns["shifts_angstrom"] = -table["alignments3D/shift"].astype(float) * pixel
    texts = [value.decode().lstrip(">") for value in table["blob/path"]]
    columns["images_at"] = tuple(zip(texts, table["blob/idx"].tolist(), strict=True))
    return optics, columns


def _images(table: Metadata, path: Path) -> NDArray[np.float32]:
    """Pixels ``(n, H, W)`` in the order of the table; each stack is read once."""
    stacks: dict[str, NDArray[np.float32]] = {}
    for name in dict.fromkeys(name for name, _ in table.images_at):
        places = [folder / name for folder in path.absolute().parents]
        places.append(path.parent / Path(name).name)
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            raise InputError(f"{path} names the stack {name}, which is not there; put it beside it")
        pixels = read_image(found).pixels
        stacks[name] = pixels.reshape(-1, *pixels.shape[-2:])
    shapes = {stack.shape[1:] for stack in stacks.values()}
    if len(shapes) > 1 or any(height != width for height, width in shapes):
        raise InputError(f"{path}: images of {sorted(shapes)} pixels; give square ones of one size")
    for name, index in table.images_at:
        if not 0 <= index < len(stacks[name]):
            raise InputError(
                f"{path}: image {index + 1} is not among the {len(stacks[name])} of {name}; "
                "give the stack that belongs to the table"
            )
    return np.stack([stacks[name][index] for name, index in table.images_at])


def _place(path: Path, text: str) -> tuple[str, int]:
    number, _, stack = text.rpartition("@")
    if number and not number.isdigit():
        raise InputError(f"{path}: the image name {text!r} does not read NUMBER@STACK; correct it")
    return stack, int(number or 1) - 1


def _numbers(path: Path, name: str, texts: list[str]) -> Numbers:
    try:
        return np.array([float(text) for text in texts])
    except ValueError as error:
        raise InputError(f"{path}: {name} is not a number: {error}; correct the file") from error


def _loop(block: str, columns: dict[str, Any]) -> str:
    lines = ["# version 30001", "", f"data_{block}", "", "loop_"]
    lines += [f"_{name} #{number}" for number, name in enumerate(columns, 1)]
    for row in zip(*columns.values(), strict=True):
        lines.append(" ".join(_star_value(value) for value in row))
    return "\n".join([*lines, "", ""])


def _star_value(value: Any) -> str:
    text = f"{value:.6f}" if isinstance(value, float) else str(value)
    return f'"{text}"' if " " in text else text
