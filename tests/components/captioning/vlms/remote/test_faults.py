"""What a server does wrong: tried again, then a counted failure or a clear end."""

import json
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from pipeline.errors import CostLimitError, RemoteError
from stages.components.captioning.captioner import Failure, Usage
from stages.components.captioning.vlms import gemini, openai_compatible
from tests.components.captioning.vlms.loopback import (
    OUTPUT_TOKENS,
    Asked,
    Fault,
    LoopbackServer,
    report,
)
from tests.components.captioning.vlms.remote.parts import Make, always, failure

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])


MENDED = {
    "429": Fault(status=429, headers={"Retry-After": "0"}),
    "500": Fault(status=500),
    "503": Fault(status=503, message="overloaded"),
    "hung up": Fault(cuts=True),
    "garbage": Fault(body=b"<html>bad gateway</html>"),
    "empty object": Fault(body=b"[]"),
    "empty": Fault(text=""),
    "invalid json": Fault(text='{"tumor": false, "location"'),
    "something else": Fault(text='{"error": "no image"}'),
    "value outside the lists": Fault(text=lambda asked: json.dumps(report(asked, size="tiny"))),
}
UNHEARD = ("429", "500", "503", "hung up", "garbage")  # no answer that could be done better


def sampling(asked: Asked) -> tuple[float, int]:
    """How a request was to be answered: temperature, and longest answer."""
    body = asked.body.get("generationConfig", asked.body)
    return body["temperature"], body.get("maxOutputTokens", body.get("max_tokens"))


@pytest.mark.parametrize("name", MENDED)
def test_a_fault_is_tried_again(make: Make, ask: Any, server: LoopbackServer, name: str) -> None:
    server.faults.append(MENDED[name])
    (reply,) = ask(make())
    assert json.loads(reply.answer)["tumor"] is False
    assert reply.usage.requests == 2
    first, second = server.asked
    assert sampling(first) == (0.0, 512)
    if name != "empty object":  # which Gemini's own library takes for an answer
        assert sampling(second) == (0.0 if name in UNHEARD else 0.7, 512)


LASTING = {
    "429": (Fault(status=429, message="slow down"), "HTTP 429: slow down"),
    "500": (Fault(status=500), "HTTP 500: something went wrong"),
    "hung up": (Fault(cuts=True), "no answer: RemoteProtocolError"),
    "garbage": (Fault(body=b"<html>"), "unreadable answer"),
    "empty": (Fault(text=""), "empty answer"),
    "invalid json": (Fault(text='{"tumor": false, "size"'), "broken JSON"),
    "something else": (MENDED["something else"], "keys outside the schema: error"),
}


@pytest.mark.parametrize(("fault", "reason"), LASTING.values(), ids=LASTING)
def test_a_fault_that_lasts_is_a_counted_failure(
    make: Make, ask: Any, server: LoopbackServer, fault: Fault, reason: str
) -> None:
    server.always = always(fault)
    (reply,) = ask(make())
    assert reason in failure(reply).reason
    assert len(server.asked) == 3


def test_json_nested_too_deep_is_a_failure(
    make: Make, ask: Any, server: LoopbackServer, plugin: ModuleType
) -> None:
    server.always = always(Fault(text='{"tumor": ' * 3000 + "}" * 3000))
    (reply,) = ask(make())
    assert failure(reply).reason == (
        "unreadable answer: RecursionError" if plugin is gemini else "broken JSON"
    )


def test_a_block_is_final(make: Make, ask: Any, server: LoopbackServer, plugin: ModuleType) -> None:
    stopped = "PROHIBITED_CONTENT" if plugin is gemini else "content_filter"
    for fault, reason in ((Fault(blocks=True), ": SAFETY"), (Fault(stopped=stopped), stopped)):
        server.asked.clear()
        server.always = always(fault)
        (reply,) = ask(make())
        assert failure(reply).reason.endswith(reason)
        assert len(server.asked) == 1
        assert reply.usage.output_tokens == OUTPUT_TOKENS  # it is charged


@pytest.mark.parametrize("text", ["", '{"tumor": fal'])
def test_an_answer_that_was_cut_gets_more_tokens_once(
    make: Make, ask: Any, server: LoopbackServer, plugin: ModuleType, text: str
) -> None:
    cut = Fault(stopped="MAX_TOKENS" if plugin is gemini else "length", text=text)
    server.faults.append(cut)
    (reply,) = ask(make())
    assert json.loads(reply.answer)
    assert [sampling(asked) for asked in server.asked] == [(0.0, 512), (0.0, 2048)]
    server.asked.clear()
    server.always = always(cut)
    (reply,) = ask(make(max_attempts=4))
    assert failure(reply) == Failure(f"stopped early: {cut.stopped}")
    assert len(server.asked) == 2
    assert reply.usage.output_tokens == 2 * OUTPUT_TOKENS  # they are charged


