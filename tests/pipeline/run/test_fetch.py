"""`mrisynth fetch`, as a user runs it, against servers on this machine."""

import hashlib
import io
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.contracts import Licence
from pipeline.downloads import HubFiles, WebFile
from pipeline.errors import DiskError, RemoteError, UsageError
from pipeline.run import fetch
from pipeline.source_code import ROOT
from tests.components.hub import COMMIT, HubServer

HUB_ID, TOKEN = "someone/some-model", "hf_notatoken"
RAIL = Licence(part="Some Model", terms="Open RAIL; no medical advice.")
KAGGLE_PORT = 7777  # the one that kagglehub's test environment asks

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])


class FileServer:
    """Serves bodies by path; remembers what was asked, and cuts a body short where told to."""

    def __init__(self, bodies: Mapping[str, bytes], port: int = 0) -> None:
        self.bodies, self.requests = dict(bodies), list[tuple[str, str | None]]()
        self.cut_at: int | None = None
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.answer(with_body=False)

            def do_GET(self) -> None:
                self.answer(with_body=True)

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.answer(with_body=True)

            def answer(self, *, with_body: bool) -> None:
                path, span = self.path.partition("?")[0], self.headers.get("Range")
                server.requests.append((path, span))
                body = server.bodies.get(path)
                self.send_response(404 if body is None else 206 if span else 200)
                body = (body or b"")[int((span or "bytes=0-")[6:-1]) :]
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Accept-Ranges", "bytes")
                kind = "application/json" if body[:1] == b"{" else "application/octet-stream"
                self.send_header("Content-Type", kind)
                self.end_headers()
                if with_body:
                    cut, server.cut_at = server.cut_at if len(body) > 1000 else None, None
                    self.wfile.write(body[:cut])

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}"

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def serve() -> Iterator[Callable[..., FileServer]]:
    running: list[FileServer] = []

    def start(bodies: Mapping[str, bytes], port: int = 0) -> FileServer:
        running.append(FileServer(bodies, port))
        return running[-1]

    yield start
    for server in running:
        server.close()


@pytest.fixture
def gated_hub() -> Iterator[HubServer]:
    files = {"config.json": b"{}", "model.safetensors": b"x" * 3000, "model.bin": b"y" * 9000}
    hub = HubServer(HUB_ID, files, token=TOKEN)
    yield hub
    hub.close()


def write_config(folder: Path, **preprocess: object) -> Path:
    """Write the config of a run whose captioner lies on a hub."""
    raw = yaml.safe_load((ROOT / "configs/smoke.yaml").read_text(encoding="utf-8"))
    settings = {"model": HUB_ID, "revision": COMMIT, "constrain": False}
    raw["caption"]["vlm"] = {"name": "transformers", "settings": settings}
    raw["preprocess"] |= preprocess
    for arm in raw["arms"]:
        arm.pop("caption", None)
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return path


def run(*words: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.lower().endswith(("proxy", "hf_hub_offline", "hf_token"))
    }
    home = {"HF_HOME": str(cwd / "hf"), "PYTHONPATH": str(ROOT), "HOME": str(cwd)}
    return subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "fetch", *map(str, words)],
        cwd=cwd,
        env=kept | home | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.slow
def test_weights_are_fetched_once_their_terms_are_accepted_and_the_hub_lets_one_in(
    gated_hub: HubServer, tmp_path: Path
) -> None:
    config, hub = write_config(tmp_path), {"HF_ENDPOINT": gated_hub.url}

    without = run("weights", "-c", config, "--dry-run", cwd=tmp_path, **hub)
    assert without.returncode == 1
    assert (
        f"{HUB_ID} is gated: accept its terms at https://huggingface.co/{HUB_ID}" in without.stderr
    )

    dry = run("weights", "-c", config, "--dry-run", cwd=tmp_path, HF_TOKEN=TOKEN, **hub)
    assert f"to fetch   {HUB_ID}, 2.9 KiB" in dry.stdout  # without model.bin
    assert "Terms of its own" in dry.stdout
    assert gated_hub.fetched == set()

    refused = run("weights", "-c", config, cwd=tmp_path, HF_TOKEN=TOKEN, **hub)
    assert refused.returncode == 2
    _, _, advice = refused.stderr.strip().rpartition("accept them with: ")
    assert advice == "--accept-licence 'some-model'"

    accepted = ("--accept-licence", "some-model")
    done = run("weights", "-c", config, *accepted, cwd=tmp_path, HF_TOKEN=TOKEN, **hub)
    assert gated_hub.fetched == {"config.json", "model.safetensors"}
    # What came is no checkpoint, and that is said; what it lacks is no longer the files.
    assert "still missing" in done.stderr
    assert "is not on this machine" not in done.stderr
    for answer in (without, dry, refused, done):
        assert TOKEN not in answer.stdout + answer.stderr


