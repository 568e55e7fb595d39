"""The multi-target detection paper's claims, beside what a run measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from emlab.chapters.mtd.study import StudySettings

PAPER_TARGETS = 10
LINEAR_WITHIN = 0.15  # of an exponent of 1


def claims(values: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown table: claim, measured here, verdict; from the values of a metrics.json."""
    gaussian, mnist = _gains(values, "gaussian"), _gains(values, "mnist")
    top = max(mnist)
    linear = values["schedule.gain_of_linear_over_best_other"]
    exponent = values["growth.exponent_of_area"]["value"]
    rows = [
        ("M1: Gaussian images, the prior helps at every SNR", *_every(gaussian)),
        ("M1: and most at low SNR", _text(gaussian), _most_at_low(gaussian)),
        ("M2: digits, the prior helps at every SNR", *_every(mnist)),
        (
            "M3: the ten digits at SNR 1 are visibly better with the prior",
            *_every({top: mnist[top]}),
        ),
        (
            "M3: the same after the best shift",
            *_every({top: _gains(values, "mnist", "gain_shift")[top]}),
        ),
        (
            "M4: a weight that grows linearly works best on digits",
            f"gain over the better constant weight {_number(linear)}",
            _verdict([linear["low"] > 0], [linear["value"] > 0]),
        ),
        (
            "M5: an iteration costs as the area of the field",
            f"grows as (area)^{exponent:.2f}",
            _verdict([abs(exponent - 1) < LINEAR_WITHIN]),
        ),
    ]
    lines = ["| claim of the paper | measured here (its settings) | verdict |", "|---|---|---|"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def shortcuts(profile: str) -> list[str]:
    """What a profile does less of, with the full-scale value beside it."""
    sentences = []
    for kind, name in (("gaussian", "Gaussian images"), ("mnist", "digits")):
        here, full = StudySettings.of(kind, profile), StudySettings.of(kind, "paper")
        if here != full:
            sentences.append(
                f"{name}: {here.targets} targets x {here.draws} fields at SNR "
                f"{', '.join(f'{snr:g}' for snr in here.snrs)} here; the paper profile has "
                f"{full.targets} x {full.draws} at SNR {', '.join(f'{s:g}' for s in full.snrs)}, "
                f"the paper itself {PAPER_TARGETS} targets."
            )
    return sentences


def _gains(
    values: Mapping[str, Mapping[str, Any]], kind: str, metric: str = "gain"
) -> dict[float, Mapping[str, Any]]:
    prefix, suffix = f"{kind}.snr_", f".{metric}.paper_prior_over_paper_no_prior"
    return {
        float(name.removeprefix(prefix).removesuffix(suffix)): value
        for name, value in values.items()
        if name.startswith(prefix) and name.endswith(suffix)
    }


def _every(gains: Mapping[float, Mapping[str, Any]]) -> tuple[str, str]:
    sure = [gain["low"] > 0 for gain in gains.values()]
    likely = [gain["value"] > 0 for gain in gains.values()]
    return _text(gains), _verdict(sure, likely)


def _most_at_low(gains: Mapping[float, Mapping[str, Any]]) -> str:
    lowest, *others = (gains[snr] for snr in sorted(gains))
    if not others:
        return "cannot be tested here: one SNR only"
    return _verdict(
        [lowest["low"] > other["high"] for other in others],
        [lowest["value"] > other["value"] for other in others],
    )


def _text(gains: Mapping[float, Mapping[str, Any]]) -> str:
    return "; ".join(f"SNR {snr:g}: {_number(gains[snr])}" for snr in sorted(gains))


def _number(value: Mapping[str, Any]) -> str:
    return f"{value['value']:+.3f} [{value['low']:+.3f}, {value['high']:+.3f}]"


def _verdict(sure: list[bool], likely: list[bool] | None = None) -> str:
    if all(sure):
        return "holds"
    if any(sure):
        return "holds in part"
    return "not shown: intervals include zero" if all(likely or [False]) else "does not hold"
