"""What is sent, whose answer is whose, and where keys and slices may not go."""

import json
import logging
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.contracts import SliceRecord
from pipeline.errors import ConfigError, RemoteError
from stages.components.captioning.questions import PROMPT_VERSION, bounded_schema
from stages.components.captioning.vlms import gemini, openai_compatible
from stages.components.captioning.vlms._remote_settings import is_near, is_same_model
from stages.components.tumor_report.parsing import parse
from stages.components.tumor_report.rendering import LABEL_WORDS
from tests.components.captioning.vlms.conftest import KEY, KEY_VARIABLE
from tests.components.captioning.vlms.loopback import Asked, Fault, LoopbackServer, report
from tests.components.captioning.vlms.remote.parts import Make, failure
from tests.fabricate.vlms import NOBODY, tiny

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])


def test_each_image_gets_its_own_answer(
    make: Make, ask: Any, server: LoopbackServer, paths: list[Path]
) -> None:
    server.pause_s = 0.02
    replies = ask(make(concurrency=4), 8)
    by_png = {asked.png: report(asked) for asked in server.asked}
    for reply, path in zip(replies, paths, strict=True):
        expected = by_png[path.read_bytes()]
        assert json.loads(reply.answer) == expected
        assert parse(reply.answer).orientation == expected["orientation"]
    assert 2 <= server.most_at_once <= 4


def test_no_request_waits_for_the_slowest_of_others(
    make: Make, ask: Any, server: LoopbackServer
) -> None:
    def slow(asked: Asked) -> None:
        if asked is server.asked[0]:
            first_answered.wait(5)

    first_answered = threading.Event()
    server.always = slow
    captioner = make(concurrency=2, batch_size=2, timeout_s=10)
    watcher = threading.Timer(
        0, lambda: _wait_until(lambda: len(server.asked) >= 4, first_answered)
    )
    watcher.start()
    replies = ask(captioner, 8)
    watcher.join()
    assert first_answered.is_set()  # by then three others had been asked, of other batches
    assert [json.loads(reply.answer) for reply in replies]


def _wait_until(holds: Callable[[], bool], told: threading.Event) -> None:
    for _ in range(400):
        if holds():
            told.set()
            return
        time.sleep(0.01)


def test_what_is_sent(make: Make, ask: Any, server: LoopbackServer, plugin: ModuleType) -> None:
    ask(make(prompt="blind", max_tokens=321), 4)
    sent = server.asked[0]
    said = json.dumps(sent.body)
    assert "patient" not in said and "train" not in said  # ids, names, splits stay here
    assert not any(words in said for words in LABEL_WORDS.values() if words != "no tumor")
    assert sent.png.startswith(b"\x89PNG")
    if plugin is gemini:
        assert sent.path.endswith("/models/gemini-2.5-flash-lite:generateContent")
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
    assert schema == bounded_schema()
    assert schema["additionalProperties"] is False
    # One prompt and one schema for all: servers compile a grammar once and keep the prompt's state.
    assert len({json.dumps([asked.prompt, schema]) for asked in server.asked}) == 1


def test_poster_prompt_gives_the_class_away(make: Make, ask: Any, server: LoopbackServer) -> None:
    ask(make(prompt="poster"), 4)
    for asked, words in zip(server.asked, LABEL_WORDS.values(), strict=True):
        assert f"with the diagnosis: {words}." in asked.prompt


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


def test_check_names_a_missing_key(plugin: ModuleType, make: Make, monkeypatch: Any) -> None:
    captioner = make()
    monkeypatch.delenv(KEY_VARIABLE)
    (line,) = plugin.check(captioner.settings)
    assert line.startswith(f"the environment variable '{KEY_VARIABLE}' is not set or empty")
    with pytest.raises(ConfigError, match=KEY_VARIABLE):
        plugin.load(captioner.settings)
    with pytest.raises(RemoteError, match=f"'{KEY_VARIABLE}' is not set or empty; export it"):
        list(captioner.describe([], []))


def test_check_names_a_missing_extra(plugin: ModuleType, tmp_path: Path, monkeypatch: Any) -> None:
    def missing(name: str) -> None:
        if name == "google.genai":
            raise ModuleNotFoundError("google")

    monkeypatch.setattr("importlib.util.find_spec", missing)
    (line,) = plugin.check(tiny(plugin, tmp_path))
    extra = "gemini" if plugin is gemini else "openai-compatible"
    assert line.endswith(f"is not installed; run pip install -e '.[{extra}]'")


def test_a_key_in_the_config_is_refused_and_not_repeated(plugin: ModuleType) -> None:
    for values in ({"api_key_env": KEY}, {"base_url": f"https://me:{KEY}@host/v1"}):
        with pytest.raises(ValidationError, match=r"expected (the name|http\(s\)://HOST)") as error:
            plugin.Settings.model_validate({"model": "m", "max_cost": None} | values)
        assert KEY not in str(error.value)


def test_images_leave_the_machine_or_not() -> None:
    assert gemini.uploads_to(gemini.Settings()) == "generativelanguage.googleapis.com"
    assert gemini.uploads_to(gemini.Settings(base_url=NOBODY)) is None
    for url, host in {
        "http://localhost:8000/v1": None,
        "http://127.0.0.2:8000/v1": None,
        "http://[::1]:8000/v1": None,
        "http://10.0.0.7:8000/v1": "10.0.0.7",
        "http://localhost.example.org/v1": "localhost.example.org",
    }.items():
        assert openai_compatible.uploads_to(openai_compatible.Settings(base_url=url)) == host


