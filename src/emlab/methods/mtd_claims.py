"""The multi-target detection paper's claims, beside what a run measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from emlab.methods.mtd_study import StudySettings

PAPER_TARGETS = 10


def claims(values: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown table: claim, measured here, verdict; from the values of a metrics.json."""
    gaussian, mnist = _gains(values, "gaussian"), _gains(values, "mnist")
    linear = values["schedule.gain_of_linear_over_best_other"]
    growth = values["growth.seconds_per_area_ratio"]["value"]
    rows = [
        ("M1: Gaussian images, the prior helps at every SNR", *_every(gaussian)),
        ("M1: and most at low SNR", _text(gaussian), _verdict([_falls(gaussian)])),
        ("M2: digits, the prior helps at every SNR", *_every(mnist)),
        (
            "M3: the ten digits at SNR 1 are visibly better with the prior",
            *_every({1.0: mnist[max(mnist)]}),
        ),
        (
            "M4: a weight that grows linearly works best on digits",
            f"gain over the better constant weight {_number(linear)}",
            _verdict([linear["low"] > 0], [linear["value"] > 0]),
        ),
        (
            "M5: an iteration costs as the area of the field",
            f"time per area varies by a factor of {growth:.2f}",
            _verdict([growth < 1.5]),
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


def _gains(values: Mapping[str, Mapping[str, Any]], kind: str) -> dict[float, Mapping[str, Any]]:
    prefix = f"{kind}.snr_"
    names = [name for name in values if name.startswith(prefix) and ".gain.paper_prior" in name]
    return {float(name[len(prefix) :].split(".gain.")[0]): values[name] for name in names}


def _every(gains: Mapping[float, Mapping[str, Any]]) -> tuple[str, str]:
    sure = [gain["low"] > 0 for gain in gains.values()]
    likely = [gain["value"] > 0 for gain in gains.values()]
    return _text(gains), _verdict(sure, likely)


def _falls(gains: Mapping[float, Mapping[str, Any]]) -> bool:
    ordered = [gains[snr]["value"] for snr in sorted(gains)]
    return ordered[0] == max(ordered)


def _text(gains: Mapping[float, Mapping[str, Any]]) -> str:
    return "; ".join(f"SNR {snr:g}: {_number(gains[snr])}" for snr in sorted(gains))


def _number(value: Mapping[str, Any]) -> str:
    return f"{value['value']:+.3f} [{value['low']:+.3f}, {value['high']:+.3f}]"


def _verdict(sure: list[bool], likely: list[bool] | None = None) -> str:
    if all(sure):
        return "holds"
    return "holds in part" if any(sure) or all(likely or [False]) else "does not hold"
