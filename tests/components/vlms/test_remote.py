"""`gemini` and `openai_compatible` against a server on this machine."""

import json
import logging
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.contracts import SliceRecord
from pipeline.errors import ConfigError, CostLimitError, RemoteError
from stages.components.captioning import Failure, Paid, Usage
from stages.components.remote_captioning import RemoteCaptioner, read_retry_after
from stages.components.tumor_report import LABEL_WORDS, parse
from stages.components.vlms import gemini, openai_compatible
from tests.components.vlms.conftest import KEY, KEY_VARIABLE
from tests.components.vlms.loopback import (
    INPUT_TOKENS,
    OUTPUT_TOKENS,
    Asked,
    Fault,
    LoopbackServer,
    report,
)

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])
Make = Callable[..., RemoteCaptioner]


@pytest.fixture(params=[gemini, openai_compatible], ids=["gemini", "openai_compatible"])
def plugin(request: pytest.FixtureRequest) -> ModuleType:
    return request.param


@pytest.fixture
def make(plugin: ModuleType, server: LoopbackServer) -> Make:
    def build(**changes: Any) -> RemoteCaptioner:
        path = "/v1" if plugin is openai_compatible else ""
        values = {
            "model": "gemini-2.5-flash",
            "base_url": server.url + path,
            "api_key_env": KEY_VARIABLE,
            "backoff_s": 0.001,
            "timeout_s": 5,
            "concurrency": 1,
            "max_attempts": 3,
            "requests_per_minute": None,
            "input_price": 1.0,
            "output_price": 10.0,
        }
        return plugin.load(plugin.Settings.model_validate(values | changes))

    return build


@pytest.fixture
def ask(slices: list[SliceRecord], paths: list[Path]) -> Callable[..., list[Paid]]:
    def run(captioner: RemoteCaptioner, num: int = 1) -> list[Paid]:
        replies = list(captioner.describe(slices[:num], paths[:num]))
        paid = [reply for reply in replies if isinstance(reply, Paid)]
        assert len(paid) == len(replies) == num
        return paid

    return run


def failure(reply: Paid) -> Failure:
    assert isinstance(reply.answer, Failure)
    return reply.answer


def test_each_image_gets_its_own_answer(
    make: Make, ask: Any, server: LoopbackServer, paths: list[Path]
) -> None:
    server.pause_s = 0.02
    replies = ask(make(concurrency=4), 8)
    by_png = {asked.png: report(asked) for asked in server.asked}
    for reply, path in zip(replies, paths, strict=True):
        expected = by_png[path.read_bytes()]
        del expected["image_id"]
        assert json.loads(reply.answer) == expected
        assert parse(reply.answer).orientation == expected["orientation"]
    assert 2 <= server.most_at_once <= 4


