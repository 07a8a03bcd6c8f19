"""`gemini` and `openai_compatible` against a server on this machine."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pipeline.contracts import SliceRecord
from stages.components.captioning.captioner import Paid
from stages.components.captioning.vlms import gemini, openai_compatible
from stages.components.captioning.vlms._remote import RemoteCaptioner
from tests.components.captioning.vlms.conftest import KEY_VARIABLE
from tests.components.captioning.vlms.loopback import LoopbackServer
from tests.components.captioning.vlms.remote.parts import Make


@pytest.fixture(params=[gemini, openai_compatible], ids=["gemini", "openai_compatible"])
def plugin(request: pytest.FixtureRequest) -> ModuleType:
    return request.param


@pytest.fixture
def make(plugin: ModuleType, server: LoopbackServer) -> Make:
    def build(**changes: Any) -> RemoteCaptioner:
        path = "/v1" if plugin is openai_compatible else ""
        values = {
            "model": "gemini-2.5-flash-lite",
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
