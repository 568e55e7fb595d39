"""Downloads: a loopback server that truncates, stalls, fails, lies and ignores ranges."""

import contextlib
import errno
import hashlib
import http.server
import os
import subprocess
import sys
import threading
from dataclasses import dataclass, field

import pytest

from emlab.data import download as module
from emlab.data.download import Policy, download, stream
from emlab.errors import DataUnavailableError, EmlabError, IntegrityError

CONTENT = bytes(range(256)) * 2000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
QUICK = Policy(timeout_seconds=0.3, attempts=4, backoff_seconds=0.01, lock_seconds=5)
HALF = len(CONTENT) // 2


@dataclass
class Server:
    """What the server does with each request in turn ("good" once the list is used up)."""

    plan: list[str] = field(default_factory=list)
    ranges: list[str | None] = field(default_factory=list)
    url: str = ""
    released: threading.Event = field(default_factory=threading.Event)


@pytest.fixture
def server():
    state = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            asked = self.headers.get("Range")
            state.ranges.append(asked)
            act = state.plan.pop(0) if state.plan else "good"
            if act.isdigit():
                self.send_error(int(act))
                return
            start = int(asked[6:-1]) if asked and act != "ignores range" else 0
            body = {"wrong": b"x" * len(CONTENT), "longer": CONTENT + b"x"}.get(act, CONTENT)
            self.send_response(206 if start else 200)
            if start:
                shown = start - 1 if act == "other range" else start
                self.send_header("Content-Range", f"bytes {shown}-{len(body) - 1}/{len(body)}")
            if act != "no length":
                self.send_header("Content-Length", str(len(body) - start))
            self.end_headers()
            broken = act in ("truncates", "stalls", "no length")
            with contextlib.suppress(ConnectionError):
                self.wfile.write(body[start : max(start, HALF) if broken else None])
                self.wfile.flush()
            if act == "stalls":
                state.released.wait(10)

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    state.url = f"http://127.0.0.1:{httpd.server_port}/file.bin"
    yield state
    state.released.set()
    httpd.shutdown()
    thread.join()
    httpd.server_close()


@pytest.fixture
def target(tmp_path):
    return tmp_path / "cache" / "file.bin"


def fetch(server, target, **changes):
    arguments = {"sha256": SHA256, "size": len(CONTENT), "policy": QUICK, **changes}
    return download(server.url, target, **arguments)


def files(target):
    return sorted(p.name for p in target.parent.iterdir() if not p.name.endswith(".lock"))


def test_good_file_arrives_whole_and_is_not_fetched_twice(server, target):
    seen = []
    assert fetch(server, target, progress=seen.append) == target
    fetch(server, target)
    assert target.read_bytes() == CONTENT
    assert server.ranges == [None]
    assert sum(seen) == len(CONTENT)
    assert files(target) == ["file.bin"]


@pytest.mark.parametrize("trouble", ["truncates", "stalls", "no length"])
def test_broken_transfer_resumes_where_it_broke_off(server, target, trouble):
    server.plan = [trouble]
    fetch(server, target)
    assert target.read_bytes() == CONTENT
    assert server.ranges == [None, f"bytes={HALF}-"]


def test_interrupted_download_resumes_in_a_later_call(server, target):
    def interrupt(_):
        if target.with_name("file.bin.part").stat().st_size >= HALF:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(server, target, progress=interrupt)
    assert files(target) == ["file.bin.part"]
    received, seen = target.with_name("file.bin.part").stat().st_size, []
    fetch(server, target, progress=seen.append)
    assert target.read_bytes() == CONTENT
    assert (seen[0], sum(seen)) == (received, len(CONTENT))
    assert server.ranges == [None, f"bytes={received}-"]


def test_a_stream_is_read_as_far_as_wanted_and_goes_on_where_it_broke_off(server, target):
    def read(most):
        with stream(server.url, target, QUICK) as received:
            found = b""
            while len(found) < most and (piece := received.read(1000)):
                found += piece
            return found

    server.plan = ["truncates", "404"]
    with pytest.raises(DataUnavailableError, match="404"):
        read(HALF + 1)
    server.plan = ["ignores range"]
    assert read(len(CONTENT) + 1) == CONTENT
    assert server.ranges == [None, *[f"bytes={HALF}-"] * 2]
    assert read(1000) == CONTENT[:1000]
    assert files(target) == []


def test_server_that_ignores_ranges_starts_the_file_again(server, target):
    server.plan = ["truncates", "ignores range"]
    fetch(server, target)
    assert target.read_bytes() == CONTENT


def test_server_that_sends_another_range_is_asked_again(server, target):
    server.plan = ["truncates", "other range"]
    fetch(server, target)
    assert target.read_bytes() == CONTENT
    assert server.ranges == [None, f"bytes={HALF}-", f"bytes={HALF}-"]


def test_range_not_satisfiable_starts_the_file_again(server, target):
    server.plan = ["truncates", "416"]
    fetch(server, target)
    assert target.read_bytes() == CONTENT
    assert server.ranges[-1] is None