def test_more_tokens_are_not_asked_for_beyond_the_limit_of_cost(
    make: Make, ask: Any, server: LoopbackServer, plugin: ModuleType
) -> None:
    server.always = always(Fault(stopped="MAX_TOKENS" if plugin is gemini else "length"))
    with pytest.raises(CostLimitError, match=r"1 requests have cost 0\.0020, and one more could"):
        ask(make(max_cost=0.01, max_input_tokens=1000))  # 2,048 tokens alone could cost 0.0205


READ = {
    "thoughts": lambda text: f"<think>Is it {{left}}? No.</think>\n{text}",
    "thoughts that the template began": lambda text: f"Is it {{left}}? No.</think>\n{text}",
    "one key too many": lambda text: text.replace("{", '{"image_id": "a1", ', 1),
    "a fence": lambda text: f"```json\n{text}\n```",
}


@pytest.mark.parametrize("change", READ.values(), ids=READ)
def test_what_stands_around_the_answer_does_no_harm(
    make: Make, ask: Any, server: LoopbackServer, change: Callable[[str], str]
) -> None:
    server.always = always(Fault(text=lambda asked: change(json.dumps(report(asked)))))
    (reply,) = ask(make())
    assert json.loads(reply.answer) == report(server.asked[0])
    assert len(server.asked) == 1


@pytest.mark.parametrize("stopped", ["eos", "stop_sequence", "end_turn"])
def test_other_words_for_a_whole_answer(server: LoopbackServer, ask: Any, stopped: str) -> None:
    server.always = always(Fault(stopped=stopped))
    (reply,) = ask(openai_compatible.load(near(server)))
    assert json.loads(reply.answer)
    assert len(server.asked) == 1


def test_content_may_come_in_parts(server: LoopbackServer, ask: Any) -> None:
    text = '{"tumor": false, "orientation": "axial"}'
    parts = [
        {"type": "thinking", "thinking": "{left}?"},
        {"type": "text", "text": text[:9]},
        {"type": "text", "text": text[9:]},
    ]
    server.always = always(Fault(content=parts))
    (reply,) = ask(openai_compatible.load(near(server, max_attempts=1)))
    assert reply.answer == text


@pytest.mark.parametrize("content", [{"text": "x"}, ["x"], [{"text": "x"}], 3])
def test_content_of_another_form_is_a_failure(
    server: LoopbackServer, ask: Any, content: Any
) -> None:
    server.always = always(Fault(content=content))
    (reply,) = ask(openai_compatible.load(near(server)))
    assert failure(reply).reason.startswith("unreadable answer: ")


def near(server: LoopbackServer, **changes: Any) -> openai_compatible.Settings:
    own = {"model": "tiny", "base_url": f"{server.url}/v1", "backoff_s": 0.001, **changes}
    return openai_compatible.Settings.model_validate(own)


def test_another_model_that_answers_is_a_failure_that_says_so(
    make: Make, ask: Any, server: LoopbackServer
) -> None:
    server.always = always(Fault(model="gemini-3.5-flash-lite"))
    first, second = ask(make(), 2)
    assert failure(first).reason == (
        "'gemini-3.5-flash-lite' answered in place of 'gemini-2.5-flash-lite'; if that is the one "
        "that is meant, set caption.vlm.settings.served_as to it"
    )
    assert first.model == second.model == "gemini-3.5-flash-lite"
    assert len(server.asked) == 2  # asking again is no use
    (reply,) = ask(make(served_as="gemini-3.5-flash-lite"))
    assert json.loads(reply.answer)
    assert reply.model == "gemini-3.5-flash-lite"
    (reply,) = ask(make(served_as="a-name-of-ours"))
    assert "in place of 'a-name-of-ours'" in failure(reply).reason


def test_a_hang_ends_at_the_timeout(make: Make, ask: Any, server: LoopbackServer) -> None:
    server.always = always(Fault(hangs=True))
    started = time.monotonic()
    (reply,) = ask(make(timeout_s=0.1, max_attempts=2))
    assert failure(reply) == Failure("no answer: ReadTimeout")
    assert 0.2 <= time.monotonic() - started < 9  # twice 10 s, had it waited for the server
    assert reply.usage.cost == pytest.approx(2 * (4096 * 1 + 512 * 10) / 1e6)  # the dearest


def test_a_server_that_is_not_there_charges_nothing(
    make: Make, ask: Any, server: LoopbackServer
) -> None:
    captioner = make()
    server.close()
    (reply,) = ask(captioner)
    assert failure(reply) == Failure("no answer: ConnectError")
    assert reply.usage == Usage(requests=3)


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


def test_gemini_says_400_for_a_wrong_key(server: LoopbackServer, ask: Any) -> None:
    server.always = always(Fault(status=400, message="API key not valid. Please pass one."))
    with pytest.raises(RemoteError, match="refuses: HTTP 401: API key not valid"):
        ask(gemini.load(gemini.Settings(base_url=server.url, api_key_env=None)))
