r"""Simulated cryo-electron micrographs: particles in ice, with everything that is in the way.

The relative intensity of a thin specimen in ice of local thickness t(r) is

.. math:: I = T \left(1 + 2 \sum_k c_k * \varphi_k + b\right), \qquad T = e^{-t / \Lambda},

:math:`\varphi_k` the projected phases of the particles (`emlab.data.phase_maps.project`) at depths
within slab k, :math:`c_k` the weak-phase transfer at its defocus (`ComplexCTF.weak_phase`), b a
structured background of low frequency and :math:`\Lambda` the mean free path of inelastic
scattering, whose electrons an energy filter takes away. Amorphous ice and carbon scatter as white
phases under the same lens (Thon rings), contaminants and the carbon film absorb. A `Detector`
counts. Left out: inelastic blur, beam-induced motion beyond the envelope, multiple scattering.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
import scipy
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from emlab.checks import check_fields
from emlab.data.phase_maps import project, sigma_e
from emlab.errors import InputError
from emlab.physics.counting import Detector
from emlab.physics.ctf import ComplexCTF

_HOLE_PIXELS = 2300.0  # a hole of 1.2 micrometres seen at 2.6 A a pixel


def power_law_field(shape: tuple[int, int], exponent: float, generator: torch.Generator) -> Tensor:
    r"""Gaussian random field of unit variance and zero mean with amplitude :math:`k^{-p}`.

    Parameters
    ----------
    exponent : float
        p; 0 is white, the larger the smoother.
    """
    spectrum = torch.fft.rfft2(torch.randn(shape, generator=generator))
    rows, columns = torch.fft.fftfreq(shape[0])[:, None], torch.fft.rfftfreq(shape[1])
    frequency = torch.hypot(rows, columns)
    frequency[0, 0] = math.inf
    field = torch.fft.irfft2(spectrum * frequency ** -float(exponent), s=shape)
    return (field - field.mean()) / field.std()


def hole_edge(
    shape: tuple[int, int], share: float, border: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Carbon film beside a round hole.

    Parameters
    ----------
    share : float
        Of the field that the film covers, in [0, 1); 0 is no film at all.
    border : int
        Pixels around the field that do not count in the share.

    Returns
    -------
    film, phase : Tensor
        ``(H, W)`` in {0, 1}; and the same with a soft edge and without its mean, for the fringe.
    """
    if not 0 <= share < 1:
        raise InputError(f"the share of carbon must be in [0, 1), got {share}")
    if share == 0:
        return torch.zeros(shape), torch.zeros(shape)
    angle = 2 * math.pi * torch.rand((), generator=generator).item()
    rows, columns = (torch.arange(side) - side / 2 for side in shape)
    y = rows[:, None] + _HOLE_PIXELS * math.sin(angle)
    distance = torch.hypot(y, columns + _HOLE_PIXELS * math.cos(angle))
    inner = distance[border : shape[0] - border, border : shape[1] - border]
    edge = inner.flatten().sort().values[int((1 - share) * (inner.numel() - 1))]
    film = (distance > edge).float()
    soft = torch.sigmoid((distance - edge) / 1.5)
    return film, soft - soft.mean()


def blobs(
    shape: tuple[int, int],
    count: int,
    border: int,
    pixel_size_angstrom: float,
    generator: torch.Generator,
) -> Tensor:
    """Height in angstrom of ice crystals on the surface: clusters of flattened balls.

    Parameters
    ----------
    count : int
        Crystals, 150 to 500 A across, centred on the field.
    border : int
        Pixels around the field in which no crystal is centred.
    """
    height = torch.zeros(shape)
    rows, columns = (torch.arange(side, dtype=torch.float32) for side in shape)
    for _ in range(count):
        place = torch.rand(2, generator=generator)
        centre = border + place * (torch.tensor(shape) - 2 * border)
        radius = (75 + 175 * torch.rand((), generator=generator)) / pixel_size_angstrom
        for _ in range(4):
            y, x = centre + 0.5 * radius * torch.randn(2, generator=generator)
            size = radius * (0.4 + 0.4 * torch.rand((), generator=generator))
            square = ((rows[:, None] - y).square() + (columns - x).square()) / size**2
            ball = (1 - square).clamp_min(0).sqrt() * size * pixel_size_angstrom
            height = torch.maximum(height, ball)
    return functional.avg_pool2d(height[None, None], 5, 1, 2, count_include_pad=False)[0, 0]


