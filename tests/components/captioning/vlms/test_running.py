"""The caption stage with captioners behind a server: kills, caches, costs, uploads, keys."""

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from pipeline import registry
from pipeline.contracts import (
    SCRATCH,
    Artifact,
    ArtifactWriter,
    CaptionRecord,
    Context,
    PluginConfig,
    SliceRecord,
    write_records,
)
from pipeline.errors import ConfigError, CostLimitError, RemoteError, SkippedTooManyError
from pipeline.run import checks, plan
from pipeline.run.config import build
from pipeline.settings import CaptionConfig, SourcePolicy
from stages.caption import stage as caption
from stages.components.captioning.cache import find_cache
from stages.components.captioning.captioner import Reply
from stages.components.captioning.journal import Journal
from tests.components.captioning.vlms.conftest import KEY, KEY_VARIABLE
from tests.components.captioning.vlms.loopback import OUTPUT_TOKENS, Fault, LoopbackServer
from tests.fabricate.vlms import tiny

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])
Run = Callable[..., ArtifactWriter[CaptionRecord]]


@pytest.fixture(autouse=True)
def words_are_tokens(add_file: Callable[..., Path]) -> None:
    add_file(registry.BASE_MODELS, "words")


@pytest.fixture
def run_stage(
    tmp_path: Path, server: LoopbackServer, slices: list[SliceRecord], paths: list[Path]
) -> Run:
    write_records(paths[0].parent / "records.jsonl", slices)
    artifact = Artifact(paths[0].parent, "0" * 64, SliceRecord, {})

    def run(
        name: str = "out",
        vlm: str = "openai_compatible",
        max_failed_fraction: float = 0.3,
        sources: Mapping[str, SourcePolicy] = {},
        **changes: Any,
    ) -> ArtifactWriter[CaptionRecord]:
        settings = {
            "base_url": server.url + ("/v1" if vlm == "openai_compatible" else ""),
            "api_key_env": KEY_VARIABLE,
            "requests_per_minute": None,
            "backoff_s": 0.001,
            "timeout_s": 5,
            "concurrency": 2,
            "batch_size": 4,
            "max_attempts": 2,
            "input_price": 1.0,
            "output_price": 10.0,
        }
        config = CaptionConfig(
            vlm=PluginConfig(name=vlm, settings=settings | changes),
            tokenizer=PluginConfig(name="words"),
            max_failed_fraction=max_failed_fraction,
            sources=dict(sources),
        )
        root = tmp_path / "runs" / name
        root.mkdir(parents=True, exist_ok=True)
        output = ArtifactWriter(root, CaptionRecord)
        context = Context("test", 0, "cpu", "float32", 1, tmp_path / "cache", lambda line: None)
        caption.run(config, caption.CaptionInputs(artifact), output, context)
        return output

    return run


def contents(root: Path) -> dict[str, bytes]:
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    names = {path.relative_to(root).as_posix(): path for path in files}
    return {n: path.read_bytes() for n, path in names.items() if not n.startswith(f"{SCRATCH}/")}


@pytest.mark.parametrize("vlm", ["gemini", "openai_compatible"])
def test_naming_a_captioner_is_all_it_takes(run_stage: Run, vlm: str) -> None:
    output = run_stage(vlm=vlm)
    records = list(Artifact(output.root, "", CaptionRecord, {}).records())
    assert {record.status for record in records} == {"ok"}
    assert all(record.report and record.report.tumor is False for record in records)
    assert output.notes["usage"]["requests"] == 8
    assert output.notes["usage"]["output_tokens"] == 8 * OUTPUT_TOKENS
    assert output.notes["usage"]["cost"] == pytest.approx(8 * 0.002)


class Killed(BaseException):
    """What no handler takes for a failure."""


def kill_at(monkeypatch: pytest.MonkeyPatch, point: int, torn: int) -> None:
    """Die while the line number `point` is written, after `torn` of its bytes."""
    append = Journal.append
    left = [point]

    def dying(self: Journal, replies: Mapping[str, Reply]) -> None:
        if left[0] == 0:
            scratch = Journal(self.path.with_suffix(".scratch"))
            append(scratch, replies)
            with self.path.open("ab") as file:
                file.write(scratch.path.read_bytes()[:torn])
            scratch.path.unlink()
            raise Killed
        left[0] -= 1
        append(self, replies)

    monkeypatch.setattr(Journal, "append", dying)