def test_identity_holds_what_decides_a_caption(
    plugin: ModuleType, slices: list[SliceRecord], tmp_path: Path
) -> None:
    first = tiny(plugin, tmp_path).model_copy(update={"temperature": 0.1})
    base = plugin.cache_identity(first, slices[0])
    assert base == plugin.cache_identity(first, slices[1])  # blind: the class is no part of it
    for change in (
        {"prompt": "poster"},
        {"revision": "abc"},
        {"temperature": 0.5},
        {"max_tokens": 99},
        {"model": "other"},
        {"base_url": "http://127.0.0.1:10/v1"},
        {"served_as": "other"},
        {"temperature": None},
        {"retry_temperature": 1.0},
        {"extra_body": {"top_k": 1}},
    ):
        assert plugin.cache_identity(first.model_copy(update=change), slices[0]) != base
    for change in ({"concurrency": 3}, {"timeout_s": 9.0}, {"max_cost": 1.0}):
        assert plugin.cache_identity(first.model_copy(update=change), slices[0]) == base
    assert base.decoding["prompt_version"] == PROMPT_VERSION
    json.dumps(base.decoding)


def test_nothing_goes_by_way_of_a_proxy_to_this_machine(
    make: Make, ask: Any, server: LoopbackServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = LoopbackServer()
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, proxy.url)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    ask(make())
    ask(make(base_url=make().settings.base_url.replace("127.0.0.1", "localhost")))
    proxy.close()
    assert (len(server.asked), len(proxy.asked)) == (2, 0)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://localhost:8000/v1", True),
        ("http://127.0.0.2/v1", True),
        ("http://[::1]:8000/v1", True),
        ("http://10.0.0.7:8000/v1", True),
        ("http://192.168.1.4/v1", True),
        ("http://[fe80::1]/v1", True),
        ("http://gpu-box:8000/v1", True),
        ("http://vllm.localhost/v1", True),
        ("http://localhost.example.org/v1", False),
        ("http://8.8.8.8/v1", False),
        ("https://generativelanguage.googleapis.com", False),
    ],
)
def test_what_lies_so_near_that_no_proxy_is_between(url: str, expected: bool) -> None:
    assert is_near(url) is expected


@pytest.mark.parametrize(
    ("asked", "answered", "expected"),
    [
        ("gemini-3.5-flash-lite", "gemini-3.5-flash-lite", True),
        ("gemini-2.5-flash", "models/gemini-2.5-flash-preview-05-20", True),
        ("gemini-2.5-flash", "gemini-2.5-flash-001", True),
        ("gpt-5-mini", "gpt-5-mini-2025-08-07", True),
        ("google/gemma-3-12b-it", "gemma-3-12b-it", True),
        ("data/embedded/llava", "data/embedded/llava@main", True),
        ("google/gemma-3-12b-it", "google/gemma-3-12B-it:latest", True),
        ("gemini-2.5-flash", "gemini-2.5-flash-lite", False),
        ("gemini-1.5-flash", "gemini-1.5-flash-8b", False),
        ("gemini-2.5-flash", "gemini-3.5-flash-lite", False),
        ("gpt-4", "gpt-4o", False),
        ("google/gemma-3-12b-it", "other/gemma-3-12b-it", False),
    ],
)
def test_a_version_is_the_same_model_and_a_size_is_not(
    asked: str, answered: str, expected: bool
) -> None:
    assert is_same_model(asked, answered) is expected


def test_extra_body_is_sent_and_a_temperature_need_not_be(
    make: Make, ask: Any, server: LoopbackServer, plugin: ModuleType
) -> None:
    is_gemini = plugin is gemini
    extra = {"generationConfig": {"topK": 1}} if is_gemini else {"top_k": 1}
    (reply,) = ask(make(temperature=None, extra_body=extra))
    body = server.asked[0].body
    sent = body["generationConfig"] if is_gemini else body
    assert sent["topK" if is_gemini else "top_k"] == 1
    assert "temperature" not in sent
    assert sent["maxOutputTokens" if is_gemini else "max_tokens"] == 512
    assert json.loads(reply.answer)


@pytest.mark.parametrize("key", ["model", "messages", "contents"])
def test_extra_body_may_not_ask_something_else(plugin: ModuleType, key: str) -> None:
    with pytest.raises(ValidationError, match=f"extra_body may not hold '{key}'"):
        plugin.Settings.model_validate({"extra_body": {key: "x"}})


def test_gemini_thinks_as_little_as_the_model_can(server: LoopbackServer, ask: Any) -> None:
    sent = []
    for values in ({}, {"model": "gemini-2.5-flash-lite"}, {"thinking_level": "high"}):
        fixed = {"base_url": server.url, "api_key_env": None}
        ask(gemini.load(gemini.Settings.model_validate(fixed | values)))
        sent.append(server.asked[-1].body["generationConfig"])
    level, budget, high = (config["thinkingConfig"] for config in sent)
    assert [name.lower() for name in level.values()] == ["minimal"]
    assert list(budget.values()) == [0]
    assert [name.lower() for name in high.values()] == ["high"]
    assert ["temperature" in config for config in sent] == [False, True, False]
    with pytest.raises(ValidationError, match="'low' and thinking_budget 5 exclude each other"):
        gemini.Settings(thinking_level="low", thinking_budget=5)
