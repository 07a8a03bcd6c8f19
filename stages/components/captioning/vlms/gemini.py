"""Captions from Google's Gemini, through its own library (`pip install -e '.[gemini]'`).

Images leave the machine: the source needs `allow_upload: true`. The reproduced study used Gemini
2.0 Flash, which Google has since shut down. Of 2.5 Flash, which ends on 2026-12-01, Google names
3.5 Flash-Lite as the successor (ai.google.dev/gemini-api/docs/deprecations); it is the default.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from pydantic import Field, SecretStr, model_validator

from pipeline.contracts import Part, SliceRecord
from stages.components.captioning.captioner import CaptionIdentity
from stages.components.captioning.names import STUDY
from stages.components.captioning.vlms._remote import (
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
from stages.components.captioning.vlms._remote_settings import (
    RemoteSettings,
    check_remote,
    host_of,
    is_near,
    remote_identity,
)

# What is set for a model unless the config says otherwise. Prices: USD per million tokens as
# published in 2026, thinking charged as output. Thinking is as little as the model can do, since it
# eats `max_tokens` before the first word: a level from Gemini 3 on, a budget before. From 3.5 on
# the server passes over a temperature, so none is sent.
MODELS: dict[str, dict[str, Any]] = {
    "gemini-3.5-flash-lite": {
        "input_price": 0.30, "output_price": 2.50, "thinking_level": "minimal", "temperature": None
    },
    "gemini-3.5-flash": {
        "input_price": 1.50, "output_price": 9.00, "thinking_level": "low", "temperature": None
    },
    "gemini-3.1-flash-lite": {
        "input_price": 0.25, "output_price": 1.50, "thinking_level": "minimal"
    },
    "gemini-2.5-flash-lite": {"input_price": 0.10, "output_price": 0.40, "thinking_budget": 0},
    "gemini-2.5-flash": {"input_price": 0.30, "output_price": 2.50, "thinking_budget": 0},
    "gemini-2.5-pro": {"input_price": 1.25, "output_price": 10.00, "thinking_budget": 128},
}  # fmt: skip
BLOCKED = frozenset(
    {"SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "LANGUAGE", "MODEL_ARMOR",
     "IMAGE_SAFETY", "IMAGE_PROHIBITED_CONTENT", "IMAGE_RECITATION"}
)  # fmt: skip


class Settings(RemoteSettings):
    """Which model, how fast, and for how much."""

    model: str = "gemini-3.5-flash-lite"
    base_url: str = "https://generativelanguage.googleapis.com"
    api_key_env: str | None = "GEMINI_API_KEY"  # None: a stand-in that asks for none
    requests_per_minute: float | None = Field(120.0, gt=0)
    max_cost: float | None = Field(20.0, gt=0)  # USD; 7,023 slices take about 10
    thinking_level: Literal["minimal", "low", "medium", "high"] | None = None  # from Gemini 3 on
    thinking_budget: int | None = Field(None, ge=0)  # tokens; Gemini 2.5

    @model_validator(mode="before")
    @classmethod
    def _know_the_model(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        model = data.get("model", cls.model_fields["model"].default)
        known = MODELS.get(model, {}) if isinstance(model, str) else {}
        if data.keys() & {"thinking_level", "thinking_budget"}:  # one way of saying it
            known = {name: value for name, value in known.items() if "thinking" not in name}
        return known | data

    @model_validator(mode="after")
    def _thinks_in_one_way(self) -> "Settings":
        if self.thinking_level is not None and self.thinking_budget is not None:
            raise ValueError(
                f"thinking_level {self.thinking_level!r} and thinking_budget "
                f"{self.thinking_budget} exclude each other; keep one"
            )
        return self


def load(settings: Settings) -> RemoteCaptioner:
    """Build the captioner; nothing is sent yet.

    Raises:
        ConfigError: The library or the key is missing.
    """
    return load_remote(settings, lambda key: _connect(settings, key), check(settings))


def check(settings: Settings) -> list[str]:
    """Say what stands in the way, and what to do; an empty list means nothing."""
    return check_remote(settings, "gemini", "google.genai")


def uploads_to(settings: Settings) -> str | None:
    """Name the host that images are sent to; None if it is a stand-in on this machine."""
    return host_of(settings.base_url)


def identify(settings: Settings) -> Part:
    """Say which model is asked."""
    return Part(name=settings.model, licence=STUDY["gemini"], study="gemini")


def cache_identity(settings: Settings, slice_record: SliceRecord) -> CaptionIdentity:
    """Name all that decides a caption beside the pixels."""
    thinking = settings.model_dump(include={"thinking_level", "thinking_budget"})
    return remote_identity(settings, slice_record, **thinking)


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
            "trust_env": not is_near(settings.base_url),  # nor by way of a proxy further away
        },
        extra_body=settings.extra_body or None,
    )
    thinking = None
    if settings.thinking_level is not None:
        level = types.ThinkingLevel(settings.thinking_level.upper())
        thinking = types.ThinkingConfig(thinking_level=level)
    elif settings.thinking_budget is not None:
        thinking = types.ThinkingConfig(thinking_budget=settings.thinking_budget)
    # Said outright, since the library also listens to variables of the environment.
    with genai.Client(
        vertexai=False, api_key=key.get_secret_value() or "none", http_options=options
    ) as client:

        def ask(question: Question) -> Response:
            try:
                answer = client.models.generate_content(
                    model=settings.model,
                    contents=[
                        question.prompt,  # before the image: all that requests have in common
                        types.Part.from_bytes(data=question.png, mime_type="image/png"),
                    ],
                    config=types.GenerateContentConfig(
                        temperature=question.temperature,
                        max_output_tokens=question.max_tokens,
                        response_mime_type="application/json",
                        response_json_schema=question.schema,
                        thinking_config=thinking,
                    ),
                )
            except errors.APIError as error:
                fault = _fault_of(error)
            except httpx2.TransportError as error:
                fault = fault_of_transport(error)
            except (ValueError, RecursionError) as error:  # no JSON, or not a response
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
    model = answer.model_version
    blocked = answer.prompt_feedback and answer.prompt_feedback.block_reason
    if blocked:
        return Response("blocked", f"blocked: {blocked.value}", model, *tokens)
    if not answer.candidates:
        return Response("broken", "no candidates", model, *tokens)
    stopped = answer.candidates[0].finish_reason
    if stopped is None or stopped.value == "STOP":
        return Response("complete", answer.text or "", model, *tokens)
    reason = f"stopped early: {stopped.value}"
    if stopped.value in BLOCKED:
        return Response("blocked", reason, model, *tokens)
    return Response("cut" if stopped.value == "MAX_TOKENS" else "broken", reason, model, *tokens)