@pytest.mark.slow
def test_a_data_set_arrives_whole_or_not_at_all(
    serve: Callable[..., FileServer], tmp_path: Path
) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for split in ("Training", "Testing"):
            for label in ("glioma", "meningioma", "notumor", "pituitary"):
                archive.writestr(f"{split}/{label}/a.jpg", os.urandom(2000))
        archive.writestr("../escaped.txt", "x")
    path = "/api/v1/datasets.DatasetApiService/DownloadDataset"
    server = serve({path: packed.getvalue()}, KAGGLE_PORT)
    source = {"root": str(tmp_path / "raw/set"), "kaggle": "someone/set/versions/1"}
    config = write_config(tmp_path, source={"name": "image_folder", "settings": source})
    environment = {"KAGGLE_API_ENVIRONMENT": "TEST"}

    server.cut_at = 5000
    cut = run("data", "-c", config, cwd=tmp_path, **environment)
    assert cut.returncode == 1
    assert "someone/set/versions/1 could not be fetched" in cut.stderr
    assert "what was fetched stays" in cut.stderr
    assert not (tmp_path / "raw/set").exists()

    done = run("data", "-c", config, cwd=tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "raw/set").rglob("*.jpg"))) == 8
    assert list((tmp_path / "raw").iterdir()) == [tmp_path / "raw/set"]
    assert not (tmp_path / "raw/escaped.txt").exists()

    again = run("data", "-c", config, cwd=tmp_path, **environment)
    assert again.stdout.startswith("there      sources/image_folder")


def test_a_single_file_is_kept_only_with_its_digest(
    serve: Callable[..., FileServer], tmp_path: Path
) -> None:
    body = b"weights" * 300
    server = serve({"/weights.pth": body})
    digest = hashlib.sha256(body).hexdigest()
    wanted = WebFile(f"{server.url}/weights.pth", tmp_path / "raw/weights.pth", digest)
    other = WebFile(wanted.url, tmp_path / "raw/other.pth", "0" * 64)

    assert fetch.measure(wanted) == len(body)
    with pytest.raises(RemoteError, match=r"other\.pth could not be fetched .*SHA256"):
        fetch.fetch(other)
    assert not other.path.exists()
    assert fetch.fetch(wanted).read_bytes() == body
    asked = len(server.requests)
    fetch.fetch(wanted)
    assert len(server.requests) == asked


def test_a_server_that_is_away_is_one_line(tmp_path: Path) -> None:
    away = WebFile("http://127.0.0.1:9/a.pth", tmp_path / "a.pth", "0" * 64)
    assert fetch.measure(away) is None
    with pytest.raises(RemoteError, match=r"^a\.pth could not be fetched \(ConnectionError"):
        fetch.fetch(away)


def test_terms_that_ask_for_more_than_credit_are_accepted_by_name() -> None:
    free = HubFiles("a/free", licence=Licence(part="Free", terms="MIT.", is_permissive=True))
    bound = HubFiles("a/bound", licence=RAIL)
    fetch.require_accepted([free], [])
    fetch.require_accepted([free, bound], ["some model"])
    with pytest.raises(UsageError, match="--accept-licence 'Some Model'"):
        fetch.require_accepted([free, bound], [])
    with pytest.raises(UsageError, match="another is none of: Some Model"):
        fetch.require_accepted([bound], ["Some Model", "another"])


def test_what_does_not_fit_is_said_before_the_first_byte(tmp_path: Path) -> None:
    file = WebFile("http://127.0.0.1:9/a", tmp_path / "a/b/c", "0" * 64)
    fetch.require_space([(file, 1000), (file, None)])
    with pytest.raises(DiskError, match=r"GiB free, and \d+\.0 GiB are to be fetched"):
        fetch.require_space([(file, 2**60)])


def test_shipped_configs_say_where_all_of_it_comes_from() -> None:
    from pipeline.run import config, plan

    for path in sorted((ROOT / "configs").glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        assert "../" not in text, f"{path} names a folder that a stranger lacks"
    nodes = plan.plan(config.load(ROOT / "configs/poster.yaml"))
    named = {item.name for need in fetch.list_needs(nodes) for item in need.downloads}
    assert "stabilityai/stable-diffusion-xl-base-1.0" in named
    assert "stable-diffusion-v1-5/stable-diffusion-v1-5" in named
    assert any(name.startswith("masoudnickparvar/") for name in named)
