"""A server on this machine that speaks Gemini's and OpenAI's protocols, faults included.

Written after the public descriptions of `models.generateContent` (v1beta) and of chat completions.
"""

import base64
import hashlib
import json
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

INPUT_TOKENS, OUTPUT_TOKENS = 1000, 100
PLANES = ("axial", "coronal", "sagittal")


@dataclass(frozen=True)
class Asked:
    """What one request said."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    prompt: str
    png: bytes
    at_s: float

    @property
    def image_id(self) -> str:
        """Eight digits of the pixels' digest."""
        return hashlib.sha256(self.png).hexdigest()[:8]


@dataclass(frozen=True)
class Fault:
    """How one request goes wrong; the first that is set counts."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    message: str = "something went wrong"
    details: tuple[Any, ...] = ()  # Gemini's
    hangs: bool = False
    cuts: bool = False
    body: bytes | None = None  # instead of a response of the protocol
    blocks: bool = False
    stopped: str | None = None  # Gemini's finish reason, or OpenAI's
    text: str | Callable[[Asked], str] | None = None  # instead of the right answer
    content: Any = None  # instead of the text, as OpenAI's servers may write it
    model: str | None = None  # that answers, if not the one that was asked


def report(asked: Asked, **changes: Any) -> dict[str, Any]:
    """The right answer: it depends on the pixels alone, and fits the schema."""
    return {
        "tumor": False,
        **dict.fromkeys(("location", "side", "size", "shape", "intensity")),
        "orientation": PLANES[sum(asked.png) % 3],
        "general_description": f"Brain MRI {asked.image_id} without a tumor",
        **changes,
    }


class LoopbackServer:
    """Answers rightly, after the faults in `faults` are used up; `always` is never used up."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.faults: deque[Fault] = deque()
        self.always: Callable[[Asked], Fault | None] = lambda asked: None
        self.released = threading.Event()
        self.lock = threading.Lock()
        self.pause_s = 0.0  # before each answer
        self.at_once = self.most_at_once = 0
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                server._serve(self)

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
        if self.released.is_set():
            return
        self.released.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        asked = _read(handler.path, dict(handler.headers.items()), body)
        with self.lock:
            self.asked.append(asked)
            queued = self.faults.popleft() if self.faults else None
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        fault = queued or self.always(asked)
        time.sleep(self.pause_s)
        try:
            self._answer(handler, asked, fault or Fault())
        except OSError:
            pass  # the client has hung up
        finally:
            with self.lock:
                self.at_once -= 1

    def _answer(self, handler: BaseHTTPRequestHandler, asked: Asked, fault: Fault) -> None:
        if fault.hangs:
            self.released.wait(10)
        if fault.hangs or fault.cuts:
            handler.close_connection = True
            if fault.cuts:  # in the middle of the body
                handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n{")
            return
        is_gemini = "generateContent" in asked.path
        if fault.status != 200:
            data = _error(fault, is_gemini)
        elif fault.body is not None:
            data = fault.body
        else:
            data = json.dumps((_gemini if is_gemini else _openai)(asked, fault)).encode()
        handler.send_response(fault.status)
        for name, value in {"Content-Type": "application/json", **fault.headers}.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)


def _read(path: str, headers: dict[str, str], body: dict[str, Any]) -> Asked:
    if "generateContent" in path:
        text, image = body["contents"][0]["parts"]
        prompt, data = text["text"], image["inlineData"]["data"]
    else:
        text, image = body["messages"][0]["content"]
        prompt, data = text["text"], image["image_url"]["url"].split(",")[1]
    png = base64.b64decode(data.replace("-", "+").replace("_", "/"))
    return Asked(path, headers, body, prompt, png, time.monotonic())


def _words(asked: Asked, fault: Fault) -> str:
    if fault.text is None:
        return json.dumps(report(asked))
    return fault.text if isinstance(fault.text, str) else fault.text(asked)


def _error(fault: Fault, is_gemini: bool) -> bytes:
    error: dict[str, Any] = {"code": fault.status, "message": fault.message}
    if is_gemini:
        error |= {"status": "SOME_STATUS", "details": list(fault.details)}
    return json.dumps({"error": error}).encode()


def _gemini(asked: Asked, fault: Fault) -> dict[str, Any]:
    usage = {
        "promptTokenCount": INPUT_TOKENS,
        "candidatesTokenCount": OUTPUT_TOKENS - 20,
        "thoughtsTokenCount": 20,
    }
    if fault.blocks:
        return {"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": usage}
    words = _words(asked, fault)
    parts = {"parts": [{"text": words}]} if words else {}
    return {
        "candidates": [
            {
                "content": {"role": "model", **parts},
                "finishReason": fault.stopped or "STOP",
                "index": 0,
            }
        ],
        "usageMetadata": usage,
        "modelVersion": fault.model or asked.path.rpartition("/")[2].partition(":")[0],
    }


def _openai(asked: Asked, fault: Fault) -> dict[str, Any]:
    message = {"role": "assistant", "content": _words(asked, fault) or None, "refusal": None}
    if fault.content is not None:
        message["content"] = fault.content
    if fault.blocks:
        message |= {"content": None, "refusal": "SAFETY"}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": fault.model or asked.body["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": fault.stopped or "stop"}],
        "usage": {"prompt_tokens": INPUT_TOKENS, "completion_tokens": OUTPUT_TOKENS},
    }