_CARBON_VOLTS, _ICE_CRYSTAL_VOLTS = 9.0, 4.5
_SLAB_ANGSTROM = 80.0
_TRIES = 200  # places tried for a particle before the ice counts as full


@dataclass(frozen=True)
class MicrographConfig:
    """What is imaged, and how.

    Attributes
    ----------
    size : int or (int, int)
        Pixels in y and x.
    defocus_angstrom, astigmatism_angstrom, astigmatism_deg : float
        Mean of the two defoci (positive is underfocus), their difference, direction of the first.
    b_factor_angstrom2 : float
        Envelope of the image of the specimen: motion, damage, coherence.
    particles : int
        How many are expected in the field (others lie beyond its border); fewer if the ice is
        full. 0 is the no-particle control.
    distance_angstrom : float
        Smallest distance of two particles.
    ice_angstrom, gradient : float
        Mean thickness of the ice; its relative change across the field (0.3: 15 % up and down).
    mean_free_path_angstrom : float
        Of inelastic scattering, in ice and carbon.
    contrast : float
        Share of the particles' theoretical contrast that arrives; the missing half is lost in
        real micrographs to inelastic scattering and motion (Vulovic et al. 2013).
    ice_phase, carbon_phase : float
        Standard deviation of the phases of amorphous ice and carbon in rad, a pixel.
    background : float
        Standard deviation of the structured background, relative intensity.
    carbon : float
        Share of the field that a carbon edge covers, in [0, 1).
    contaminants : int
        Ice crystals on the surface.
    """

    size: int | tuple[int, int] = 1024
    pixel_size_angstrom: float = 2.63
    dose_per_angstrom2: float = 45.0
    voltage_kv: float = 300.0
    defocus_angstrom: float = 12000.0
    astigmatism_angstrom: float = 200.0
    astigmatism_deg: float = 30.0
    cs_mm: float = 2.7
    amplitude_contrast: float = 0.07
    b_factor_angstrom2: float = 80.0
    particles: int = 120
    distance_angstrom: float = 170.0
    ice_angstrom: float = 400.0
    gradient: float = 0.3
    mean_free_path_angstrom: float = 3000.0
    contrast: float = 0.5
    ice_phase: float = 0.02
    carbon_phase: float = 0.05
    background: float = 0.01
    carbon: float = 0.0
    contaminants: int = 1
    detector: Detector = field(default_factory=Detector)

    def __post_init__(self) -> None:
        check_fields(self)
        if min(self.shape) < 64:
            raise InputError(f"a micrograph needs at least 64 pixels a side, got {self.shape}")
        if self.dose_per_angstrom2 <= 0 or self.pixel_size_angstrom <= 0:
            raise InputError("the dose (electrons per square angstrom) and pixel size must be > 0")
        if self.particles < 0 or self.contaminants < 0 or not 0 <= self.carbon < 1:
            raise InputError("particles and contaminants are counts, carbon a share in [0, 1)")
        if min(self.ice_angstrom, self.mean_free_path_angstrom, self.distance_angstrom) <= 0:
            raise InputError("thickness, mean free path and distance must be positive (angstrom)")
        if not 0 <= self.gradient < 1 or not 0 < self.contrast <= 1:
            raise InputError("gradient must be in [0, 1) and contrast in (0, 1]")

    @property
    def shape(self) -> tuple[int, int]:
        """Pixels in y and x."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    def ctf(self, depth_angstrom: float | Tensor = 0.0) -> ComplexCTF:
        """The lens for what lies `depth_angstrom` above the middle of the ice."""
        defocus = self.defocus_angstrom + depth_angstrom
        half = self.astigmatism_angstrom / 2
        return ComplexCTF(
            self.voltage_kv,
            self.pixel_size_angstrom,
            defocus + half,
            defocus - half,
            self.astigmatism_deg,
            self.cs_mm,
            self.amplitude_contrast,
            b_factor_angstrom2=self.b_factor_angstrom2,
        )


@dataclass(frozen=True)
class Micrograph:
    """A simulated micrograph and all that went into it; images ``(H, W)`` float32 in counts.

    Attributes
    ----------
    noisy : Tensor
        What the detector gives.
    clean : Tensor
        Its expectation without ice and carbon structure: particles, gradient, background,
        contaminants, carbon film, blurred by the detector.
    noise_free_sources : dict of str to Tensor
        Additive parts: ``level`` (ice of mean thickness), ``particles``, ``thickness``,
        ``background``, ``carbon``, ``contaminants``; and the noises ``structure`` (amorphous ice
        and carbon) and ``shot``. All of them add up to `noisy`; without the last two, to `clean`.
    coordinates : ndarray
        ``(n, 2)`` centres (y, x) in pixels, may lie on fractions; only those inside the image.
    rotations : ndarray
        ``(n, 3, 3)`` as `emlab.data.phase_maps.project` takes them.
    """

    noisy: Tensor
    clean: Tensor
    noise_free_sources: dict[str, Tensor]
    coordinates: NDArray[np.float64]
    rotations: NDArray[np.float64]
    config: MicrographConfig

    @property
    def particles(self) -> Tensor:
        """Image of the particles alone, in counts: what band-wise scores compare with."""
        return self.noise_free_sources["particles"]

    @property
    def pixel_size_angstrom(self) -> float:
        """Side of a pixel."""
        return self.config.pixel_size_angstrom

    @property
    def defocus_angstrom(self) -> float:
        """Defocus, positive is underfocus."""
        return self.config.defocus_angstrom

    def mask(self, radius_angstrom: float) -> Tensor:
        """Pixels within a radius of a particle's centre, ``(H, W)`` bool."""
        rows, columns = (torch.arange(side, dtype=torch.float64) for side in self.noisy.shape)
        radius, inside = radius_angstrom / self.pixel_size_angstrom, torch.zeros(self.noisy.shape)
        for y, x in self.coordinates:
            square = (rows[:, None] - y).square() + (columns - x).square()
            inside[square < radius**2] = 1
        return inside.bool()


