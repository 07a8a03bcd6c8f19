"""Captions from a server: asking in parallel, trying again, counting tokens, keeping the key.

`vlms/gemini.py` and `vlms/openai_compatible.py` each know one protocol: they send one question and
report the answer or a `RequestFault`. All else is here, the same for both.

A question is never repeated as it was where that cannot help: a block is final, an answer that was
cut gets more tokens once, and one that cannot be read is asked for at another temperature.

What leaves the machine: the pixels and the prompt (with the class, if `prompt: poster`). No name,
no path, no slice or subject id.
"""

import functools
import ssl
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pydantic import SecretStr

from pipeline.contracts import SliceRecord
from pipeline.errors import ConfigError, RemoteError
from stages.components.captioning.captioner import Failure, Paid, Reply, Usage
from stages.components.captioning.questions import Answer, bounded_schema, prompt_for, read_answer
from stages.components.captioning.vlms._metering import Meter, Prices, RateLimiter, Ticket
from stages.components.captioning.vlms._remote_settings import (
    RemoteSettings,
    is_same_model,
    read_key,
)
from stages.components.tumor_report.words import shorten

REFUSALS = frozenset({401, 402, 403, 404, 405})  # of every request alike: asking on is no use
RETRIED = frozenset({408, 409, 425, 429})  # and all from 500 on
MAX_REASON_CHARS = 200
LONGER = 4  # times `max_tokens`, once, for an answer that was cut: thoughts may have taken them


@dataclass(frozen=True)
class Question:
    """What one request asks."""

    prompt: str
    png: bytes
    schema: dict[str, Any]
    max_tokens: int
    temperature: float | None  # None: say nothing of it


@dataclass(frozen=True)
class Response:
    """What came back, how it ended, and what is charged.

    `complete`: the words are whole. `blocked`: there are none and will be none. `cut`: by the
    limit. `broken`: otherwise without words.
    """

    end: Literal["complete", "blocked", "cut", "broken"]
    words: str  # of the model; unless it was `complete`, the reason why there are none
    model: str | None  # that answered, in the server's words
    input_tokens: int
    output_tokens: int


