"""Draw book/_static/hero.png: a noisy field, what it hides, and the digit recovered from it.

Run with ``python -m tools.hero``; the digit is a held-out one that no prior was trained on.
"""

from pathlib import Path

import torch
from matplotlib.figure import Figure

from emlab.data.digits import load_digits
from emlab.methods import mtd
from emlab.physics.mtd import simulate_measurement
from emlab.priors import load_prior
from emlab.runtime import atomic_path, make_generator
from emlab.viz import use_style

ROOT = Path(__file__).resolve().parents[1]
DIGIT = 45


def main() -> None:
    """Recover one digit at SNR 0.3 and draw the three pictures side by side."""
    use_style()
    truth = torch.from_numpy(load_digits("held_out").images[DIGIT])
    measurement = simulate_measurement(truth, 0.3, make_generator(3))
    prior, config = load_prior("mtd_mnist_epsilon"), mtd.load_config("ours_mnist")
    with torch.no_grad():
        recovery = mtd.recover(measurement.field, config, make_generator(0), prior)
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    panels = {
        "measured": measurement.field,
        "recovered from it": recovery.image,
        "truth": truth,
    }
    for axis, (label, image) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        axis.imshow(image, cmap="gray", vmin=-0.2, vmax=1)
        axis.set(xticks=[], yticks=[], title=label)
        axis.grid(False)
    with atomic_path(ROOT / "book" / "_static" / "hero.png") as path:
        figure.savefig(path, format="png", dpi=110)


if __name__ == "__main__":
    main()
