"""How fast a server is asked, and what that may cost."""

import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.contracts import SliceRecord
from pipeline.errors import CostLimitError, RemoteError
from stages.components.captioning.captioner import Usage
from stages.components.captioning.vlms import gemini
from stages.components.captioning.vlms._remote import read_retry_after
from tests.components.captioning.vlms.loopback import (
    INPUT_TOKENS,
    OUTPUT_TOKENS,
    Fault,
    LoopbackServer,
)
from tests.components.captioning.vlms.remote.parts import Make, always

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])


ONE = (INPUT_TOKENS * 1.0 + OUTPUT_TOKENS * 10.0) / 1e6


def test_the_limit_learns_how_long_requests_are(
    make: Make, ask: Any, server: LoopbackServer
) -> None:
    captioner = make(max_cost=0.009, max_input_tokens=10)
    with pytest.raises(CostLimitError, match=r"2 requests have cost 0\.0040, and one more could "):
        ask(captioner, 8)
    assert len(server.asked) == 2  # a third could make it 0.0101, not the 0.0091 of ten tokens


def test_retry_after_holds_every_request(make: Make, ask: Any, server: LoopbackServer) -> None:
    server.faults.append(Fault(status=429, headers={"Retry-After": "0.3"}))
    ask(make(), 3)
    first, *rest = [asked.at_s for asked in server.asked]
    assert len(rest) == 3
    assert min(rest) - first >= 0.3


def test_a_wait_that_is_too_long_ends_the_run(make: Make, ask: Any, server: LoopbackServer) -> None:
    server.always = always(Fault(status=429, headers={"Retry-After": "3600"}, message="quota"))
    with pytest.raises(RemoteError, match=r"asks to wait 3600 s, more than max_wait_s 120: HTTP"):
        ask(make())


def test_gemini_may_ask_to_wait_in_the_body(server: LoopbackServer, ask: Any) -> None:
    info = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "0.3s"}
    server.faults.append(Fault(status=429, details=(info,)))
    ask(gemini.load(gemini.Settings(base_url=server.url, api_key_env=None)))
    first, second = server.asked
    assert second.at_s - first.at_s >= 0.3


def test_retry_after_may_be_a_date() -> None:
    soon = datetime.now(UTC) + timedelta(seconds=60)
    assert 55 < (read_retry_after(format_datetime(soon, usegmt=True)) or 0) <= 60
    assert read_retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert read_retry_after(None) is None


def test_requests_per_minute(make: Make, ask: Any, server: LoopbackServer) -> None:
    started = time.monotonic()
    ask(make(requests_per_minute=1200, concurrency=4), 5)
    assert max(asked.at_s for asked in server.asked) - started >= 4 * 60 / 1200


def test_cost_is_counted_from_what_the_server_says(make: Make, ask: Any) -> None:
    (reply,) = ask(make())
    assert reply.usage == Usage(1, INPUT_TOKENS, OUTPUT_TOKENS, pytest.approx(ONE))


@pytest.mark.parametrize("concurrency", [1, 4])
def test_the_run_stops_before_the_limit(
    make: Make, ask: Any, server: LoopbackServer, concurrency: int
) -> None:
    dearest = (1000 * 1.0 + 512 * 10.0) / 1e6
    captioner = make(max_cost=4 * ONE + dearest, max_input_tokens=1000, concurrency=concurrency)
    with pytest.raises(CostLimitError, match=r"5 requests have cost 0\.0100.*over max_cost 0\.014"):
        ask(captioner, 8)
    assert len(server.asked) == 5  # whatever was on its way had room


def test_what_was_spent_before_counts(make: Make, ask: Any, server: LoopbackServer) -> None:
    captioner = make(max_cost=0.02)
    captioner.resume(Usage(7, 7000, 700, 0.015))
    with pytest.raises(CostLimitError, match=r"7 requests have cost 0\.0150, and one more could"):
        ask(captioner)
    assert server.asked == []


def test_a_loop_that_is_left_stops_asking(
    make: Make, server: LoopbackServer, slices: list[SliceRecord], paths: list[Path]
) -> None:
    replies = make().describe(slices, paths)
    next(replies)
    replies.close()
    assert len(server.asked) < 4


def test_a_limit_needs_prices(plugin: ModuleType) -> None:
    with pytest.raises(ValidationError, match=r"max_cost 3\.0 needs input_price and output_price"):
        plugin.Settings.model_validate({"model": "some-new-model", "max_cost": 3})


def test_gemini_knows_prices_of_its_models() -> None:
    settings = gemini.Settings()
    assert (settings.input_price, settings.output_price) == (0.30, 2.50)
    assert gemini.Settings.model_validate(settings.model_dump()) == settings
    assert gemini.Settings(model="gemini-2.5-flash-lite").input_price == 0.10
    assert gemini.Settings(input_price=9.0).input_price == 9.0
