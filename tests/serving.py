"""A server of a folder on this machine, which may go wrong as real ones do."""

from __future__ import annotations

import contextlib
import http.server
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path


class Server(http.server.SimpleHTTPRequestHandler):
    """Serves a folder and ranges of its files; ``fault`` = [end of a name, kind] until taken away.

    Kinds: "truncate" and "stall" after half of what was asked for, "wrong" bytes, or a number.
    """

    fault: tuple[str, str] | None = None
    asked: list[tuple[str, str | None]] = []  # noqa: RUF012
    over = threading.Event()

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            return super().do_GET()
        asked = self.headers.get("Range")
        self.asked.append((path.name, asked))
        name, kind = self.fault or ("", "")
        kind = kind if path.name.endswith(name) else ""
        if kind.isdigit():
            return self.send_error(int(kind))
        start = int(asked[6:-1]) if asked else 0
        content = path.read_bytes()
        body = content[start:]
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", self.guess_type(path))
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            half = body[: len(body) // 2] if kind in ("truncate", "stall") else body
            self.wfile.write(b"<html>" * (len(body) // 6 + 1) if kind == "wrong" else half)
            self.wfile.flush()
        if kind == "stall":
            self.over.wait(10)


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[tuple[type[Server], str]]:
    """Yield the handler, which says what was asked and takes a fault, and the address."""
    handler = type("Handler", (Server,), {"asked": [], "over": threading.Event()})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=folder))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield handler, f"http://127.0.0.1:{server.server_port}"
    handler.over.set()
    server.shutdown()
    thread.join()
    server.server_close()
