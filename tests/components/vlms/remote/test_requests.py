"""What is sent, whose answer is whose, and where keys and slices may not go."""

import json
import logging
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.contracts import SliceRecord
from pipeline.errors import ConfigError, RemoteError
from stages.components.tumor_report import LABEL_WORDS, parse
from stages.components.vlms import gemini, openai_compatible
from tests.components.vlms.conftest import KEY, KEY_VARIABLE
from tests.components.vlms.loopback import Fault, LoopbackServer, report
from tests.components.vlms.remote.parts import Make, failure

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])


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