def test_what_is_sent(make: Make, ask: Any, server: LoopbackServer, plugin: ModuleType) -> None:
    ask(make(prompt="blind", max_tokens=321), 4)
    sent = server.asked[0]
    said = json.dumps(sent.body)
    assert "patient" not in said and "train" not in said  # ids, names, splits stay here
    assert not any(words in said for words in LABEL_WORDS.values() if words != "no tumor")
    assert sent.png.startswith(b"\x89PNG")
    if plugin is gemini:
        assert sent.path.endswith("/models/gemini-2.5-flash:generateContent")
        assert sent.headers["x-goog-api-key"] == KEY
        config = sent.body["generationConfig"]
        assert (config["temperature"], config["maxOutputTokens"]) == (0, 321)
        assert list(config["thinkingConfig"].values()) == [0]
        schema = config["responseJsonSchema"]
    else:
        assert sent.path == "/v1/chat/completions"
        assert sent.headers["Authorization"] == f"Bearer {KEY}"
        assert (sent.body["temperature"], sent.body["max_tokens"]) == (0, 321)
        schema = sent.body["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["image_id"]["enum"] == [sent.image_id]
    assert schema["additionalProperties"] is False
    assert len({asked.image_id for asked in server.asked}) == 4


def test_poster_prompt_gives_the_class_away(make: Make, ask: Any, server: LoopbackServer) -> None:
    ask(make(prompt="poster"), 4)
    for asked, words in zip(server.asked, LABEL_WORDS.values(), strict=True):
        assert f"with the diagnosis: {words}." in asked.prompt


MENDED = {
    "429": Fault(status=429, headers={"Retry-After": "0"}),
    "500": Fault(status=500),
    "503": Fault(status=503, message="overloaded"),
    "cut": Fault(cuts=True),
    "garbage": Fault(body=b"<html>bad gateway</html>"),
    "empty object": Fault(body=b"[]"),
    "empty": Fault(text=""),
    "blocked": Fault(blocks=True),
    "invalid json": Fault(text='{"tumor": false, "location"'),
    "another image": Fault(text=lambda asked: json.dumps(report(asked, image_id="0badc0de"))),
    "no id": Fault(text='{"tumor": true}'),
    "extra keys": Fault(text=lambda asked: json.dumps(report(asked, age=54))),
    "value outside the lists": Fault(text=lambda asked: json.dumps(report(asked, size="tiny"))),
}


@pytest.mark.parametrize("fault", MENDED.values(), ids=MENDED)
def test_a_fault_is_tried_again(make: Make, ask: Any, server: LoopbackServer, fault: Fault) -> None:
    server.faults.append(fault)
    (reply,) = ask(make())
    assert json.loads(reply.answer)["tumor"] is False
    assert "0badc0de" not in reply.answer
    assert len(server.asked) == 2
    assert reply.usage.requests == 2


def always(fault: Fault) -> Callable[[Asked], Fault]:
    return lambda asked: fault


LASTING = {
    "429": (Fault(status=429, message="slow down"), "HTTP 429: slow down", True),
    "500": (Fault(status=500), "HTTP 500: something went wrong", True),
    "cut": (Fault(cuts=True), "no answer: RemoteProtocolError", True),
    "garbage": (Fault(body=b"<html>"), "unreadable answer", True),
    "empty": (Fault(text=""), "empty answer", False),
    "blocked": (Fault(blocks=True), ": SAFETY", False),
    "invalid json": (Fault(text='{"tumor": false, "size"'), "broken JSON", False),
    "another image": (MENDED["another image"], "answer for another image", False),
    "another image, no schema": (
        Fault(text='{"image_id": "0badc0de", "tumor": true'),
        "broken JSON",
        False,
    ),
    "extra keys": (MENDED["extra keys"], "keys outside the schema: age", False),
}


@pytest.mark.parametrize(("fault", "reason", "is_transient"), LASTING.values(), ids=LASTING)
def test_a_fault_that_lasts_is_a_counted_failure(
    make: Make, ask: Any, server: LoopbackServer, fault: Fault, reason: str, is_transient: bool
) -> None:
    server.always = always(fault)
    (reply,) = ask(make())
    found = failure(reply)
    assert reason in found.reason
    assert found.is_transient is is_transient
    assert len(server.asked) == 3


@pytest.mark.parametrize("text", ["", '{"tumor": fal'])
def test_an_answer_cut_short_by_the_limit_is_a_failure(
    make: Make, ask: Any, server: LoopbackServer, plugin: ModuleType, text: str
) -> None:
    stopped = "MAX_TOKENS" if plugin is gemini else "length"
    server.always = always(Fault(stopped=stopped, text=text))
    (reply,) = ask(make())
    assert failure(reply) == Failure(f"stopped early: {stopped}")
    assert reply.usage.output_tokens == 3 * OUTPUT_TOKENS  # they are charged


def test_a_hang_ends_at_the_timeout(make: Make, ask: Any, server: LoopbackServer) -> None:
    server.always = always(Fault(hangs=True))
    started = time.monotonic()
    (reply,) = ask(make(timeout_s=0.1, max_attempts=2))
    assert failure(reply) == Failure("no answer: ReadTimeout", is_transient=True)
    assert 0.2 <= time.monotonic() - started < 3
    assert reply.usage.cost == pytest.approx(2 * (4096 * 1 + 512 * 10) / 1e6)  # the dearest


def test_a_server_that_is_not_there_charges_nothing(
    make: Make, ask: Any, server: LoopbackServer
) -> None:
    captioner = make()
    server.close()
    (reply,) = ask(captioner)
    assert failure(reply) == Failure("no answer: ConnectError", is_transient=True)
    assert reply.usage == Usage(requests=3)


def test_the_limit_learns_how_long_requests_are(
    make: Make, ask: Any, server: LoopbackServer
) -> None:
    captioner = make(max_cost=0.009, max_input_tokens=10)
    with pytest.raises(CostLimitError, match=r"2 requests have cost 0\.0040, and one more could "):
        ask(captioner, 8)
    assert len(server.asked) == 2  # a third could make it 0.0101, not the 0.0091 of ten tokens


def test_prose_is_left_to_the_parser(make: Make, ask: Any, server: LoopbackServer) -> None:
    server.always = always(Fault(text="Axial brain MRI showing no tumor."))
    (reply,) = ask(make())
    assert reply.answer == "Axial brain MRI showing no tumor."
    assert len(server.asked) == 3  # it was asked for JSON, and asked again


def test_a_request_that_is_wrong_by_itself_is_not_repeated(
    make: Make, ask: Any, server: LoopbackServer
) -> None:
    server.faults.append(Fault(status=413, message="image too large"))
    first, second = ask(make(), 2)
    assert failure(first) == Failure("HTTP 413: image too large")
    assert json.loads(second.answer)
    assert len(server.asked) == 2


@pytest.mark.parametrize("status", [401, 403, 404])
def test_refusal_of_every_request_ends_the_run(
    make: Make, ask: Any, server: LoopbackServer, status: int
) -> None:
    server.always = always(Fault(status=status, message="no such model"))
    with pytest.raises(RemoteError, match=rf"refuses: HTTP {status}: no such model\. See to"):
        ask(make(), 8)
    assert len(server.asked) <= 2


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
    ask(gemini.load(gemini.tiny().model_copy(update={"base_url": server.url})))
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


ONE = (INPUT_TOKENS * 1.0 + OUTPUT_TOKENS * 10.0) / 1e6


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


def test_the_key_is_nowhere(
    make: Make, ask: Any, server: LoopbackServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    captioner = make()
    server.faults.append(Fault(text=lambda asked: f"Axial MRI, no tumor, key {KEY}"))
    server.faults.append(Fault(status=500, message=f"bad: {KEY}"))
    server.faults.append(Fault(status=400, message=f"bad: {KEY}"))
    (reply,) = ask(captioner)
    assert reply.answer == "Axial MRI, no tumor, key [key]"
    server.faults.append(Fault(status=413, message=195 * "x" + KEY))
    (reply,) = ask(captioner)
    assert "x" + KEY[:3] not in failure(reply).reason  # not even where words are cut
    server.faults.append(Fault(status=413, message=f"bad: {KEY}"))
    (reply,) = ask(captioner)
    assert failure(reply).reason == "HTTP 413: bad: [key]"
    server.faults.append(Fault(status=403, message=f"{KEY} is not allowed"))
    with pytest.raises(RemoteError) as caught:
        ask(captioner)
    shown = "".join(
        traceback.TracebackException.from_exception(caught.value, capture_locals=True).format()
    )
    assert "[key] is not allowed" in shown
    assert server.asked and all(KEY in str(asked.headers) for asked in server.asked)
    for text in (shown, caplog.text, repr(captioner.settings), repr(vars(captioner))):
        assert KEY not in text


def test_gemini_says_400_for_a_wrong_key(server: LoopbackServer, ask: Any) -> None:
    server.always = always(Fault(status=400, message="API key not valid. Please pass one."))
    with pytest.raises(RemoteError, match="refuses: HTTP 401: API key not valid"):
        ask(gemini.load(gemini.tiny().model_copy(update={"base_url": server.url})))


def test_check_names_a_missing_key(plugin: ModuleType, make: Make, monkeypatch: Any) -> None:
    captioner = make()
    monkeypatch.delenv(KEY_VARIABLE)
    (line,) = plugin.check(captioner.settings)
    assert line.startswith(f"the environment variable '{KEY_VARIABLE}' is not set or empty")
    with pytest.raises(ConfigError, match=KEY_VARIABLE):
        plugin.load(captioner.settings)
    with pytest.raises(RemoteError, match=f"'{KEY_VARIABLE}' is not set or empty; export it"):
        list(captioner.describe([], []))


def test_check_names_a_missing_extra(plugin: ModuleType, monkeypatch: Any) -> None:
    def missing(name: str) -> None:
        if name == "google.genai":
            raise ModuleNotFoundError("google")

    monkeypatch.setattr("importlib.util.find_spec", missing)
    (line,) = plugin.check(plugin.tiny())
    extra = "gemini" if plugin is gemini else "openai-compatible"
    assert line.endswith(f"is not installed; run pip install -e '.[{extra}]'")


def test_a_key_in_the_config_is_refused_and_not_repeated(plugin: ModuleType) -> None:
    for values in ({"api_key_env": KEY}, {"base_url": f"https://me:{KEY}@host/v1"}):
        with pytest.raises(ValidationError, match=r"expected (the name|http\(s\)://HOST)") as error:
            plugin.Settings.model_validate({"model": "m", "max_cost": None} | values)
        assert KEY not in str(error.value)


def test_a_limit_needs_prices(plugin: ModuleType) -> None:
    with pytest.raises(ValidationError, match=r"max_cost 3\.0 needs input_price and output_price"):
        plugin.Settings.model_validate({"model": "some-new-model", "max_cost": 3})


def test_gemini_knows_prices_of_its_models() -> None:
    settings = gemini.Settings()
    assert (settings.input_price, settings.output_price) == (0.30, 2.50)
    assert gemini.Settings.model_validate(settings.model_dump()) == settings
    assert gemini.Settings(model="gemini-2.0-flash").input_price == 0.10
    assert gemini.Settings(input_price=9.0).input_price == 9.0


def test_images_leave_the_machine_or_not() -> None:
    assert gemini.uploads_to(gemini.Settings()) == "generativelanguage.googleapis.com"
    assert gemini.uploads_to(gemini.tiny()) is None
    for url, host in {
        "http://localhost:8000/v1": None,
        "http://127.0.0.2:8000/v1": None,
        "http://[::1]:8000/v1": None,
        "http://10.0.0.7:8000/v1": "10.0.0.7",
        "http://localhost.example.org/v1": "localhost.example.org",
    }.items():
        assert openai_compatible.uploads_to(openai_compatible.Settings(base_url=url)) == host


def test_identity_holds_what_decides_a_caption(
    plugin: ModuleType, slices: list[SliceRecord]
) -> None:
    first = plugin.tiny()
    base = plugin.cache_identity(first, slices[0])
    assert base == plugin.cache_identity(first, slices[1])  # blind: the class is no part of it
    for change in (
        {"prompt": "poster"},
        {"revision": "abc"},
        {"temperature": 0.5},
        {"max_tokens": 99},
        {"model": "other"},
    ):
        assert plugin.cache_identity(first.model_copy(update=change), slices[0]) != base
    for change in ({"concurrency": 3}, {"timeout_s": 9.0}, {"max_cost": 1.0}):
        assert plugin.cache_identity(first.model_copy(update=change), slices[0]) == base
    json.dumps(base.decoding)
