"""Download a file: resumes, retries, gives up in finite time, and never leaves wrong bytes behind.

The bytes go to ``<name>.part`` beside the target. A broken transfer keeps them and the next try, in
this process or a later one, asks the server for the rest. Only a file with the promised sha256 is
renamed to its target, and a lock keeps two processes from writing the same part. What is read while
it arrives (`stream`) goes the same way.
"""

from __future__ import annotations

import contextlib
import gzip
import http.client
import os
import socket
import tarfile
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from emlab import __version__
from emlab.data.registry import hash_file
from emlab.errors import DataUnavailableError, IntegrityError
from emlab.runtime import disk_error

CHUNK_BYTES = 1 << 16
BROKEN = (tarfile.TarError, zipfile.BadZipFile, zlib.error, gzip.BadGzipFile, EOFError)
TRY_AGAIN = {408, 425, 429, 500, 502, 503, 504}
UNREACHED_SECONDS = 300.0  # so long a host that could not be reached is not asked again
_unreached: dict[str, float] = {}


@dataclass(frozen=True)
class Policy:
    """How patient a download is.

    Attributes
    ----------
    timeout_seconds
        Longest silence of the server that is tolerated.
    attempts
        Number of tries; each resumes where the last one broke off.
    backoff_seconds
        Pause before the second try; it doubles with each further one.
    lock_seconds
        Longest wait for another process that downloads the same file.
    """

    timeout_seconds: float = 30.0  #: longest silence of the server that is tolerated
    attempts: int = 5  #: each resumes where the last one broke off
    backoff_seconds: float = 1.0  #: pause before the second try; doubles with each further one
    lock_seconds: float = 1800.0  #: longest wait for another process that makes the same file


class _Broken(Exception):
    """A transfer that may succeed when tried again."""


class _NoConnection(_Broken):
    """The host was not reached at all."""


Progress = Callable[[int], object]
Counts = Generator[int, None, None]


def byte_bar(total: int | None = None) -> tqdm:
    """Return a bar of the bytes that come, whose `update` is a `Progress`; shown on terminals."""
    return tqdm(total=total, unit="B", unit_scale=True, disable=None, leave=False)


def download(
    url: str,
    target: Path,
    sha256: str = "",
    size: int = 0,
    policy: Policy | None = None,
    progress: Progress | None = None,
) -> Path:
    """Fetch ``url`` to ``target``; return at once if the right bytes are already there.

    Parameters
    ----------
    sha256, size
        What the registry promises: hash and number of bytes. Without them (a piece of a file whose
        pixels are checked once it is built) the length that the server announces has to arrive.
    progress
        Called with the number of bytes that came: first those of an earlier try, then each piece.

    Raises
    ------
    DataUnavailableError
        No network, no such file, or too many broken transfers; the part is kept.
    IntegrityError
        The server's file is not the promised one; nothing is kept.
    EmlabError
        The disk is full, or the folder cannot be written to.
    """
    policy = policy or Policy()
    with alone(target, policy) as part:
        if not (target.is_file() and sha256 in ("", hash_file(target))):
            with contextlib.closing(_pieces(url, part, sha256, size, policy)) as pieces:
                for count in pieces:
                    if progress:
                        progress(count)
            with open(part, "rb") as whole:
                os.fsync(whole.fileno())
            os.replace(part, target)
    return target


@contextlib.contextmanager
def stream(
    url: str, target: Path, policy: Policy, progress: Progress | None = None
) -> Iterator[Arriving]:
    """Read an archive while it arrives, as far as is wanted; nothing is published to ``target``.

    A part is kept as in :func:`download`, with which it shares parameters and errors, and the next
    try first reads what has come. It is removed after the block, and where it proves `BROKEN`.
    """
    with alone(target, policy) as part:
        try:
            with contextlib.closing(_pieces(url, part, "", 0, policy)) as pieces:
                yield Arriving(part, pieces, progress)
        except BROKEN as problem:
            part.unlink()
            raise IntegrityError(
                f"{url}: what comes is no such archive ({problem}); try again, and if that does "
                f"not help tell the emlab authors"
            ) from problem
        part.unlink(missing_ok=True)


@dataclass
class Arriving:
    """The bytes of a part, waiting for more where it ends."""

    part: Path
    pieces: Iterator[int]
    progress: Progress | None
    place: int = 0

    def read(self, most: int) -> bytes:
        """Return some bytes, none only at the end."""
        while not self.part.is_file() or self.part.stat().st_size <= self.place:
            if not (count := next(self.pieces, 0)):
                return b""
            if self.progress:
                self.progress(count)
        with open(self.part, "rb") as received:  # a fresh start may have replaced the file
            received.seek(self.place)
            content = received.read(most)
        self.place += len(content)
        return content