def test_kills_at_ten_random_points_leave_the_same_bytes(
    run_stage: Run, server: LoopbackServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line in eight goes wrong for good, so that failures are resumed too."""
    server.always = lambda asked: Fault(text="") if sum(asked.png) % 8 == 0 else None
    whole = contents(run_stage(name="whole", revision="whole").root)
    rng = random.Random(0)
    for number in range(10):
        name, point, torn = f"killed{number}", rng.randrange(8), rng.randrange(60)
        asked_before = len(server.asked)
        with monkeypatch.context() as patch:
            kill_at(patch, point, torn)
            with pytest.raises(Killed):
                run_stage(name=name, revision=name)  # a cache of its own
        journal = tmp_path / "runs" / name / SCRATCH / caption.JOURNAL
        lines = journal.read_bytes().count(b"\n") if journal.exists() else 0
        assert lines == point
        assert contents(run_stage(name=name, revision=name).root) == whole
        assert len(server.asked) - asked_before <= 2 * (8 + 4)  # at most a batch is asked twice


def test_other_experiments_ask_nothing_again(
    run_stage: Run, server: LoopbackServer, tmp_path: Path
) -> None:
    first = run_stage(name="one")
    assert len(server.asked) == 8
    second = run_stage(name="two", concurrency=1, timeout_s=9.0)
    assert len(server.asked) == 8
    assert contents(second.root) == contents(first.root)
    assert second.notes["usage"]["cost"] == 0
    assert len(list((tmp_path / "cache" / "captions").rglob("*.json"))) == 8
    run_stage(name="three", prompt="poster")
    run_stage(name="four", temperature=0.5)
    assert len(server.asked) == 24
    run_stage(name="five", vlm="gemini", model="google/gemma-3-12b-it", thinking_budget=None)
    assert len(server.asked) == 32


def test_failures_are_not_cached(run_stage: Run, server: LoopbackServer) -> None:
    server.faults.append(Fault(blocks=True))
    first = run_stage(name="one", concurrency=1)
    assert first.notes["failed"] == {"refused: SAFETY": 1}
    asked = len(server.asked)
    assert run_stage(name="two").counts["failed"] == 0
    assert len(server.asked) == asked + 1


def test_a_server_that_is_down_stops_the_run_early_and_is_asked_again(
    run_stage: Run, server: LoopbackServer
) -> None:
    server.always = lambda asked: Fault(status=503)
    with pytest.raises(SkippedTooManyError, match=r"4 of 8 captions failed.*HTTP 503"):
        run_stage()
    # one batch, each slice tried twice, and what was on its way
    assert 4 * 2 <= len(server.asked) < 8 * 2
    asked = len(server.asked)
    server.always = lambda asked: None
    output = run_stage()
    assert output.counts["failed"] == 0
    assert len(server.asked) == asked + 8
    assert output.notes["usage"]["requests"] == asked + 8  # what was on its way was paid for too


def test_what_failed_is_asked_again_by_the_next_run(
    run_stage: Run, server: LoopbackServer, tmp_path: Path
) -> None:
    """A wrong server may be mended: no failure is remembered as an answer."""
    server.always = lambda asked: Fault(text='{"error": "no image"}')
    with pytest.raises(SkippedTooManyError, match="keys outside the schema: error"):
        run_stage()
    asked = len(server.asked)
    server.always = lambda asked: None
    output = run_stage()
    assert output.counts["failed"] == 0
    assert len(server.asked) == asked + 8
    assert output.notes["usage"]["requests"] == asked + 8  # what failed was paid for all the same


def test_the_model_that_answered_stands_in_the_manifest(
    run_stage: Run, server: LoopbackServer
) -> None:
    server.always = lambda asked: Fault(model="google/gemma-3-12b-it@4f1c")
    assert run_stage().notes["answered_by"] == {"google/gemma-3-12b-it@4f1c": 8}
    again = run_stage(name="again")
    assert len(server.asked) == 8
    assert again.notes["answered_by"] == {"google/gemma-3-12b-it@4f1c": 8}  # the cache knows it too
    server.always = lambda asked: Fault(model="google/gemma-3-4b-it")
    with pytest.raises(SkippedTooManyError, match=r"'google/gemma-3-4b-it' answered in place of"):
        run_stage(name="other", revision="2")


def test_what_was_paid_for_is_kept_at_the_limit(run_stage: Run, server: LoopbackServer) -> None:
    with pytest.raises(CostLimitError, match=r"over max_cost 0\.015"):
        run_stage(name="poor", max_cost=0.015, max_input_tokens=1000, concurrency=1)
    paid = len(server.asked)
    assert 0 < paid < 8
    with pytest.raises(CostLimitError, match=f"{paid} requests have cost"):
        run_stage(name="poor", max_cost=0.015, max_input_tokens=1000, concurrency=1)
    assert len(server.asked) == paid  # a resumed run knows what the first has spent
    run_stage(name="rich", max_cost=1.0)
    assert len(server.asked) == 8


@pytest.mark.parametrize("vlm", ["gemini", "openai_compatible"])
def test_slices_leave_the_machine_only_if_their_source_allows_it(
    run_stage: Run, server: LoopbackServer, vlm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = "http://192.0.2.7:9/v1"  # kept for documentation; nobody is there
    for sources in (
        {},
        {"image_folder": SourcePolicy()},
        {"dicom": SourcePolicy(allow_upload=True)},
    ):
        with pytest.raises(
            ConfigError,
            match=rf"{vlm} would send slices of the source 'image_folder' to 192\.0\.2\.7; .* "
            r"caption\.sources\.image_folder\.allow_upload: true",
        ):
            run_stage(vlm=vlm, base_url=away, sources=sources)
    allowed = {"image_folder": SourcePolicy(allow_upload=True)}
    monkeypatch.delenv(KEY_VARIABLE)  # the next thing to be missed, before any request
    with pytest.raises(ConfigError, match=f"'{KEY_VARIABLE}' is not set or empty"):
        run_stage(vlm=vlm, base_url=away, sources=allowed)


def test_check_names_the_key_and_the_permission(tmp_path: Path) -> None:
    experiment = {
        "experiment": "trial",
        "base_model": "tiny_sd15",
        "preprocess": {"source": "phantom", "image_size": 128},
        "caption": {"vlm": "gemini"},
        "finetune": {"resolution": 128},
        "generate": {"image_size": 128},
        "evaluate": {},
        "classify": {"image_size": 128},
        "report": {},
    }
    settings = build(experiment, where="test")
    found = checks.problems(plan.plan(settings), settings, tmp_path)
    assert any(line.startswith("vlms/gemini: the environment variable 'GEMINI_A") for line in found)
    assert any("set caption.sources.phantom.allow_upload: true" in line for line in found)


@pytest.mark.parametrize("vlm", ["gemini", "openai_compatible"])
def test_the_key_stands_in_no_file(
    run_stage: Run, server: LoopbackServer, tmp_path: Path, vlm: str
) -> None:
    """A server that repeats the key in answers and errors, a run that fails, one that ends well."""
    words = json.dumps({"tumor": False, "general_description": f"MRI, {KEY}"})
    told = Fault(text=words)
    server.faults.extend(
        [told, told, Fault(status=413, message=KEY), Fault(status=403, message=KEY)]
    )
    with pytest.raises(RemoteError, match=r"HTTP 403: \[key\]"):
        run_stage(vlm=vlm, concurrency=1)
    journal = (tmp_path / "runs" / "out" / SCRATCH / caption.JOURNAL).read_text()
    assert "MRI, [key]" in journal
    assert "HTTP 413: [key]" in journal
    output = run_stage(vlm=vlm)
    (tmp_path / "notes.json").write_text(json.dumps([output.notes, output.counts]))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 25
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []
    assert KEY in str(server.asked[0].headers)  # it was in use


def test_truth_is_not_cached(tmp_path: Path, slices: list[SliceRecord]) -> None:
    from stages.components.captioning.vlms import gemini, precomputed, truth

    for plugin in (truth, precomputed):
        assert find_cache(plugin, tiny(plugin, tmp_path), "name", tmp_path) is None
    cache = find_cache(gemini, gemini.Settings(), "gemini", tmp_path)
    assert cache is not None and cache.folder == tmp_path / "captions"