class RequestFault(Exception):
    """A request without an answer."""

    def __init__(
        self,
        reason: str,
        *,
        status: int | None = None,
        retry_after_s: float | None = None,
        may_be_charged: bool = False,
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status  # None: no answer at all, or none that can be read
        self.retry_after_s = retry_after_s
        self.may_be_charged = may_be_charged  # sent, and then nothing was heard


Ask: TypeAlias = Callable[[Question], Response]
Connect: TypeAlias = Callable[[SecretStr], AbstractContextManager[Ask]]


class RemoteCaptioner:
    """Asks a server about every slice, `concurrency` at a time; answers come in order."""

    def __init__(self, settings: RemoteSettings, connect: Connect) -> None:
        self.settings = settings
        self.batch_size = settings.batch_size
        self.left: dict[int, Reply] = {}
        self._connect = connect
        self.limiter = RateLimiter(settings.requests_per_minute)
        self.meter = Meter(
            Prices(settings.input_price or 0.0, settings.output_price or 0.0),
            settings.max_cost,
            settings.max_input_tokens,
            settings.max_tokens,
        )

    def resume(self, spent: Usage) -> None:
        """Count what the journal says was spent before."""
        self.meter.resume(spent)

    def describe(
        self, slices: Sequence[SliceRecord], image_paths: Sequence[Path]
    ) -> Generator[Reply, None, None]:
        """Yield each answer as soon as it and those before it are there.

        Raises:
            RemoteError: The server refuses every request, or asks to be left alone for too long.
            CostLimitError: Asking on could cost more than `max_cost`.
        """
        key = read_key(self.settings.api_key_env)
        stopping = threading.Event()
        with (
            self._connect(key) as ask,
            ThreadPoolExecutor(self.settings.concurrency) as pool,
        ):

            def answer(item: SliceRecord, path: Path) -> Reply:
                return _Dialogue(self, ask, key, stopping).run(item, path.read_bytes())

            waiting: deque[tuple[int, Future[Reply]]] = deque()
            # More than are on their way, so that a slow one does not stop the others at once.
            most = self.settings.batch_size + self.settings.concurrency
            self.left = {}
            try:
                for place, (item, path) in enumerate(zip(slices, image_paths, strict=True)):
                    waiting.append((place, pool.submit(answer, item, path)))
                    if len(waiting) >= most:
                        yield waiting.popleft()[1].result()
                while waiting:
                    yield waiting.popleft()[1].result()
            finally:
                stopping.set()
                pool.shutdown(cancel_futures=True)
                self.left = {
                    place: future.result()
                    for place, future in waiting
                    if not future.cancelled() and future.exception() is None
                }


class _Dialogue:
    """One slice's attempts."""

    def __init__(
        self, captioner: RemoteCaptioner, ask: Ask, key: SecretStr, stopping: threading.Event
    ) -> None:
        self.settings = captioner.settings
        self.limiter = captioner.limiter
        self.meter = captioner.meter
        self.ask = ask
        self.key = key
        self.stopping = stopping

    def run(self, item: SliceRecord, png: bytes) -> Paid:
        """Ask until an answer fits the schema; else take prose, else fail with the last reason."""
        settings = self.settings
        prompt = prompt_for(settings.prompt, item)
        question = Question(
            prompt, png, bounded_schema(), settings.max_tokens, settings.temperature
        )
        usage, model, prose, failure = Usage(), None, None, Failure("not asked")
        for attempt in range(1, settings.max_attempts + 1):
            if not self.limiter.wait(self.stopping):
                break
            with self.meter.request(question.max_tokens) as ticket:
                outcome = self._send(question, ticket)
            usage += ticket.usage
            if isinstance(outcome, RequestFault):
                failure = Failure(outcome.reason)
                if not _is_retried(outcome.status):
                    break
                self._back_off(outcome, attempt)
                continue
            model = outcome.model
            answer = self._judge(outcome)
            if isinstance(answer.taken, Failure):
                failure = answer.taken
            elif answer.fits:
                return Paid(answer.taken, usage, model)
            else:
                prose = answer.taken
            following = self._ask_otherwise(question, outcome)
            if following is None:
                break
            question = following
        return Paid(failure if prose is None else prose, usage, model)

    def _judge(self, outcome: Response) -> Answer:
        if self._is_expected(outcome.model):
            if outcome.end == "complete":
                return read_answer(outcome.words)
            return Answer(Failure(outcome.words), fits=False)
        expected = self.settings.served_as or self.settings.model
        reason = (
            f"{outcome.model!r} answered in place of {expected!r}; if that is the one that is "
            "meant, set caption.vlm.settings.served_as to it"
        )
        return Answer(Failure(reason), fits=False)

    def _is_expected(self, model: str | None) -> bool:
        """Tell whether the right model answered; a server that does not say so is believed."""
        if model is None:
            return True
        if self.settings.served_as is not None:
            return model == self.settings.served_as
        return is_same_model(self.settings.model, model)

    def _ask_otherwise(self, question: Question, outcome: Response) -> Question | None:
        """Change a question whose answer was no use; None where asking again cannot help."""
        settings = self.settings
        if outcome.end == "blocked" or not self._is_expected(outcome.model):
            return None
        if outcome.end == "cut":
            is_longer = question.max_tokens > settings.max_tokens
            more = LONGER * settings.max_tokens
            return None if is_longer else replace(question, max_tokens=more)
        if settings.temperature is None:
            return question  # the server samples as it likes, so that the next answer may differ
        warmer = max(settings.temperature, settings.retry_temperature)
        return replace(question, temperature=warmer)

    def _send(self, question: Question, ticket: Ticket) -> Response | RequestFault:
        """Send one request and count it.

        Raises:
            RemoteError: The server refuses, and would refuse every other request as well.
        """
        try:
            response = self.ask(question)
        except RequestFault as fault:
            failure = RequestFault(  # a new one: the old one's words may hold the key
                shorten(self._redact(fault.reason), MAX_REASON_CHARS),
                status=fault.status,
                retry_after_s=fault.retry_after_s,
                may_be_charged=fault.may_be_charged,
            )
        else:
            ticket.answered(response.input_tokens, response.output_tokens)
            words = self._redact(response.words)
            if response.end != "complete":
                words = shorten(words, MAX_REASON_CHARS)
            name = response.model and shorten(self._redact(response.model), MAX_REASON_CHARS)
            return replace(response, words=words, model=name or None)
        if failure.may_be_charged:
            ticket.lost()
        if failure.status in REFUSALS:
            raise RemoteError(
                f"{self.settings.model!r} at {self.settings.base_url} refuses: {failure.reason}. "
                "See to caption.vlm.settings (model, base_url, api_key_env) and to the account; "
                "captions that are there are kept"
            )
        return failure

    def _back_off(self, fault: RequestFault, attempt: int) -> None:
        """Wait as long as the server asks, for all requests; else a while, for this one.

        Raises:
            RemoteError: The server asks for longer than `max_wait_s`.
        """
        if fault.retry_after_s is None:
            if attempt < self.settings.max_attempts:
                self.stopping.wait(self.settings.backoff_s * 2 ** (attempt - 1))
        elif fault.retry_after_s <= self.settings.max_wait_s:
            self.limiter.hold(fault.retry_after_s)
        else:
            raise RemoteError(
                f"{self.settings.model!r} at {self.settings.base_url} asks to wait "
                f"{fault.retry_after_s:.0f} s, more than max_wait_s {self.settings.max_wait_s:g}: "
                f"{fault.reason}. Run again later; captions that are there are kept"
            )

    def _redact(self, text: str) -> str:
        """Take the key out of a server's words, which may repeat it."""
        key = self.key.get_secret_value()
        return text.replace(key, "[key]") if key else text


def load_remote(settings: RemoteSettings, connect: Connect, problems: list[str]) -> RemoteCaptioner:
    """Build the captioner; nothing is sent yet.

    Raises:
        ConfigError: The library or the key is missing.
    """
    if problems:
        raise ConfigError("caption.vlm", problems)
    return RemoteCaptioner(settings, connect)


@functools.cache
def tls_context() -> ssl.SSLContext:
    """Return how servers prove who they are; reading certificates takes 0.2 s, so it is shared."""
    import httpx2

    return httpx2.create_ssl_context()


def read_retry_after(value: str | None) -> float | None:
    """Read a Retry-After header, seconds or a date, into seconds from now; None if unreadable.

    >>> read_retry_after("1.5"), read_retry_after("soon")
    (1.5, None)
    """
    if value is None:
        return None
    try:
        seconds = float(value.removesuffix("s"))
    except ValueError:
        try:
            moment = parsedate_to_datetime(value)
        except ValueError:
            return None
        seconds = (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds)


def fault_of_status(status: int, message: str, retry_after: str | None) -> RequestFault:
    """Word an HTTP status other than success."""
    words = " ".join(message.split())
    return RequestFault(
        f"HTTP {status}: {words}" if words else f"HTTP {status}",
        status=status,
        retry_after_s=read_retry_after(retry_after),
    )


def fault_of_transport(error: Exception) -> RequestFault:
    """Word a connection that failed; what never reached the server was not charged either."""
    import httpx2

    unsent = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)
    return RequestFault(
        f"no answer: {type(error).__name__}", may_be_charged=not isinstance(error, unsent)
    )


def unreadable(error: Exception) -> RequestFault:
    """Word an answer that is none of the protocol's."""
    return RequestFault(f"unreadable answer: {type(error).__name__}", may_be_charged=True)


def _is_retried(status: int | None) -> bool:
    return status is None or status in RETRIED or status >= 500
