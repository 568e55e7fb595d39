"""Cellpose3's claims and what was asked of this chapter, beside what a run measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from emlab.methods.generalist_claims import fill
from emlab.report import Target

Values = Mapping[str, Mapping[str, Any]]

# Row, what the paper says (quoted), what is shown of this run: {name} is a recorded number.
_ROWS = (
    (
        "C1: Noise2Void and Noise2Self raise AP on average and lower it on some images",
        "AP {denoise.ap_50.degraded} noisy, {denoise.ap_50.noise2void} and "
        "{denoise.ap_50.noise2self}; lower on {denoise.worse_images.noise2void} and "
        "{denoise.worse_images.noise2self} of the images",
    ),
    (
        "C2: the segmentation loss beats the reconstruction loss in AP; the perceptual loss keeps "
        "that and looks right",
        "reconstruction {denoise.ap_50.reconstruction}, segmentation alone "
        "{denoise.ap_50.segmentation}, perceptual alone {denoise.ap_50.perceptual}, both "
        "{denoise.ap_50.ours}; both over reconstruction {denoise.gain.over_reconstruction}",
    ),
    (
        "C3: better than a segmenter retrained on noisy images",
        "retrained {denoise.ap_50.noisy_segmenter}; ours over it "
        "{denoise.gain.over_noisy_segmenter}",
    ),
    (
        "C4: no more false positives than the noisy image itself",
        "FP for each true nucleus: noisy {denoise.fp_rate.degraded}, ours {denoise.fp_rate.ours}; "
        "on empty noise {noise.objects.degraded} and {noise.objects.ours} objects in 100 x 100 "
        "pixels",
    ),
    ("C5: holds for real noise at several laser powers", "not to be had here"),
    (
        "C6: beats blind denoisers and a paired restorer that train on many similar images",
        "not trained on many; on each image alone: over Noise2Void "
        "{denoise.gain.over_noise2void}, over the paired reconstruction "
        "{denoise.gain.over_reconstruction}",
    ),
    (
        "C7: on nuclei the three losses segment almost equally",
        "reconstruction {denoise.ap_50.reconstruction}, both {denoise.ap_50.ours}",
    ),
    (
        "C8: deblurring recovers AP",
        "blurred {deblur.ap_50.degraded}, ours {deblur.ap_50.ours}: {deblur.recovered.ours} of "
        "what was lost; Richardson-Lucy {deblur.recovered.richardson_lucy}",
    ),
    (
        "C9: upsampling recovers AP",
        "coarse {upsample.ap_50.degraded}, ours {upsample.ap_50.ours}: {upsample.recovered.ours} "
        "of what was lost; cubic {upsample.recovered.cubic}",
    ),
    (
        "C10: one-click models match specialists, except deblurring and upsampling of nuclei",
        "nuclei: specialist {denoise.ap_50.ours}, one-click {denoise.ap_50.oneclick}; stardist "
        "{domain.stardist.ap_50.ours} and {domain.stardist.ap_50.oneclick}, plant "
        "{domain.plant.ap_50.ours} and {domain.plant.ap_50.oneclick}, bacteria "
        "{domain.bacteria.ap_50.ours} and {domain.bacteria.ap_50.oneclick}; one-click deblurring "
        "and upsampling were not trained",
    ),
    (
        "C11: one model for all three tasks is worse",
        "denoise {denoise.ap_50.combined}, deblur {deblur.ap_50.combined}, upsample "
        "{upsample.ap_50.combined}; specialists over it {denoise.gain.over_combined}, "
        "{deblur.gain.over_combined}, {upsample.gain.over_combined}",
    ),
    (
        "C12: a wider or deeper network does not help",
        "not trained; ours has 0.43 million parameters, the paper's 6.60",
    ),
    (
        "C13: 750 images of 224 x 224 a second on an A100, 210 on an A4000",
        "{speed.restored} on this processor, the network narrower",
    ),
    (
        "C14: segment the restored image, measure the raw one",
        "slope of measured against true brightness: raw {brightness.slope.raw}, restored "
        "{brightness.slope.ours}; bright nuclei off by {brightness.bias_bright.raw} and "
        "{brightness.bias_bright.ours}, dim ones by {brightness.bias_dim.raw} and "
        "{brightness.bias_dim.ours}",
    ),
)

_OVER = {
    "reconstruction": "reconstruction only",
    "noise2void": "Noise2Void",
    "noise2self": "Noise2Self",
    "bm3d": "BM3D",
    "noisy_segmenter": "retrained segmenter",
}

TARGETS = (
    Target("segmenter on clean images, AP", "denoise.ap_50.clean", 0.80, aim=0.86),
    Target("denoise, of the lost AP", "denoise.recovered.ours", 0.6, aim=0.75),
    *(Target(f"denoise over {label}, AP", f"denoise.gain.over_{name}", 0.0)
      for name, label in _OVER.items()),
    Target("deblur, of the lost AP", "deblur.recovered.ours", 0.4),
    Target("deblur over Richardson-Lucy, AP", "deblur.gain.over_richardson_lucy", 0.0),
    Target("deblur over Gaussian, AP", "deblur.gain.over_gaussian", 0.0),
    Target("upsample, of the lost AP", "upsample.recovered.ours", 0.4),
    Target("upsample over cubic, AP", "upsample.gain.over_cubic", 0.0),
    Target("denoise, FP rate over the noisy image's", "denoise.more_fp.ours", most=0.02),
    Target("deblur, FP rate over the blurred image's", "deblur.more_fp.ours", most=0.02),
    Target("upsample, FP rate over the coarse image's", "upsample.more_fp.ours", most=0.02),
    Target("specialist over one-click, AP", "denoise.gain.over_oneclick", most=0.03),
    Target("speed over cellpose's network of this width", "speed.over_cellpose", 1.0),
)  # fmt: skip


def claims(values: Values) -> str:
    """Markdown table: what the paper reports, and the numbers of a metrics.json beside it."""
    lines = ["| the paper reports | measured here |", "|---|---|"]
    return "\n".join(lines + [f"| {claim} | {fill(here, values)} |" for claim, here in _ROWS])
