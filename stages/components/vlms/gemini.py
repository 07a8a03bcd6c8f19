"""Captions from Google's Gemini, through its own library (`pip install -e '.[gemini]'`).

Images leave the machine: the source needs `allow_upload: true`. The reproduced study used Gemini
2.0 Flash, which Google has since shut down; its successor is the default.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pydantic import Field, SecretStr, model_validator

from pipeline.contracts import SliceRecord
from stages.components.captioning import CaptionIdentity
from stages.components.remote_captioning import (
    Ask,
    Question,
    RemoteCaptioner,
    RequestFault,
    Response,
    fault_of_status,
    fault_of_transport,
    load_remote,
    tls_context,
    unreadable,
)
from stages.components.remote_settings import (
    RemoteSettings,
    check_remote,
    host_of,
    remote_identity,
)

# USD per million tokens (input, output) as published in 2026, thinking charged as output.
PRICES = {
    "gemini-2.0-flash": (0.10, 0.40),
    "gemini-2.5-flash": (0.30, 2.50),
    "gemini-2.5-flash-lite": (0.10, 0.40),
    "gemini-2.5-pro": (1.25, 10.00),
}


class Settings(RemoteSettings):
    """Which model, how fast, and for how much."""

    model: str = "gemini-2.5-flash"
    base_url: str = "https://generativelanguage.googleapis.com"
    api_key_env: str | None = "GEMINI_API_KEY"  # None: a stand-in that asks for none
    requests_per_minute: float | None = Field(120.0, gt=0)
    max_cost: float | None = Field(20.0, gt=0)  # USD; 7,023 slices take about 10
    # Thinking eats `max_tokens` before the first word. Pro models cannot do without: null, and more
    # tokens. Models before 2.5 do not know it: null.
    thinking_budget: int | None = Field(0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _know_prices(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        model = data.get("model", cls.model_fields["model"].default)
        if not isinstance(model, str) or model not in PRICES:
            return data
        known = dict(zip(("input_price", "output_price"), PRICES[model], strict=True))
        return known | data


def load(settings: Settings) -> RemoteCaptioner:
    """Build the captioner; nothing is sent yet.

    Raises:
        ConfigError: The library or the key is missing.
    """
    return load_remote(settings, lambda key: _connect(settings, key), check(settings))


def tiny() -> Settings:
    """Return settings for tests: a stand-in on this machine, without a key."""
    return Settings(base_url="http://127.0.0.1:9", api_key_env=None, concurrency=2, batch_size=4)


def check(settings: Settings) -> list[str]:
    """Say what stands in the way, and what to do; an empty list means nothing."""
    return check_remote(settings, "gemini", "google.genai")


def uploads_to(settings: Settings) -> str | None:
    """Name the host that images are sent to; None if it is a stand-in on this machine."""
    return host_of(settings.base_url)


def cache_identity(settings: Settings, slice_record: SliceRecord) -> CaptionIdentity:
    """Name all that decides a caption beside the pixels."""
    return remote_identity(settings, slice_record, thinking_budget=settings.thinking_budget)


@contextmanager
def _connect(settings: Settings, key: SecretStr) -> Iterator[Ask]:
    """Open connections for a batch."""
    import httpx2
    from google import genai
    from google.genai import errors, types

    options = types.HttpOptions(
        base_url=settings.base_url,
        timeout=round(settings.timeout_s * 1000),  # ms
        client_args={
            "verify": tls_context(),
            "follow_redirects": False,  # images go where the config says, or nowhere
        },
    )
    budget = settings.thinking_budget
    thinking = None if budget is None else types.ThinkingConfig(thinking_budget=budget)
    # Said outright, since the library also listens to variables of the environment.
    with genai.Client(
        vertexai=False, api_key=key.get_secret_value() or "none", http_options=options
    ) as client:

        def ask(question: Question) -> Response:
            try:
                answer = client.models.generate_content(
                    model=settings.model,
                    contents=[
                        types.Part.from_bytes(data=question.png, mime_type="image/png"),
                        question.prompt,
                    ],
                    config=types.GenerateContentConfig(
                        temperature=settings.temperature,
                        max_output_tokens=settings.max_tokens,
                        response_mime_type="application/json",
                        response_json_schema=question.schema,
                        thinking_config=thinking,
                    ),
                )
            except errors.APIError as error:
                fault = _fault_of(error)
            except httpx2.TransportError as error:
                fault = fault_of_transport(error)
            except ValueError as error:  # the body is no JSON, or not a response
                fault = unreadable(error)
            else:
                return _read(answer)
            raise fault  # outside the handlers: the errors hold the request, and it the key

        yield ask


def _fault_of(error: Any) -> RequestFault:
    """Word an error; a wrong key is HTTP 400 here, a wait may stand in the body's RetryInfo."""
    headers = getattr(error.response, "headers", {})
    message = str(error.message or error.status or "")
    status = 401 if error.code == 400 and "api key" in message.lower() else error.code
    details = error.details.get("error", {}) if isinstance(error.details, dict) else {}
    delays = [
        item["retryDelay"]
        for item in details.get("details", [])
        if isinstance(item, dict) and "retryDelay" in item
    ]
    return fault_of_status(status, message, headers.get("Retry-After", *delays[:1] or [None]))


def _read(answer: Any) -> Response:
    """Read a response; words that were cut off or blocked are none."""
    used = answer.usage_metadata
    tokens = (
        (used.prompt_token_count or 0) if used else 0,
        ((used.candidates_token_count or 0) + (used.thoughts_token_count or 0)) if used else 0,
    )
    blocked = answer.prompt_feedback and answer.prompt_feedback.block_reason
    if blocked:
        return Response(None, f"blocked: {blocked.value}", *tokens)
    if not answer.candidates:
        return Response(None, "no candidates", *tokens)
    stopped = answer.candidates[0].finish_reason
    if stopped is not None and stopped.value != "STOP":
        return Response(None, f"stopped early: {stopped.value}", *tokens)
    return Response(answer.text or "", "", *tokens)
