"""Captioners: what each exposes, and the replies that it gives.

A captioner is a plug-in of `captioning/vlms/`. Beside `Settings`, `load` and `tiny` its module may
expose

- `cache_identity(settings, slice_record) -> CaptionIdentity`: all that decides a caption beside the
  pixels. With it, captions are shared between experiments (`captioning.cache`); without, never.
- `uploads_to(settings) -> str | None`: the host that images are sent to, None if they stay on this
  machine. Slices go there only if their source has `allow_upload: true`.
- `for_run(settings, *, device, dtype) -> settings`: takes the run's device and dtype where the
  settings leave that open, before anything is asked of them.
- `predict_memory(settings) -> VlmMemory | None`: what captioning will take, which `check` compares
  with what is free; None where nobody can tell.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

from pipeline.contracts import SliceRecord


@dataclass(frozen=True)
class Failure:
    """A slice that got no caption, and why; counted, never replaced by an invented one."""

    reason: str


@dataclass(frozen=True)
class Usage:
    """What was asked of a server."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0  # in the currency of the prices in the settings

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.requests + other.requests,
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cost + other.cost,
        )


@dataclass(frozen=True)
class Paid:
    """An answer of a server, and all that was asked to get it, failed tries included."""

    answer: str | Failure
    usage: Usage
    model: str | None = None  # that answered, in the server's words


Reply: TypeAlias = str | Failure | Paid


@dataclass(frozen=True)
class CaptionIdentity:
    """All that decides a caption beside the pixels; two that are equal give the same caption."""

    model: str
    revision: str | None  # of the weights: a hub commit, a digest of a local folder
    prompt: str  # the whole text
    decoding: Mapping[str, Any]  # JSON values: schema, temperature, longest answer, precision


class Captioner(Protocol):
    """Writes captions. A caption depends on its own slice alone, never on the batch around it."""

    batch_size: int  # slices a call, and what a kill may cost

    def describe(
        self, slices: Sequence[SliceRecord], image_paths: Sequence[Path]
    ) -> Iterable[Reply]:
        """Write one raw text (or say why not) per slice, in order; all at once or one by one.

        Args:
            slices: what is known about the slices; a real VLM looks at none of it.
            image_paths: their PNGs, RGB uint8, in the same order.
        """
        ...


@runtime_checkable
class Streaming(Protocol):
    """A captioner that yields replies one by one: it is asked once, about all slices.

    So no request waits until the slowest of a batch has been answered. `left` are replies, by their
    place among the slices, that had come when a run ended early and nobody took them any more.
    """

    left: Mapping[int, Reply]


@runtime_checkable
class Metered(Protocol):
    """A captioner whose answers cost money: it must know what earlier runs have spent."""

    def resume(self, spent: Usage) -> None:
        """Count what the journal says was spent before."""
        ...


def answer_of(reply: Reply) -> str | Failure:
    """Return a reply without its price."""
    return reply.answer if isinstance(reply, Paid) else reply


def model_of(reply: Reply) -> str | None:
    """Return the model that answered, where a server said so."""
    return reply.model if isinstance(reply, Paid) else None


def usage_of(replies: Iterable[Reply]) -> Usage:
    """Add up what replies cost; those without a price cost nothing."""
    return sum((reply.usage for reply in replies if isinstance(reply, Paid)), Usage())
