"""What chapter 06 shows as recorded: Topaz's picks, and the row of BM3D."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from emlab import chapters
from emlab.chapters.compare.cases import SLUG, empty_fields, methods, thresholds
from emlab.chapters.compare.study import audit, judge
from emlab.chapters.tsm.cases import classical, study_real
from emlab.chapters.tsm.study import picks_of, plain_picks, rows_of
from emlab.data.micrographs import apoferritin_micrograph
from emlab.methods.cellpose3 import load_segmenter
from emlab.recipes.particles import RESTORER, SEGMENTER, SQUARES
from emlab.recipes.tsm import frames
from emlab.recorded import Recording
from emlab.settings import tuned

_REAL = ("raw", "generalist", "tsm", "squares", "cellpose3")


def _measure(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Rows of the test micrographs; picks of fields without particles and of apoferritin."""
    size, seed, segmenter = settings["size"], settings["seed"], load_segmenter(SEGMENTER)
    test = [frame.micrograph for frame in frames("test", settings["micrographs"], size)]
    every = classical(["bm3d"]) | methods("cpu", "cpu", seed)
    some = {name: every[name] for name in settings["rows"]}
    judged = judge(test, some, thresholds(), segmenter)
    found: dict[str, Any] = {"rows": rows_of(judged)}
    for name in {"bm3d"} & found["rows"].keys():  # no run makes it again
        places = plain_picks({name: judged.own[name].picked})[name]["picks"]
        found["rows"][name] |= {"rings": judged.scores[name]["rings"].tolist(), "own": places}
    if settings["empty"]:
        nothing = audit(empty_fields(settings["empty"], size, seed), some, judged, segmenter)
        found["nothing"] = {
            kind: {name: one["topaz"].astype(int).tolist() for name, one in study.scores.items()}
            for kind, study in nothing.studies.items()
        }
        real = apoferritin_micrograph("average")
        own = methods("cpu", "cpu", seed, real.pixel_size_angstrom)
        study = study_real(real, {name: own[name] for name in _REAL}, thresholds())
        rows = plain_picks({name: picks.picked for name, picks in study.picks.items()})
        found["apoferritin"] = {name: row["picks"] for name, row in rows.items()}
    return found


_HERE = chapters.settings(SLUG, "cpu")
ROWS = ("raw", "gaussian", "wiener", "generalist", "tsm", "squares", "cellpose3")
_KEPT = {key: _HERE[key] for key in ("micrographs", "size")} | {"seed": 0}
_KEPT |= {"thresholds": thresholds(), "generalist": tuned("compare")["generalist"]}
_ASKED = {**_KEPT, "rows": list(ROWS), "empty": _HERE["empty"]}
_NETWORKS = ("generalist_depth", "tsm_tsm", SEGMENTER, SQUARES, RESTORER)
PICKS = Recording(SLUG, "picks", _measure, _ASKED, _NETWORKS)
BM3D = Recording(SLUG, "bm3d", _measure, {**_KEPT, "rows": ["bm3d"], "empty": 0}, (SEGMENTER,))


def kept(here: Mapping[str, Any], seed: int) -> Mapping[str, Any]:
    """Recorded ``rows``, ``nothing`` and ``apoferritin``, if they are of such a run; else empty."""
    asked = {**here, "seed": seed}
    same = all(
        asked[key] == PICKS.settings[key] for key in ("micrographs", "size", "empty", "seed")
    )
    if not same or PICKS.stale or BM3D.stale:
        return {}
    rows = [(one, one.values["rows"]) for one in (PICKS, BM3D)]
    real = {name: picks_of(places) for name, places in PICKS.values["apoferritin"].items()}
    return {**PICKS.values, "rows": rows, "apoferritin": real}
