"""TSM's claims and the chapter's targets, beside what a run measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from emlab.bench import Target
from emlab.chapters.em_generalist.claims import departures as unmet, fill

Values = Mapping[str, Mapping[str, Any]]

# Row, what the paper says (quoted), what is shown of this run: {name} is a recorded number.
_ROWS = (
    (
        "T1: the variance of the DSM target grows as d / sigma_a^2",
        "the target's squared norm grows as sigma_a to the power {target_noise.exponent}",
    ),
    (
        "T2: DSM and TSM pick better than raw, Gaussian, Topaz-Denoise (micro F1 .649 / .644 / "
        ".631 / .641 / .613 on EMPIAR-10291)",
        "F1 of TSM {picking.f1.tsm}, DSM {picking.f1.dsm}, raw {picking.f1.raw}, Gaussian "
        "{picking.f1.gaussian}, Topaz-Denoise {picking.f1.topaz}; apoferritin average "
        "{apoferritin_average.f1.tsm}, {apoferritin_average.f1.dsm}, "
        "{apoferritin_average.f1.raw}, -, {apoferritin_average.f1.topaz} (random places "
        "{apoferritin_average.f1.chance})",
    ),
    (
        "T3: TSM best on the hard sets, highest precision on the easy one",
        "near focus TSM {set.near_focus.f1.tsm}, DSM {set.near_focus.f1.dsm}, raw "
        "{set.near_focus.f1.raw}, Topaz-Denoise {set.near_focus.f1.topaz}; precision on "
        "beta-galactosidase {set.beta_galactosidase.precision.tsm}, "
        "{set.beta_galactosidase.precision.dsm}, {set.beta_galactosidase.precision.raw}, "
        "{set.beta_galactosidase.precision.topaz}",
    ),
    (
        "T4: DSM gains recall, TSM is balanced",
        "precision and recall: raw {picking.precision.raw}, {picking.recall.raw}; DSM "
        "{picking.precision.dsm}, {picking.recall.dsm}; TSM {picking.precision.tsm}, "
        "{picking.recall.tsm}",
    ),
    (
        "T5: TSM best or near best in resolution (3.75 A on EMPIAR-10291, raw 6.61)",
        "raw particles at the picks of: raw {map.resolution.raw} A, Topaz-Denoise "
        "{map.resolution.topaz}, DSM {map.resolution.dsm}, TSM {map.resolution.tsm}, the true "
        "places {map.resolution.truth}",
    ),
    (
        "T6: moderate target weight sharpens, large over-regularises",
        "short trainings, weight 0 / .3 / .7 / 1: {ablation.dsm.seen} / "
        "{ablation.weight_0.3.seen} / {ablation.weight_0.7.seen} / {ablation.tsm.seen} on "
        "proteins of the bank, {ablation.dsm.unseen} / {ablation.weight_0.3.unseen} / "
        "{ablation.weight_0.7.unseen} / {ablation.tsm.unseen} on another particle",
    ),
    (
        "T7: annealed guidance stabilises the similarity of patches to their targets",
        "cosine above chance with encoder features, last refresh less first: annealed "
        "{ablation.similarity.annealed_change}, full weight at once "
        "{ablation.similarity.at_once_change}; accepted guesses at the last refresh "
        "{ablation.guesses.annealed_last} and {ablation.guesses.at_once_last}",
    ),
    (
        "T8: step size a of .4 to .5 best, results insensitive",
        "after five steps {iteration.last.a0.4} at a = .4, {iteration.last.a0.5} at .5; largest "
        "difference {iteration.spread}; one Tweedie step {iteration.one_step}; an exact score "
        "leaves {iteration.exact_noise.a0.5} of white noise at .5",
    ),
    (
        "T9: 30 minutes of training; up to 22 GB a micrograph at inference",
        "training {training.minutes.tsm_tsm} minutes on a processor; TSM denoises "
        "{speed.megapixels_per_cpu_second.tsm} megapixels a processor second, "
        "{speed.over_topaz} times Topaz-Denoise's; 4096 x 4096 pixels take {memory.tsm} MB, "
        "Topaz-Denoise {memory.topaz} MB",
    ),
)

# Row, a condition of the scorecard, what is said where it is not met.
_DEPARTURES = (
    (
        "T2",
        "picking.f1.tsm > picking.f1.dsm",
        "TSM picks no better than DSM ({picking.f1.tsm} against {picking.f1.dsm}): what helps is "
        "denoising, not the target",
    ),
    (
        "T2",
        "apoferritin_average.f1.tsm > apoferritin_average.f1.topaz",
        "on the real apoferritin average Topaz-Denoise reaches {apoferritin_average.f1.topaz}, TSM "
        "{apoferritin_average.f1.tsm}",
    ),
    (
        "T3",
        "set.near_focus.f1.tsm > set.near_focus.f1.dsm",
        "on the hard set DSM reaches {set.near_focus.f1.dsm}, TSM {set.near_focus.f1.tsm}: some "
        "sixty particles, intervals that overlap",
    ),
    (
        "T3",
        "set.beta_galactosidase.precision.tsm > set.beta_galactosidase.precision.raw",
        "on the easy set raw micrographs have the highest precision "
        "({set.beta_galactosidase.precision.raw}), at the price of recall",
    ),
    (
        "T4",
        "picking.precision.tsm > picking.precision.dsm",
        "DSM gains recall as claimed, but TSM is not the more precise one "
        "({picking.precision.tsm} against {picking.precision.dsm})",
    ),
    (
        "T6",
        "ablation.weight_0.3.seen > ablation.dsm.seen",
        "a moderate weight does not raise the correlation above DSM's",
    ),
    (
        "T7",
        "ablation.similarity.annealed_change > ablation.similarity.at_once_change",
        "with the encoder's features annealing does not keep patches nearer to their targets: "
        "{ablation.guesses.annealed_last} guesses are left at the last refresh, "
        "{ablation.guesses.at_once_last} with full weight at once; our default compares pixels",
    ),
    (
        "T8",
        "iteration.last.a0.45 > iteration.last.a0.2",
        "larger steps are worse, and the result depends on a by {iteration.spread}: our score is "
        "nearer to the exact one, under which the iteration diverges",
    ),
)

TARGETS = (
    Target("correlation, TSM over DSM", "recovery_gain.over_dsm", 0.0),
    Target("correlation, DSM over Topaz-Denoise", "recovery_gain.dsm_over_topaz", 0.0),
    Target("correlation, TSM over Gaussian", "recovery_gain.over_gaussian", 0.0),
    Target("correlation, TSM over BM3D", "recovery_gain.over_bm3d", 0.0),
    Target("correlation, DSM over Gaussian", "recovery_gain.dsm_over_gaussian", 0.0),
    Target("correlation, DSM over BM3D", "recovery_gain.dsm_over_bm3d", 0.0),
    Target("correlation, TSM over Wiener low-pass (best filter)", "recovery_gain.over_wiener", 0.0),
    Target("F1, TSM over raw", "picking.f1_gain.over_raw", 0.03),
    Target("F1, TSM over Topaz-Denoise", "picking.f1_gain.over_topaz", 0.03),
    Target("precision, TSM over raw", "picking.precision_gain.over_raw", 0.0),
    Target(
        "apoferritin average, F1 of TSM over raw",
        "apoferritin_average.f1.tsm",
        0.0,
        minus="apoferritin_average.f1.raw",
    ),
    Target(
        "apoferritin average, F1 of TSM over Topaz-Denoise",
        "apoferritin_average.f1.tsm",
        0.0,
        minus="apoferritin_average.f1.topaz",
    ),
    Target("picks without particles, TSM over raw", "empty.excess_picks", most=0.0),
    Target(
        "likeness to the wrong template, TSM over DSM",
        "template.particles.apoferritin_6z6u.excess",
        most=0.02,
    ),
    Target("resolution at the picks, TSM over raw", "map.resolution_ratio.over_raw", most=1.0),
    Target("speed over Topaz-Denoise", "speed.over_topaz", 1.0),
    Target("peak memory at 4096 x 4096 over Topaz-Denoise's", "memory.over_topaz", most=0.5),
    Target("minutes of training", "training.minutes.tsm_tsm", most=20.0),
)


def claims(values: Values) -> str:
    """Markdown table: what the paper reports, and the numbers of a metrics.json beside it."""
    lines = ["| the paper reports | measured here |", "|---|---|"]
    return "\n".join(lines + [f"| {claim} | {fill(here, values)} |" for claim, here in _ROWS])


def departures(values: Values) -> list[str]:
    """A sentence for every condition of a claim that a run does not meet."""
    return unmet(values, _DEPARTURES)
