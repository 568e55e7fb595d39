"""Image files that are damaged or of another kind: what to say, and what not even to try."""

from __future__ import annotations

import struct
from pathlib import Path

from emlab.errors import InputError

_MRC_HEADER = 1024
_MRC_MODES = {0, 1, 2, 4, 6, 12, 101}
_COMPRESSED = (b"\x1f\x8b", b"BZ")


def check_mrc(path: Path) -> None:
    """Refuse an extended header longer than the file, which mrcfile would make room for.

    Words are read in the byte order that mrcfile takes: that of the machine stamp, or the other
    one if only that gives a mode that exists.

    Raises
    ------
    InputError
        The header promises more bytes than there are.
    """
    with open(path, "rb") as stream:
        header = stream.read(_MRC_HEADER)
    if len(header) < _MRC_HEADER or header.startswith(_COMPRESSED):
        return
    order, other = "><" if header[212:214] == b"\x11\x11" else "<>"
    if _word(header, 12, order) not in _MRC_MODES and _word(header, 12, other) in _MRC_MODES:
        order = other
    extended = _word(header, 92, order)
    if extended > path.stat().st_size:
        raise InputError(
            f"{path} is damaged or truncated: its header promises {extended} more bytes of header; "
            f"copy or download it again"
        )


def unreadable(path: Path, problem: Exception, kind: str = "") -> InputError:
    """Return what to tell the user when a library could not read a file."""
    reason = str(problem).strip().split("\n")[0] or type(problem).__name__
    advice = "it may be truncated or of another type, copy or download it again"
    if "imagecodecs" in reason:
        advice = "install imagecodecs, or save the file without compression"
    elif "pickle" in reason or "Python objects" in reason:
        reason = "it holds pickled objects, which can run programs"
        advice = "save plain numbers, for example with numpy.save(..., allow_pickle=False)"
    return InputError(f"{path} cannot be read{kind}: {reason}; {advice}")


def _word(header: bytes, offset: int, order: str) -> int:
    return struct.unpack_from(f"{order}i", header, offset)[0]
