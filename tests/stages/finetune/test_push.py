"""Sending an artifact to a hub on this machine, by the real client in a process of its own."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import RemoteError
from pipeline.settings import FinetuneConfig
from stages.finetune.checks import push_problem
from stages.finetune.push import push as push_here

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])

TOKEN = "hf_notARealToken0123456789abcdef"
ROOT = Path(__file__).resolve().parents[3]
SCRIPT = """
import logging, sys
from pathlib import Path

logging.basicConfig(level=logging.DEBUG)
from pipeline.settings import FinetuneConfig
from stages.finetune.push import push

config = FinetuneConfig(push_to_hub="someone/mri", allow_upload=True)
print("at", push(config, Path(sys.argv[1])))
"""


class Hub:
    """The part of the hub's protocol that an upload speaks; `refuses` quotes the header it got."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, dict[str, Any]]] = []  # method, path, headers
        self.made: dict[str, Any] = {}
        self.files: dict[str, bytes] = {}
        self.large: dict[str, bytes] = {}
        self.refuses = False
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                size = int(self.headers.get("Content-Length") or 0)
                hub.answer(self, self.rfile.read(size))

            do_POST = do_PUT = do_GET = do_HEAD = answer

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}"

    def answer(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        path = handler.path.partition("?")[0]
        self.calls.append((handler.command, path, dict(handler.headers.items())))
        status = 200
        reply: dict[str, Any] = {}
        if self.refuses:
            status = 403
            reply = {"error": f"not allowed with {handler.headers['Authorization']}"}
        elif path == "/api/repos/create":
            self.made = json.loads(body)
            reply = {"url": f"{self.url}/someone/mri", "name": "someone/mri"}
        elif path == "/api/validate-yaml":
            reply = {"errors": [], "warnings": []}
        elif "/preupload/" in path:
            asked = json.loads(body)["files"]
            reply = {
                "files": [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if "safetensors" in file["path"] else "regular",
                        "shouldIgnore": False,
                        "oid": None,
                    }
                    for file in asked
                ]
            }
        elif path.endswith("/objects/batch"):
            objects = json.loads(body)["objects"]
            reply = {
                "transfer": "basic",
                "objects": [
                    {**o, "actions": {"upload": {"href": f"{self.url}/large/{o['oid']}"}}}
                    for o in objects
                ],
            }
        elif path.startswith("/large/"):
            self.large[path.rpartition("/")[2]] = body
        elif "/commit/" in path:
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    self.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    self.files[value["path"]] = self.large[value["oid"]]
            reply = {"commitUrl": f"{self.url}/someone/mri/commit/abc", "commitOid": "abc"}
        else:
            status, reply = 404, {"error": f"this hub knows no {path}"}
        data = json.dumps(reply).encode()
        handler.send_response(status)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(data)


@pytest.fixture
def hub() -> Iterator[Hub]:
    running = Hub()
    yield running
    running.http.shutdown()
    running.http.server_close()


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    folder = tmp_path / "0123456789ab"
    for name, content in {
        "pytorch_lora_weights.safetensors": b"weights",
        "README.md": b"---\nlibrary_name: diffusers\n---\n# Card\n",
        "kohya/lora.safetensors": b"weights too",
        "manifest.json": b"{}",
        "records.jsonl": b"{}",
        "checkpoints/step-000002/pytorch_lora_weights.safetensors": b"older",
        "tensorboard/events": b"events",
        "samples/step-000002.png": b"png",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def push(hub: Hub, folder: Path) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if "PROXY" not in k.upper()}
    kept.pop("HF_HUB_OFFLINE", None)
    given = {
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",  # another protocol, and another server
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder)],
        env=kept | given,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_what_may_be_passed_on_goes_to_a_private_repository(hub: Hub, artifact: Path) -> None:
    done = push(hub, artifact)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"at {hub.url}/someone/mri/commit/abc" in done.stdout
    assert (hub.made["organization"], hub.made["name"]) == ("someone", "mri")
    assert hub.made["visibility"] == "private"
    assert set(hub.files) == {
        *("pytorch_lora_weights.safetensors", "kohya/lora.safetensors", "README.md"),
        "samples/step-000002.png",
    }
    assert hub.files["pytorch_lora_weights.safetensors"] == b"weights"
    weights = {hashlib.sha256(content).hexdigest() for content in (b"weights", b"weights too")}
    assert set(hub.large) == weights
    sent = [{k.lower(): v for k, v in headers.items()} for *_, headers in hub.calls]
    assert any(headers.get("authorization") == f"Bearer {TOKEN}" for headers in sent)
    assert TOKEN not in done.stdout + done.stderr
    assert all(TOKEN.encode() not in p.read_bytes() for p in artifact.rglob("*") if p.is_file())


def test_a_refusal_names_the_repository_and_never_the_token(hub: Hub, artifact: Path) -> None:
    hub.refuses = True
    done = push(hub, artifact)
    assert done.returncode == 1
    assert "RemoteError: finetune.push_to_hub: 'someone/mri' could not be written" in done.stderr
    assert "0123456789ab is whole; run the same command again" in done.stderr
    assert "Traceback" in done.stderr
    assert TOKEN not in done.stdout + done.stderr
    assert "not allowed with Bearer ***" in done.stderr  # the server quoted it


def test_what_keeps_it_from_being_sent_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = FinetuneConfig(push_to_hub="someone/mri", allow_upload=True)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert push_problem(FinetuneConfig()) is None
    assert "'someone/mri', but the environment variable 'HF_TOKEN' is not" in str(
        push_problem(config)
    )
    with pytest.raises(RemoteError, match=r"'HF_TOKEN' is not set or empty; export"):
        push_here(config, tmp_path)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert push_problem(config) is None
    unasked = FinetuneConfig(push_to_hub="someone/mri")
    assert "set finetune.allow_upload: true" in str(push_problem(unasked))
    with pytest.raises(RemoteError, match="may not leave this machine"):
        push_here(unasked, tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE is set; unset it" in str(push_problem(config))
