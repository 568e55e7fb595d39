"""Run chapters headless: papermill, a controlled environment, and a check of the numbers.

``<out>/<slug>/`` holds after a run: ``<slug>.ipynb`` (executed), ``metrics.json``, ``run.log`` and
``fingerprint.json``; a failed run leaves ``<slug>.failed.ipynb``, with the error in it, instead of
the executed notebook. ``<out>/status.json`` tells how every chapter did.
"""

from emlab.app.runner.execution import run_all, run_chapter
from emlab.app.runner.lookup import chapter_path, chapters
from emlab.app.runner.status import ChapterResult, exit_code, format_status

__all__ = [
    "ChapterResult",
    "chapter_path",
    "chapters",
    "exit_code",
    "format_status",
    "run_all",
    "run_chapter",
]
