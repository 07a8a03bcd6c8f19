"""What requests to a server may cost, in money and in time; safe for threads."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pipeline.errors import CostLimitError
from stages.components.captioning.captioner import Usage


@dataclass(frozen=True)
class Prices:
    """What tokens cost, per million, in one currency."""

    input: float
    output: float

    def cost(self, input_tokens: int, output_tokens: int) -> float:
        """Price of one request."""
        return (input_tokens * self.input + output_tokens * self.output) / 1e6


class Meter:
    """Counts cost, and lets no request out that could bring it over the limit.

    A request reserves the most that it can cost; if that is too much while others are on their way,
    it waits for what they really cost. One that is never answered may have been charged all the
    same, and counts as the dearest.
    """

    def __init__(
        self, prices: Prices, max_cost: float | None, max_input_tokens: int, max_output_tokens: int
    ) -> None:
        self.prices = prices
        self.max_cost = max_cost
        self.spent = Usage()
        self._input_tokens = max_input_tokens
        self._output_tokens = max_output_tokens
        self._reserved = 0.0
        self._changed = threading.Condition()

    def resume(self, spent: Usage) -> None:
        """Count what earlier runs have spent."""
        with self._changed:
            self.spent += spent

    @contextmanager
    def request(self, max_output_tokens: int | None = None) -> Iterator["Ticket"]:
        """Reserve the cost of one request; its ticket takes what the request really used.

        Args:
            max_output_tokens: of this request, where it may be longer than the others.

        Raises:
            CostLimitError: The request could bring the cost over the limit.
        """
        ticket = Ticket(self, self._reserve(max_output_tokens or self._output_tokens))
        try:
            yield ticket
        finally:
            with self._changed:
                self._reserved -= ticket.reserved
                self.spent += ticket.usage
                self._input_tokens = max(self._input_tokens, ticket.usage.input_tokens)
                self._changed.notify_all()

    def _reserve(self, output_tokens: int) -> float:
        with self._changed:
            while True:
                dearest = self.prices.cost(self._input_tokens, output_tokens)
                total = self.spent.cost + self._reserved + dearest
                if self.max_cost is None or total <= self.max_cost:
                    self._reserved += dearest
                    return dearest
                if self._reserved <= 0:
                    raise CostLimitError(
                        f"{self.spent.requests} requests have cost {self.spent.cost:.4f}, and one "
                        f"more could cost {dearest:.4f}: over max_cost {self.max_cost}. Raise it "
                        "in caption.vlm.settings and run again; captions that are there are kept "
                        "in the cache and cost nothing again"
                    )
                self._changed.wait()


class Ticket:
    """One request's place in the meter; until told otherwise, it cost nothing (it was refused)."""

    def __init__(self, meter: Meter, reserved: float) -> None:
        self.reserved = reserved
        self.usage = Usage(requests=1)
        self._prices = meter.prices

    def answered(self, input_tokens: int, output_tokens: int) -> None:
        """Count the tokens that the server reports."""
        cost = self._prices.cost(input_tokens, output_tokens)
        self.usage = Usage(1, input_tokens, output_tokens, cost)

    def lost(self) -> None:
        """Count the dearest request: no answer came, but one may have been charged."""
        self.usage = Usage(requests=1, cost=self.reserved)


class RateLimiter:
    """Spaces requests evenly, and holds all of them back when the server asks for it."""

    def __init__(self, requests_per_minute: float | None) -> None:
        self._interval_s = 60 / requests_per_minute if requests_per_minute else 0.0
        self._next_s = 0.0
        self._lock = threading.Lock()

    def hold(self, seconds: float) -> None:
        """Let no request out for so long."""
        with self._lock:
            self._next_s = max(self._next_s, time.monotonic() + seconds)

    def wait(self, stopping: threading.Event) -> bool:
        """Wait for this request's turn; return False if `stopping` was set meanwhile."""
        with self._lock:
            turn_s = max(time.monotonic(), self._next_s)
            self._next_s = turn_s + self._interval_s
        return not stopping.wait(turn_s - time.monotonic())
