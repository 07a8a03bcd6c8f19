"""Captions from any server with OpenAI's chat completions: vLLM, SGLang, Ollama, llama.cpp, OpenAI.

The answer is bounded by `response_format: json_schema`. A server on this machine needs no key and
no `allow_upload`.
"""

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from pydantic import SecretStr

from pipeline.contracts import Part, SliceRecord
from stages.components.captioning.captioner import CaptionIdentity
from stages.components.captioning.names import identify_checkpoint
from stages.components.captioning.vlms._remote import (
    Ask,
    Question,
    RemoteCaptioner,
    Response,
    fault_of_status,
    fault_of_transport,
    load_remote,
    tls_context,
    unreadable,
)
from stages.components.captioning.vlms._remote_settings import (
    RemoteSettings,
    check_remote,
    host_of,
    is_near,
    remote_identity,
)

WHOLE = frozenset({"stop", "eos", "eos_token", "stop_sequence", "end_turn", "", None})
CUT = frozenset({"length", "max_tokens", "max_output_tokens"})
BLOCKED = frozenset({"content_filter", "safety", "refusal"})


class Settings(RemoteSettings):
    """Which server and model; `base_url` ends where `/chat/completions` begins."""

    model: str = "google/gemma-3-12b-it"
    base_url: str = "http://localhost:8000/v1"  # vLLM's
    concurrency: int = 32  # such servers batch what they are asked at once
    batch_size: int = 256
    # OpenAI's newer models refuse the old name of the limit, some local servers the new one.
    token_limit_key: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"


def load(settings: Settings) -> RemoteCaptioner:
    """Build the captioner; nothing is sent yet.

    Raises:
        ConfigError: The library or the key is missing.
    """
    return load_remote(settings, lambda key: _connect(settings, key), check(settings))


def check(settings: Settings) -> list[str]:
    """Say what stands in the way, and what to do; an empty list means nothing."""
    return check_remote(settings, "openai-compatible", "httpx2")


def uploads_to(settings: Settings) -> str | None:
    """Name the host that images are sent to; None if it is this machine."""
    return host_of(settings.base_url)


def identify(settings: Settings) -> Part:
    """Say which model is asked."""
    return identify_checkpoint(settings.model)


def cache_identity(settings: Settings, slice_record: SliceRecord) -> CaptionIdentity:
    """Name all that decides a caption beside the pixels."""
    return remote_identity(settings, slice_record)


@contextmanager
def _connect(settings: Settings, key: SecretStr) -> Iterator[Ask]:
    """Open connections for a batch."""
    import httpx2

    with httpx2.Client(
        headers={"Authorization": f"Bearer {key.get_secret_value()}"} if key else {},
        timeout=settings.timeout_s,
        verify=tls_context(),
        follow_redirects=False,  # images go where the config says, or nowhere
        trust_env=not is_near(settings.base_url),  # nor by way of a proxy that is further away
    ) as client:

        def ask(question: Question) -> Response:
            try:
                answer = client.post(
                    f"{settings.base_url}/chat/completions", json=_body(settings, question)
                )
            except httpx2.TransportError as error:
                fault = fault_of_transport(error)
            else:
                if answer.status_code == 200:
                    return _read(answer)
                fault = fault_of_status(
                    answer.status_code, _message(answer), answer.headers.get("Retry-After")
                )
            raise fault  # outside the handler: the error it comes from holds the request's headers

        yield ask


def _body(settings: Settings, question: Question) -> dict[str, Any]:
    """Word a request; the schema is not `strict`, which OpenAI refuses beside `maxLength`."""
    image = base64.b64encode(question.png).decode()
    return {
        "model": settings.model,
        "messages": [
            {
                "role": "user",
                "content": [
                    # First what requests have in common, whose state servers keep.
                    {"type": "text", "text": question.prompt},
                    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}},
                ],
            }
        ],
        **({} if question.temperature is None else {"temperature": question.temperature}),
        settings.token_limit_key: question.max_tokens,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "tumor_report", "schema": question.schema},
        },
        **settings.extra_body,
    }


def _read(answer: Any) -> Response:
    """Read a chat completion; words that were cut off or filtered are none."""
    try:
        body = answer.json()
        choice = body["choices"][0]
        text, stopped = _text_of(choice["message"].get("content")), choice.get("finish_reason")
        refusal = choice["message"].get("refusal")
        usage = body.get("usage") or {}
        tokens = [int(usage.get(f"{side}_tokens") or 0) for side in ("prompt", "completion")]
        model = str(body.get("model") or "") or None
        if refusal:
            return Response("blocked", f"refused: {refusal}", model, *tokens)
        if stopped in WHOLE:
            return Response("complete", text, model, *tokens)
        reason = f"stopped early: {stopped}"
        end: Literal["cut", "blocked", "broken"] = "cut" if stopped in CUT else "broken"
        return Response("blocked" if stopped in BLOCKED else end, reason, model, *tokens)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise unreadable(error) from None


def _text_of(content: Any) -> str:
    """Join the words of a message, which may come in parts; thoughts among them are left out.

    Raises:
        TypeError: It is neither text nor a list of parts.
    """
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise TypeError(type(content).__name__)
    parts = (part for part in content if part["type"] in ("text", "output_text"))
    return "".join(str(part["text"]) for part in parts)


def _message(answer: Any) -> str:
    """Find the words of an error, which servers wrap in different ways."""
    try:
        body = answer.json()
        error = body.get("error", body)
        return str(error.get("message", error) if isinstance(error, dict) else error)
    except (ValueError, AttributeError):
        return str(answer.text)
