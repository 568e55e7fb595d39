"""Images per second of emlab's residual U-Net and of cellpose 3.1.1.3's own, of the same width.

Runs in the environment that `tools/make_cellpose_oracle.py` describes:

    PYTHONPATH=src /tmp/venv-cellpose/bin/python tools/measure_cellpose_speed.py

Both networks are restorers with random weights that take one image of 224 x 224 at a time, on one
thread and in float32; they take turns, and the median over the turns counts.
"""

from __future__ import annotations

import platform
import time
from datetime import UTC, datetime
from pathlib import Path

import tomli_w
import torch
from cellpose.resnet_torch import CPnet

from emlab.models.residual_unet import ResidualUNet

TARGET = Path(__file__).resolve().parents[1] / "src/emlab/chapters/cellpose3/speed.toml"
WIDTHS = ([8, 16, 32, 64], [32, 64, 128, 256])
SIDE, TURNS = 224, 25
HEAD = "# Speed against cellpose 3.1.1.3 on one thread. By tools/measure_cellpose_speed.py.\n\n"


def main() -> None:
    """Measure and write the table."""
    torch.set_num_threads(1)
    table = {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": _processor(),
        "torch": torch.__version__,
        "side": SIDE,
        "threads": 1,
        "widths": {"_".join(map(str, widths)): _measure(widths) for widths in WIDTHS},
    }
    TARGET.write_text(HEAD + tomli_w.dumps(table), encoding="utf-8")
    print(TARGET.read_text(encoding="utf-8"))


def _measure(widths: list[int]) -> dict[str, float | int]:
    ours = ResidualUNet(widths, 1).eval()
    theirs = CPnet([1, *widths], nout=1, sz=3, max_pool=True, diam_mean=17.0).eval()
    image = torch.rand(1, SIDE, SIDE)
    seconds: dict[str, list[float]] = {"emlab": [], "cellpose": []}
    with torch.inference_mode():
        for turn in range(TURNS + 2):
            for name, run in (
                ("emlab", lambda: ours(image)),
                ("cellpose", lambda: theirs(image[None])),
            ):
                begun = time.perf_counter()
                run()
                if turn > 1:
                    seconds[name].append(time.perf_counter() - begun)
    rate = {name: 1 / sorted(found)[len(found) // 2] for name, found in seconds.items()}
    return {
        "emlab_images_per_second": round(rate["emlab"], 2),
        "cellpose_images_per_second": round(rate["cellpose"], 2),
        "ratio": round(rate["emlab"] / rate["cellpose"], 3),
        "emlab_parameters": sum(p.numel() for p in ours.parameters()),
        "cellpose_parameters": sum(p.numel() for p in theirs.parameters()),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


if __name__ == "__main__":
    main()