@pytest.mark.parametrize("code", ["500", "503", "429"])
def test_busy_server_is_asked_again(server, target, code):
    server.plan = [code, code]
    fetch(server, target)
    assert target.read_bytes() == CONTENT
    assert len(server.ranges) == 3


@pytest.mark.parametrize("code", ["404", "403", "410"])
def test_missing_file_is_an_error_at_once(server, target, code):
    server.plan = [code]
    with pytest.raises(DataUnavailableError, match=code):
        fetch(server, target)
    assert len(server.ranges) == 1
    assert files(target) == []


@pytest.mark.parametrize("lie", ["wrong", "longer"])
def test_wrong_bytes_are_refused_and_not_kept(server, target, lie):
    server.plan = [lie]
    with pytest.raises(IntegrityError, match="changed"):
        fetch(server, target)
    assert len(server.ranges) == 1
    assert files(target) == []


def test_wrong_bytes_after_a_resume_get_one_fresh_start(server, target):
    target.parent.mkdir()
    target.with_name("file.bin.part").write_bytes(b"bytes of an older version")
    fetch(server, target)
    assert target.read_bytes() == CONTENT
    assert server.ranges == ["bytes=25-", None]


def test_part_longer_than_the_file_is_discarded(server, target):
    target.parent.mkdir()
    target.with_name("file.bin.part").write_bytes(CONTENT + b"more")
    fetch(server, target)
    assert target.read_bytes() == CONTENT
    assert server.ranges == [None]


def test_complete_part_needs_no_server(server, target):
    target.parent.mkdir()
    target.with_name("file.bin.part").write_bytes(CONTENT)
    fetch(server, target)
    assert target.read_bytes() == CONTENT
    assert server.ranges == []


def test_wrong_file_in_the_cache_is_replaced(server, target):
    target.parent.mkdir()
    target.write_bytes(b"rotten")
    fetch(server, target)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("trouble", ["stalls", "503"])
def test_gives_up_after_bounded_attempts_and_keeps_the_part(server, target, trouble):
    server.plan = ["truncates"] + [trouble] * 10
    with pytest.raises(DataUnavailableError, match="gave up after 4 attempts"):
        fetch(server, target)
    assert len(server.ranges) == 4
    assert files(target) == ["file.bin.part"]


def test_pauses_double(server, target, monkeypatch):
    pauses = []
    monkeypatch.setattr(module.time, "sleep", pauses.append)
    server.plan = ["503"] * 4
    with pytest.raises(DataUnavailableError):
        fetch(server, target)
    assert pauses == [0.01, 0.02, 0.04]


def test_nobody_listening_and_no_name_server(target, monkeypatch):
    with pytest.raises(DataUnavailableError, match="no connection"):
        download("http://127.0.0.1:9/file.bin", target, SHA256, 9, QUICK)
    with pytest.raises(DataUnavailableError, match="no network"):
        download("http://no-such-host.invalid/file.bin", target, SHA256, 9, QUICK)
    with pytest.raises(DataUnavailableError, match="http and https"):
        download("file:///etc/hostname", target, SHA256, 9, QUICK)


def test_a_host_that_was_not_reached_is_not_asked_again_for_a_while(target, monkeypatch):
    asked, now = [], [100.0]
    monkeypatch.setattr(module, "_unreached", {})
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])

    def refuse(request, timeout):
        asked.append(request.full_url)
        raise module.urllib.error.URLError(ConnectionRefusedError("refused"))

    monkeypatch.setattr(module.urllib.request, "urlopen", refuse)
    with pytest.raises(DataUnavailableError, match="no connection"):
        download("http://one.example/a", target, policy=QUICK)
    assert len(asked) == QUICK.attempts
    with pytest.raises(DataUnavailableError, match="example could not be reached a moment ago"):
        download("http://one.example/b", target, policy=QUICK)
    assert len(asked) == QUICK.attempts
    with pytest.raises(DataUnavailableError, match="no connection"):
        download("http://two.example/a", target, policy=QUICK)
    now[0] += module.UNREACHED_SECONDS
    with pytest.raises(DataUnavailableError, match="no connection"):
        download("http://one.example/b", target, policy=QUICK)
    assert len(asked) == 3 * QUICK.attempts


def test_full_disk_is_one_clear_error(server, target, monkeypatch):
    class Full:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def write(self, _):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module, "open", lambda *_: Full(), raising=False)
    with pytest.raises(EmlabError, match="no space left") as caught:
        fetch(server, target)
    assert str(target.parent) in str(caught.value)
    assert not isinstance(caught.value, DataUnavailableError)


def test_two_processes_share_one_download(server, target):
    code = (
        "import sys; from pathlib import Path; from emlab.data.download import download\n"
        "download(sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))"
    )
    command = [sys.executable, "-c", code, server.url, str(target), SHA256, str(len(CONTENT))]
    processes = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert target.read_bytes() == CONTENT
    assert server.ranges == [None]


def test_waiting_for_another_process_ends(server, target):
    import filelock

    target.parent.mkdir()
    patience = Policy(lock_seconds=0.05)
    with (
        filelock.FileLock(target.with_name(".file.bin.lock")),
        pytest.raises(DataUnavailableError, match="another process"),
    ):
        fetch(server, target, policy=patience)
    assert server.ranges == []