def simulate_micrograph(
    config: MicrographConfig, volume: Tensor, generator: torch.Generator
) -> Micrograph:
    """Draw a micrograph of a particle at random places, depths and orientations.

    Parameters
    ----------
    volume : Tensor
        ``(n, n, n)`` potential in volts against ice, n even, voxels as large as the pixels; see
        `emlab.data.phase_maps.specimen_volume`.

    Raises
    ------
    InputError
        A volume that is no cube, or torch-fourier-slice is missing (``pip install
        'emlab-book[cryoem]'``).
    """
    if volume.ndim != 3 or len(set(volume.shape)) != 1 or volume.shape[0] % 2:
        raise InputError(f"a micrograph needs a cubic volume of even side, got {volume.shape}")
    height, width = config.shape
    pad = volume.shape[0] + 32  # partial particles at the border, fringes of what lies beyond it
    full = replace(config, size=(_fast(height + 2 * pad), _fast(width + 2 * pad)))
    film, edge = hole_edge(full.shape, config.carbon, pad, generator)
    crystals = blobs(full.shape, config.contaminants, pad, config.pixel_size_angstrom, generator)
    thickness = _thickness(full, generator)
    wanted = round(config.particles * math.prod(full.shape) / (height * width))
    crowded = replace(full, particles=wanted)
    centres = _places(crowded, volume.shape[0], film + (crystals > 20), generator)
    depths = (_uniform(len(centres), generator) - 0.5) * max(0.0, config.ice_angstrom - 120)
    rotations = random_rotations(len(centres), generator)
    phases = _specimen(full, volume, centres, depths, rotations)

    path = config.mean_free_path_angstrom
    passing = [torch.exp(-part / path) for part in (thickness, crystals, 150 * film)]
    level = math.exp(-config.ice_angstrom / path)
    counts = config.dose_per_angstrom2 * config.pixel_size_angstrom**2
    lens = config_transfer(full)
    amorphous = full.ice_phase**2 * thickness / full.ice_angstrom + full.carbon_phase**2 * film
    noise = torch.randn(full.shape, generator=generator) * amorphous.sqrt()
    fringe = sigma_e(config.voltage_kv) * (
        _CARBON_VOLTS * 150 * edge + _ICE_CRYSTAL_VOLTS * crystals
    )
    background = config.background * power_law_field(full.shape, 1.5, generator)

    ice, both = passing[0], passing[0] * passing[1] * passing[2]
    parts = {
        "level": torch.full(full.shape, level),
        "particles": both * config.contrast * phases,
        "thickness": ice - level,
        "background": both * background,
        "carbon": ice * passing[1] * (passing[2] - 1),
        "contaminants": ice * (passing[1] - 1) + both * _filter(fringe, lens),
        "structure": both * _filter(noise, lens),
    }
    relative = sum(parts.values()).clamp_min(0.02)  # type: ignore[union-attr]
    inner = slice(pad, pad + height), slice(pad, pad + width)
    expected = {
        name: config.detector.expected(counts * part)[inner].float().contiguous()
        for name, part in parts.items()
    }
    noisy = config.detector.sample((counts * relative).float(), generator)[inner].contiguous()
    expected["shot"] = noisy - sum(expected.values())
    clean = noisy - expected["shot"] - expected["structure"]
    places = centres.numpy() - pad
    inside = ((places >= 0) & (places < np.array(config.shape))).all(1)
    turned = rotations.numpy()[inside]
    return Micrograph(noisy, clean, expected, places[inside], turned, config)


