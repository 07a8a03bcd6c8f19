"""Settings of a model behind a server, and what follows from them before anything is sent."""

import importlib.util
import ipaddress
import os
import re
from typing import Any
from urllib.parse import urlsplit

from pydantic import ConfigDict, Field, SecretStr, field_validator, model_validator

from pipeline.contracts import Section, SliceRecord
from pipeline.errors import RemoteError
from stages.components.captioning.captioner import CaptionIdentity
from stages.components.captioning.questions import (
    MAX_ANSWER_TOKENS,
    PROMPT_VERSION,
    PromptStyle,
    bounded_schema,
    prompt_for,
)

# What servers add to the name of a model that is the same: a tag, a date, a revision.
SAME_MODEL = re.compile(r"[-@:](?:(?:preview|exp|latest)(?:-[\d-]+)?|v\d+|\d{3,}[\d-]*)|@\S+")
OURS = frozenset({"model", "messages", "contents"})  # of a request: no `extra_body`


class RemoteSettings(Section):
    """A model behind a server."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    model: str = Field(min_length=1)
    revision: str | None = None  # of what is served, in your own words; tells cached captions apart
    served_as: str | None = None  # what replies call the model, where that is another name
    prompt: PromptStyle = "blind"
    base_url: str
    api_key_env: str | None = None  # the variable that holds the key; never the key itself
    temperature: float | None = Field(0.0, ge=0)  # 0: greedy; null: not sent, where it is refused
    retry_temperature: float = Field(0.7, gt=0)  # after an answer that cannot be read
    max_tokens: int = Field(MAX_ANSWER_TOKENS, ge=16)  # of an answer; once four times that, if cut
    extra_body: dict[str, Any] = Field(default_factory=dict)  # goes into every request as it is
    max_input_tokens: int = Field(4096, ge=1)  # the most that image and prompt take; for `max_cost`
    concurrency: int = Field(8, ge=1)  # requests on their way at once
    batch_size: int = Field(64, ge=1)  # slices that a kill may cost
    requests_per_minute: float | None = Field(None, gt=0)
    timeout_s: float = Field(60.0, gt=0)
    max_attempts: int = Field(4, ge=1)  # per slice
    backoff_s: float = Field(1.0, ge=0)  # before the second attempt; doubles from there
    max_wait_s: float = Field(120.0, gt=0)  # a server that asks for more ends the run
    input_price: float | None = Field(None, ge=0)  # per million tokens, in any one currency
    output_price: float | None = Field(None, ge=0)
    max_cost: float | None = Field(None, gt=0)  # of one run, in that currency

    @field_validator("api_key_env")
    @classmethod
    def _is_a_variable(cls, value: str | None) -> str | None:
        # The value is not quoted: what stands here by mistake is the key.
        if value is not None and not (value.isidentifier() and value.isupper()):
            raise ValueError(
                "expected the name of an environment variable, such as 'GEMINI_API_KEY'; "
                "the key itself must not stand in a config"
            )
        return value

    @field_validator("base_url")
    @classmethod
    def _holds_no_secret(cls, value: str) -> str:
        url = urlsplit(value)
        if url.username or url.password or url.query or url.scheme not in ("http", "https"):
            raise ValueError(
                "expected http(s)://HOST[:PORT][/PATH] without user, password or query; "
                "a key goes into the variable that api_key_env names"
            )
        return value.rstrip("/")

    @field_validator("extra_body")
    @classmethod
    def _leaves_the_question(cls, value: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted(OURS & value.keys()):
            raise ValueError(f"extra_body may not hold {', '.join(map(repr, taken))}")
        return value

    @model_validator(mode="after")
    def _can_count(self) -> "RemoteSettings":
        if self.max_cost is not None and None in (self.input_price, self.output_price):
            raise ValueError(f"max_cost {self.max_cost} needs input_price and output_price")
        return self


def check_remote(settings: RemoteSettings, extra: str, module: str) -> list[str]:
    """Say which library or key is missing, and what to do; an empty list means neither."""
    problems = []
    if not _is_installed(module):
        problems.append(f"{module} is not installed; run pip install -e '.[{extra}]'")
    name = settings.api_key_env
    if name is not None and not os.environ.get(name):
        problems.append(
            f"the environment variable {name!r} is not set or empty; export it with your API key, "
            "or name another one in caption.vlm.settings.api_key_env"
        )
    return problems


def remote_identity(settings: RemoteSettings, item: SliceRecord, **more: Any) -> CaptionIdentity:
    """Name what decides a caption, as `cache_identity` of a plug-in; `more` goes to decoding."""
    names = {"base_url", "served_as", "temperature", "retry_temperature", "max_tokens",
             "extra_body"}  # fmt: skip
    decoding = {
        **settings.model_dump(include=names),
        "schema": bounded_schema(),
        "prompt_version": PROMPT_VERSION,
        "order": "text, image",
        **more,
    }
    prompt = prompt_for(settings.prompt, item)
    return CaptionIdentity(settings.model, settings.revision, prompt, decoding)


def is_same_model(requested: str, answered: str) -> bool:
    """Tell whether a reply's name of its model stands for the one that was requested.

    A version, a date or a revision behind the name is the server's own; another size is not.

    >>> is_same_model("gemini-3.5-flash-lite", "models/gemini-3.5-flash-lite-001")
    True
    >>> is_same_model("gemini-2.5-flash", "gemini-2.5-flash-lite")
    False
    """
    requested, answered = (name.lower().removeprefix("models/") for name in (requested, answered))
    if "/" not in answered:
        requested = requested.rpartition("/")[2]  # many servers leave the owner out
    if not answered.startswith(requested):
        return False
    rest = answered.removeprefix(requested)
    return not rest or SAME_MODEL.fullmatch(rest) is not None


def host_of(url: str) -> str | None:
    """Return the host that a URL leads to; None if that is this machine.

    >>> host_of("https://api.example.org/v1"), host_of("http://localhost:8000/v1")
    ('api.example.org', None)
    """
    host = urlsplit(url).hostname or url
    if host == "localhost":
        return None
    try:
        return None if ipaddress.ip_address(host).is_loopback else host
    except ValueError:
        return host


def is_near(url: str) -> bool:
    """Tell whether a URL leads to this machine or its own network, where no proxy has a place.

    >>> is_near("http://localhost:8000/v1"), is_near("http://10.0.0.7:8000"), is_near("http://box/v1")
    (True, True, True)
    >>> is_near("https://api.example.org/v1")
    False
    """
    host = urlsplit(url).hostname or ""
    if host.endswith(".localhost") or ("." not in host.strip(".") and ":" not in host):
        return True  # without a domain: a name of the local network
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_private or address.is_link_local


def read_key(variable: str | None) -> SecretStr:
    """Read the key where it is used, so that it stands in no object that is kept.

    Raises:
        RemoteError: The variable is not set.
    """
    key = os.environ.get(variable, "") if variable else ""
    if variable and not key:
        raise RemoteError(f"the environment variable {variable!r} is not set or empty; export it")
    return SecretStr(key)


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it
        return False
