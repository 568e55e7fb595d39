"""``python -m tools.lock``: the pins of constraints.txt with hashes, into requirements.lock.

pip says which files it would take and their hashes (its report of a dry run); addresses are left
out. The files are those of this system and Python: run it where the Dockerfile runs, on Linux.
"""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements.lock"
CONSTRAINTS = ROOT / "constraints.txt"
LEFT_OUT = ("torch",)
HEADER = f"""\
# Made by `python -m tools.lock` from constraints.txt, the one list of pins, for {{place}}.
# Not here: {", ".join(LEFT_OUT)}, whose builds for CPU and CUDA have one version and many hashes.
# Use: pip install --require-hashes --no-deps -r requirements.lock
# and then torch, at the version of constraints.txt.
"""


def pins(text: str) -> dict[str, str]:
    """Return versions by normalised name of lines such as ``numpy==2.4.6``."""
    found = re.findall(r"^([\w.-]+)==([\w.]+)", text, re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}


def hashes(wanted: dict[str, str]) -> dict[str, str]:
    """Return the SHA-256 by name of the file that pip would install for each pin."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--dry-run", "--ignore-installed", "--no-deps", "--report", "-"]
    command += [f"{name}=={version}" for name, version in wanted.items()]
    report = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    found = {}
    for item in json.loads(report)["install"]:
        (name,) = pins(f"{item['metadata']['name']}=={item['metadata']['version']}")
        found[name] = item["download_info"]["archive_info"]["hashes"]["sha256"]
    return found


def main() -> int:
    """Write the lock."""
    all_pins = pins(CONSTRAINTS.read_text(encoding="utf-8"))
    wanted = {name: version for name, version in all_pins.items() if name not in LEFT_OUT}
    place = f"{platform.system()} {platform.machine()} and Python {sys.version_info.major}"
    text = HEADER.format(place=f"{place}.{sys.version_info.minor}")
    found = hashes(wanted)
    for name, version in wanted.items():
        text += f"{name}=={version} --hash=sha256:{found[name]}\n"
    LOCK.write_text(text, encoding="utf-8")
    print(f"{LOCK.name}: {len(wanted)} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
