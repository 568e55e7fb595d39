"""Fetching: killed in the middle, or by two processes at once, a file arrives once and whole."""

from __future__ import annotations

import hashlib
import http.server
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import killing
import numpy as np
import pytest
from killing import environment, finish, kill_at, run, start

FETCHING = """
import sys
from pathlib import Path
from emlab.data import registry
registry.REGISTRY = Path(sys.argv[1])
from emlab.app.cli import main
sys.exit(main(sys.argv[2:]))
"""


@dataclass
class Source:
    """A server of one file that falls silent in the middle of the first answers."""

    content: bytes
    silent: int = 0
    asked: list[str | None] = field(default_factory=list)
    url: str = ""
    over: threading.Event = field(default_factory=threading.Event)


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Source]:
    np.save(tmp_path / "served.npy", np.arange(300_000))
    state = Source((tmp_path / "served.npy").read_bytes())

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            state.asked.append(asked)
            first = int(asked[6:-1]) if asked else 0
            total = len(state.content)
            self.send_response(206 if asked else 200)
            if asked:
                self.send_header("Content-Range", f"bytes {first}-{total - 1}/{total}")
            self.send_header("Content-Length", str(total - first))
            self.end_headers()
            if len(state.asked) > state.silent:
                self.wfile.write(state.content[first:])
                return
            self.wfile.write(state.content[first : max(first, total // 2)])
            self.wfile.flush()
            state.over.wait(killing.PATIENCE)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}/sample.npy"
    yield state
    state.over.set()
    server.shutdown()
    thread.join()
    server.server_close()


def fetching(tmp_path: Path, source: Source) -> list[object]:
    """The command that fetches the file, as a data set called sample."""
    registry = tmp_path / "registry.toml"
    registry.write_text(
        '[sample]\ntitle = "t"\nrole = "demo"\nlicence = "l"\ncitation = "c"\nsource = "s"\n'
        f'[[sample.files]]\npath = "sets/sample.npy"\nsize = {len(source.content)}\n'
        f'sha256 = "{hashlib.sha256(source.content).hexdigest()}"\nurl = "{source.url}"\n'
        'key = "numbers"\n'
    )
    return [sys.executable, "-c", FETCHING, registry, "data", "fetch", "sample"]


def test_fetching_goes_on_after_the_last_byte(tmp_path: Path, source: Source) -> None:
    source.silent, cache = 1, tmp_path / "cache"
    command, options = fetching(tmp_path, source), {"env": environment(EMLAB_CACHE=str(cache))}
    part, half = cache / "sets" / "sample.npy.part", len(source.content) // 2
    kill_at(start(command, **options), lambda: part.exists() and part.stat().st_size == half)
    done = run(command, **options)
    assert done.returncode == 0, done.stderr
    assert source.asked == [None, f"bytes={half}-"]
    assert (cache / "sets" / "sample.npy").read_bytes() == source.content
    assert not part.exists()


def test_two_processes_that_fetch_the_same_share_one_download(
    tmp_path: Path, source: Source
) -> None:
    options = {"env": environment(EMLAB_CACHE=str(tmp_path / "cache"))}
    pair = [start(fetching(tmp_path, source), **options) for _ in range(2)]
    assert [finish(process).returncode for process in pair] == [0, 0]
    assert source.asked == [None]
    assert (tmp_path / "cache" / "sets" / "sample.npy").read_bytes() == source.content


def test_a_killed_fetch_does_not_keep_the_other_waiting(tmp_path: Path, source: Source) -> None:
    source.silent, cache = 1, tmp_path / "cache"
    command, options = fetching(tmp_path, source), {"env": environment(EMLAB_CACHE=str(cache))}
    part = cache / "sets" / "sample.npy.part"
    first = start(command, **options)
    killing.wait_until(part.exists)
    second = start(command, **options)
    kill_at(first, lambda: part.stat().st_size > 0)
    assert finish(second).returncode == 0
    assert (cache / "sets" / "sample.npy").read_bytes() == source.content
