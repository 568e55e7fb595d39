"""Cellpose3's claims and what was asked of this chapter, beside what a run measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from emlab.bench import Target
from emlab.chapters.cellpose3.study import LABELS
from emlab.chapters.em_generalist.claims import fill

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
        "with a quarter of the photons, where next to nothing is found in the noisy image, "
        "{hard.fp_rate.degraded} and {hard.fp_rate.ours}; objects in 100 x 100 pixels of empty "
        "noise {noise.objects.degraded} and {noise.objects.ours}, of windows without a nucleus "
        "{background.objects.degraded} and {background.objects.ours}",
    ),
    ("C5: holds for real noise at several laser powers", "not to be had here"),
    (
        "C6: beats blind denoisers and a paired restorer that train on many similar images",
        "no blind denoiser was trained on many images; ours over Noise2Void, trained on each image "
        "alone, {denoise.gain.over_noise2void}; over a paired restorer (reconstruction loss, the "
        "same training images as ours) {denoise.gain.over_reconstruction}",
    ),
    (
        "C7: on nuclei the three losses segment almost equally",
        "reconstruction {denoise.ap_50.reconstruction}, segmentation {denoise.ap_50.segmentation}, "
        "perceptual (a third of the steps) {denoise.ap_50.perceptual}, both {denoise.ap_50.ours}",
    ),
    (
        "C8: deblurring recovers AP",
        "blurred {deblur.ap_50.degraded}, ours {deblur.ap_50.ours}: {deblur.recovered.ours} of "
        "what was lost; in the paper's range of strengths {deblur.recovered.range}, "
        "Richardson-Lucy {deblur.recovered.richardson_lucy}; ours over it "
        "{deblur.gain.over_richardson_lucy}",
    ),
    (
        "C9: upsampling recovers AP",
        "coarse {upsample.ap_50.degraded}, ours {upsample.ap_50.ours}: {upsample.recovered.ours} "
        "of what was lost; in the paper's range of strengths {upsample.recovered.range}, cubic "
        "{upsample.recovered.cubic}; ours over it {upsample.gain.over_cubic}",
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
        "one model and specialist, both in the paper's range of strengths: denoise "
        "{denoise.ap_50.combined} and {denoise.ap_50.ours}, deblur {deblur.ap_50.combined} and "
        "{deblur.ap_50.range}, upsample {upsample.ap_50.combined} and {upsample.ap_50.range}; the "
        "one model took as many steps for all tasks as a specialist for one",
    ),
    (
        "C12: a wider or deeper network does not help",
        "one width was trained: {speed.parameters} million parameters, the paper's 6.60",
    ),
    (
        "C13: 750 images of 224 x 224 a second on an A100, 210 on an A4000",
        "{speed.restored} on the device of this run with a narrower network; "
        "{speed.over_cellpose} times as many as cellpose's own network of this width on one core",
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


_SPOILT = {
    "denoise": "Noise",
    "hard": "A quarter of the photons",
    "deblur": "Blur",
    "upsample": "Coarse pixels",
}
_NO_PEERS = ("clean", "degraded", "constant", "untrained")


def verdicts(values: Values) -> str:
    """Markdown list: in each task, what ours is ahead of, level with and behind in AP at .5.

    Ahead or behind is what the 95 % interval of the paired difference leaves no doubt of; with as
    many comparisons as there are, one in twenty of these is chance.
    """
    lines = []
    for task, title in _SPOILT.items():
        if f"{task}.ap_50.ours" not in values:
            continue
        found: dict[str, list[str]] = {"ahead of": [], "not told apart from": [], "behind": []}
        for name, label in LABELS.items():
            gain = values.get(f"{task}.gain.over_{name}")
            if gain is None or name in _NO_PEERS:
                continue
            behind = "behind" if gain["high"] < 0 else "not told apart from"
            found["ahead of" if gain["low"] > 0 else behind].append(label)
        parts = [f"{word} *{', '.join(names)}*" for word, names in found.items() if names]
        back = fill(f"{{{task}.recovered.ours}} of the lost AP comes back", values)
        lines.append(f"- **{title}**: {'; '.join([back, *parts])}.")
    return "\n".join(lines)


def claims(values: Values) -> str:
    """Markdown table: what the paper reports, and the numbers of a metrics.json beside it."""
    lines = ["| the paper reports | measured here |", "|---|---|"]
    return "\n".join(lines + [f"| {claim} | {fill(here, values)} |" for claim, here in _ROWS])
