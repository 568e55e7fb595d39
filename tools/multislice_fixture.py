"""Write tests/fixtures/multislice.npz: images of a thin specimen by abTEM's multislice.

abTEM is no dependency of the package. In an environment of its own, ``pip install abtem``, then
``python tools/multislice_fixture.py``; takes seconds. The specimen is 600 carbon, nitrogen and
oxygen atoms at seeded random places in a slab of 20 angstrom, without vibrations; 300 kV, Cs
2.7 mm, periodic square of 64 angstrom, calculated at 0.25 and stored, band limited, at 1 angstrom
a pixel. The defocus counts from the middle of the slab.
"""

from pathlib import Path

import abtem
import numpy as np
from ase import Atoms

SIDE, FINE, PIXELS, THICKNESS = 64.0, 0.25, 64, 20.0
DEFOCUS_ANGSTROM = (3000.0, 15000.0, -8000.0)


def coarse(image: np.ndarray) -> np.ndarray:
    """Keep the frequencies that 64 pixels hold."""
    size, half = len(image), PIXELS // 2
    spectrum = np.fft.fftshift(np.fft.fft2(image))
    middle = slice(size // 2 - half, size // 2 + half)
    kept = spectrum[middle, middle].copy()
    kept[0], kept[:, 0] = 0, 0  # the Nyquist frequency has no partner
    return np.fft.ifft2(np.fft.ifftshift(kept)).real * (PIXELS / size) ** 2


def specimen() -> Atoms:
    """Atoms in a ring-shaped slab, so that the image has structure at low frequencies too."""
    rng = np.random.default_rng(4)
    angle, radius = rng.uniform(0, 2 * np.pi, 600), rng.normal(17, 3.5, 600)
    places = np.stack(
        [SIDE / 2 + radius * np.cos(angle), SIDE / 2 + radius * np.sin(angle),
         rng.uniform(1, THICKNESS - 1, 600)], axis=1,
    )  # fmt: skip
    symbols = rng.choice(["C", "N", "O"], 600, p=[0.64, 0.17, 0.19])
    return Atoms(symbols, places, cell=[SIDE, SIDE, THICKNESS], pbc=True)


def main() -> None:
    potential = abtem.Potential(specimen(), sampling=FINE, slice_thickness=1.0).build().compute()
    energy = 300e3
    wave = abtem.PlaneWave(energy=energy).multislice(potential).compute()
    projected = potential.array.sum(0)
    sigma = abtem.core.energy.energy2sigma(energy)
    images = []
    for defocus in DEFOCUS_ANGSTROM:
        lens = abtem.CTF(energy=energy, defocus=defocus + THICKNESS / 2, Cs=2.7e7)
        images.append(coarse(wave.apply_ctf(lens).intensity().compute().array))
    place = Path(__file__).resolve().parents[1] / "tests" / "fixtures" / "multislice.npz"
    np.savez_compressed(
        place,
        phase=coarse(sigma * projected).astype(np.float32),
        images=np.stack(images).astype(np.float32),
        defocus_angstrom=np.array(DEFOCUS_ANGSTROM),
        versions=np.array(f"abtem {abtem.__version__}, numpy {np.__version__}"),
    )


if __name__ == "__main__":
    main()
