"""What a server does wrong: tried again, then a counted failure or a clear end."""

import json
import time
from types import ModuleType
from typing import Any

import pytest

from pipeline.errors import RemoteError
from stages.components.captioning import Failure, Usage
from stages.components.vlms import gemini
from tests.components.vlms.loopback import OUTPUT_TOKENS, Fault, LoopbackServer, report
from tests.components.vlms.remote.parts import Make, always, failure

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])


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
        ask(gemini.load(gemini.tiny().model_copy(update={"base_url": server.url})))
