"""A hub of models on this machine, as `hf download` asks one; nothing of it leaves loopback."""

import hashlib
import json
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "c0ffee" + "0" * 34


class HubServer:
    """Serves one model at one commit, and remembers which of its files were fetched.

    With a `token` the model is gated, as the hub gates it.
    """

    def __init__(self, name: str, files: Mapping[str, bytes], token: str | None = None) -> None:
        self.name = name
        self.token = token
        self.files = dict(files)
        self.fetched: set[str] = set()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                hub._serve(self, with_body=False)

            def do_GET(self) -> None:
                hub._serve(self, with_body=True)

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(
            target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def _serve(self, handler: BaseHTTPRequestHandler, *, with_body: bool) -> None:
        path = handler.path.partition("?")[0]
        about = f"/api/models/{self.name}/"
        stored = f"/{self.name}/resolve/"
        headers = {"X-Repo-Commit": COMMIT}
        if path.startswith(about + "revision/"):
            siblings = [{"rfilename": file, "size": len(data)} for file, data in self.files.items()]
            data = json.dumps({"id": self.name, "sha": COMMIT, "siblings": siblings}).encode()
        elif path.startswith(about + "tree/"):
            data = json.dumps(
                [
                    {"type": "file", "path": path, "size": len(data), "oid": _digest(data)}
                    for path, data in self.files.items()
                ]
            ).encode()
        elif path.startswith(stored):
            file = path.removeprefix(stored).partition("/")[2]
            data = self.files[file]
            headers["ETag"] = f'"{_digest(data)}"'
            if with_body:
                self.fetched.add(file)
        else:
            data = b"{}"
        is_let_in = self.token in (None, handler.headers.get("Authorization", "")[len("Bearer ") :])
        if not is_let_in:
            headers, data = {"X-Error-Code": "GatedRepo"}, b"{}"
        handler.send_response(200 if is_let_in else 403)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        if with_body:
            handler.wfile.write(data)


def _digest(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()