def config_transfer(config: MicrographConfig, depth_angstrom: float = 0.0) -> Tensor:
    """Weak-phase transfer of phases to relative intensity, ``(H, W // 2 + 1)`` for `rfft2`."""
    transfer = 2 * config.ctf(depth_angstrom).weak_phase(config.shape)
    return transfer[:, : config.shape[1] // 2 + 1].float()


def random_rotations(n: int, generator: torch.Generator) -> Tensor:
    """Rotations uniform over all orientations, ``(n, 3, 3)`` float64 (Shoemake's quaternions)."""
    four = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    w, x, y, z = functional.normalize(four, dim=1).unbind(1)
    entries = [
        1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w),
        2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w),
        2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(entries, 1).reshape(n, 3, 3)


def _specimen(
    full: MicrographConfig, volume: Tensor, centres: Tensor, depths: Tensor, rotations: Tensor
) -> Tensor:
    """Relative intensity of the particles, each under the lens of its depth."""
    image = torch.zeros(full.shape)
    if not len(centres):
        return image
    box, pixel = volume.shape[0], full.pixel_size_angstrom
    whole = centres.round()
    shifts = (centres - whole).flip(1) * pixel
    views = project(volume, rotations, pixel, full.voltage_kv, shifts.numpy())
    slabs = (depths / _SLAB_ANGSTROM).round()
    for slab in slabs.unique():
        phase = torch.zeros(full.shape)
        for number in (slabs == slab).nonzero()[:, 0].tolist():
            top, left = (int(value) - box // 2 for value in whole[number])
            phase[top : top + box, left : left + box] += views[number]
        image += _filter(phase, config_transfer(full, float(slab) * _SLAB_ANGSTROM))
    return image


def _places(
    full: MicrographConfig, box: int, forbidden: Tensor, generator: torch.Generator
) -> Tensor:
    """Centres ``(n, 2)`` at random, no two closer than allowed, none on carbon or crystals."""
    margin, distance = box // 2 + 1, full.distance_angstrom / full.pixel_size_angstrom
    size = torch.tensor(full.shape, dtype=torch.float64) - 2 * margin
    found = torch.empty(0, 2, dtype=torch.float64)
    for _ in range(full.particles * _TRIES):
        if len(found) == full.particles:
            break
        place = margin + size * torch.rand(2, generator=generator, dtype=torch.float64)
        y, x = place.long().tolist()
        near = (found - place).square().sum(1) < distance**2
        if not forbidden[y, x] and not near.any():
            found = torch.cat([found, place[None]])
    return found


def _thickness(full: MicrographConfig, generator: torch.Generator) -> Tensor:
    """Ice in angstrom: a plane in a random direction and a gentle waviness."""
    angle = 2 * math.pi * _uniform(1, generator).item()
    rows, columns = (torch.linspace(-0.5, 0.5, side) for side in full.shape)
    slope = math.sin(angle) * rows[:, None] + math.cos(angle) * columns
    waves = 0.1 * full.gradient * power_law_field(full.shape, 3.0, generator)
    return full.ice_angstrom * (1 + full.gradient * slope + waves).clamp_min(0.2)


def _filter(image: Tensor, transfer: Tensor) -> Tensor:
    return torch.fft.irfft2(torch.fft.rfft2(image.float()) * transfer, s=image.shape)


def _uniform(n: int, generator: torch.Generator) -> Tensor:
    return torch.rand(n, generator=generator, dtype=torch.float64)


def _fast(size: int) -> int:
    """The next even length of factors 2, 3 and 5."""
    size += size % 2
    while scipy.fft.next_fast_len(size, real=True) != size:
        size += 2
    return size