@contextlib.contextmanager
def alone(target: Path, policy: Policy) -> Iterator[Path]:
    """Yield the part of a target while no other process makes it; disk trouble is one error."""
    import filelock

    lock = filelock.FileLock(target.with_name(f".{target.name}.lock"), timeout=policy.lock_seconds)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with lock:
            yield target.with_name(f"{target.name}.part")
    except filelock.Timeout as problem:
        raise DataUnavailableError(
            f"another process has been making {target} for {policy.lock_seconds:g} s; "
            f"end it or try again later"
        ) from problem
    except OSError as problem:
        raise disk_error(problem, target) from problem


def _pieces(url: str, part: Path, sha256: str, size: int, policy: Policy) -> Counts:
    """Append to ``part`` until it is whole, trying again; yields how many bytes each piece adds."""
    reason = ""
    if not url.startswith(("http://", "https://")):
        raise DataUnavailableError(f"cannot download {url}: only http and https addresses work")
    host = urllib.parse.urlsplit(url).netloc
    if time.monotonic() - _unreached.get(host, -UNREACHED_SECONDS) < UNREACHED_SECONDS:
        raise DataUnavailableError(f"{url}: {host} could not be reached a moment ago")
    if part.is_file() and (earlier := part.stat().st_size):
        yield earlier
    for attempt in range(policy.attempts):
        if attempt:
            time.sleep(policy.backoff_seconds * 2 ** (attempt - 1))
        resumed = part.is_file() and part.stat().st_size > 0
        try:
            yield from _receive(url, part, size, policy.timeout_seconds)
        except _Broken as problem:
            reason = str(problem)
            if isinstance(problem, _NoConnection) and attempt == policy.attempts - 1:
                _unreached[host] = time.monotonic()
            continue
        found = hash_file(part) if sha256 else ""
        if found == sha256:
            return
        part.unlink()
        reason = f"the server sends a file with sha256 {found[:16]}..., not {sha256[:16]}..."
        if not resumed:  # a resumed file may be of two versions and deserves one fresh start
            raise IntegrityError(
                f"{url}: {reason}; its content has changed, tell the emlab authors"
            )
    raise DataUnavailableError(
        f"{url}: gave up after {policy.attempts} attempts ({reason}); try again later, what was "
        f"received is kept and the download resumes"
    )


def _receive(url: str, part: Path, size: int, timeout: float) -> Counts:
    """Append to ``part`` what it lacks; `_Broken` if that may be worth another try."""
    start = part.stat().st_size if part.is_file() else 0
    if size and start > size:
        part.unlink()
        start = 0
    if size and start == size:
        return
    headers = {"User-Agent": f"emlab/{__version__}"}
    headers |= {"Range": f"bytes={start}-"} if start else {}
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            resumes = response.status == 206
            sent = response.headers.get("Content-Range", "")
            if resumes and not sent.startswith(f"bytes {start}-"):
                raise _Broken("the server sent another range than was asked for")
            yield from _store(response, part, start if resumes else 0, size)
    except urllib.error.HTTPError as problem:
        answer = f"the server answers {problem.code} {problem.reason}"
        if problem.code == 416:
            part.unlink(missing_ok=True)
        elif problem.code not in TRY_AGAIN:
            raise DataUnavailableError(f"{url}: {answer}") from problem
        raise _Broken(answer) from problem
    except urllib.error.URLError as problem:
        if isinstance(problem.reason, socket.gaierror):
            raise DataUnavailableError(f"{url}: no network ({problem.reason})") from problem
        raise _NoConnection(f"no connection: {problem.reason}") from problem
    except TimeoutError as problem:
        raise _Broken(f"the server was silent for {timeout:g} s") from problem
    except (http.client.HTTPException, ConnectionError) as problem:
        raise _Broken(f"the connection broke: {problem}") from problem


def _store(response: http.client.HTTPResponse, part: Path, start: int, size: int) -> Counts:
    present = start
    size = size or start + int(response.headers.get("Content-Length") or 0)
    with open(part, "ab" if start else "wb") as stream:
        # read1 hands over what has come; read would wait for a whole piece and lose it in a stall
        while piece := response.read1(CHUNK_BYTES):
            present += len(piece)
            if size and present > size:
                break
            stream.write(piece)
            stream.flush()
            yield len(piece)
    if size and present > size:
        part.unlink()
        raise IntegrityError(
            f"{response.url}: the server sends more than the {size} bytes that the registry "
            f"promises; its content has changed, tell the emlab authors"
        )
    if present < size:
        raise _Broken(f"the connection closed after {present} of {size} bytes")
