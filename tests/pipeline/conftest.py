"""Fake parts and fake stages: the plumbing is tested without any model or image."""

import textwrap
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline import registry, settings
from pipeline.contracts import Artifact, ArtifactWriter, Context, Record, Stage, write_records
from pipeline.run import code_digest, runner
from pipeline.run import config as run_config
from pipeline.run.plan import STAGES
from pipeline.run.runner import Workplace
from tests.fabricate import plugins

PARTS = {
    "sources/folder.py": """
        from pipeline.contracts import Section
        from pydantic import Field

        class Settings(Section):
            root: str = "raw"
            num_scans: int = Field(4, ge=1)

        def check(settings):
            return ["no folder 'gone'; put the data there"] if settings.root == "gone" else []
    """,
    "vlms/truth.py": """
        from pipeline.contracts import Section

        class Settings(Section):
            pass
    """,
    "vlms/model.py": """
        from pipeline.contracts import Section

        class Settings(Section):
            temperature: float = 0.0
    """,
    "base_models/tiny_a.py": """
        from pathlib import Path
        from pipeline.contracts import Section
        from pipeline.errors import MissingWeightsError

        class Settings(Section):
            weights: str = ""

        def input_digest(settings):
            if settings.weights == "gone":
                raise MissingWeightsError("no weights 'gone'")
            return Path(settings.weights).read_text() if settings.weights else "built in"
    """,
    "base_models/tiny_b.py": """
        from pipeline.contracts import Section

        class Settings(Section):
            pass
    """,
    "extractors/efficientnet_lite0.py": """
        from pipeline.contracts import Section

        class Settings(Section):
            pass
    """,
    "metrics/kid.py": """
        from types import SimpleNamespace

        SPEC = SimpleNamespace(least_n=2)
    """,
    "metrics/fid.py": """
        from types import SimpleNamespace

        SPEC = SimpleNamespace(least_n=3)
    """,
    **{
        f"metrics/{name}.py": """
            from types import SimpleNamespace

            SPEC = SimpleNamespace(least_n=2)
        """
        for name in ("prdc", "ms_ssim", "feature_spread")  # the other defaults
    },
    "classifiers/vit.py": """
        from pipeline.contracts import Section

        class Settings(Section):
            pass
    """,
    "classifiers/always_tumor.py": "",
    "classifiers/metadata_only.py": "",
    "classifiers/intensity_only.py": "",
    "explanations/occlusion.py": "",
    "judges/embedded.py": "",
    "classifiers/_shared.py": "raise RuntimeError('not a plug-in')",
}

EXPERIMENT = """
experiment: trial
seed: 7
base_model: tiny_a
preprocess: {source: {name: folder, settings: {num_scans: 2}}, image_size: 64}
caption: {vlm: truth}
finetune: {resolution: 64, max_steps: 20, warmup_steps: 2, lora_rank: 4}
generate: {image_size: 64, num_images: 8, batch_size: 4}
evaluate: {}
classify: {image_size: 64, max_steps: 10, warmup_steps: 1}
report: {}
arms:
  - name: a4
  - name: a8
    finetune: {lora_rank: 8}
  - name: b4
    base_model: tiny_b
"""


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Replace every folder of plug-ins by one of fakes; return the folder that holds them all."""
    root = tmp_path / "parts"
    for name, text in PARTS.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    # The real stages' code may be edited while the tests run; the fakes' digest stands still.
    monkeypatch.setattr(
        code_digest, "source_files", lambda stage, plugins: {f"stages/{stage}/stage.py": stage}
    )
    with ExitStack() as stack:
        for package in registry.KINDS:
            stack.enter_context(plugins.replaced(package, root / package.rpartition(".")[2]))
        yield root


@pytest.fixture
def experiment_file(tmp_path: Path, parts: Path) -> Path:
    """Write an experiment of three arms on fake parts."""
    path = tmp_path / "trial.yaml"
    path.write_text(EXPERIMENT)
    return path


@pytest.fixture
def load(experiment_file: Path) -> Callable[..., settings.RunConfig]:
    """Load the experiment with `--set` overrides."""
    return lambda *overrides: run_config.load(experiment_file, overrides)


class Row(Record):
    """What every fake stage writes."""

    text: str


@dataclass
class FakeStages:
    """Stages that write down what they were given; any of them can be told to fail."""

    calls: list[tuple[str, Any, Any, Context]] = field(default_factory=list)
    fail: dict[str, BaseException] = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)  # these write no records
    notes: dict[str, Any] = field(default_factory=dict)  # what each says in its notes
    records: dict[str, list[Record]] = field(default_factory=dict)  # in place of its own
    deliver: Callable[[Any, Path], str] | None = None

    def names(self) -> list[str]:
        """Names of the stages that ran, in order."""
        return [name for name, *_ in self.calls]

    def load(self, name: str) -> Stage:
        """Stand in for `runner.load_stage`."""
        return Stage(name, self._run(name), CONFIGS[name], INPUTS[name], Row, self.deliver)

    def _run(self, name: str) -> Callable[[Any, Any, ArtifactWriter[Any], Context], None]:
        def run(config: Any, inputs: Any, output: ArtifactWriter[Any], context: Context) -> None:
            self.calls.append((name, config, inputs, context))
            journal = output.path("journal.txt")
            with journal.open("a") as out:
                out.write("visit\n")
            context.progress(f"{name}: half way")
            if name in self.fail:
                raise self.fail[name]
            output.notes["visits"] = len(journal.read_text().splitlines())
            output.notes |= self.notes.get(name, {})
            if name not in self.silent:
                output.write([Row(text=name)])
            if name in self.records:
                write_records(output.path("records.jsonl"), self.records[name])
            if name == "report":
                output.path("index.html").write_text("<html></html>")

        return run


ARTIFACT = Artifact[Row]
PORTS: dict[str, dict[str, Any]] = {
    "preprocess": {},
    "caption": {"preprocess": ARTIFACT},
    "finetune": {"preprocess": ARTIFACT, "caption": ARTIFACT},
    "generate": {
        "finetune": ARTIFACT | None,
        "caption": ARTIFACT | None,
        "preprocess": ARTIFACT | None,
    },
    "evaluate": {"preprocess": ARTIFACT, "generate": dict[str, ARTIFACT]},
    "classify": {
        "preprocess": ARTIFACT,
        "generate": dict[str, ARTIFACT],
        "cross_test": dict[str, ARTIFACT],
    },
    "report": {
        "preprocess": ARTIFACT,
        "caption": dict[str, ARTIFACT],
        "finetune": dict[str, ARTIFACT],
        "generate": dict[str, ARTIFACT],
        "evaluate": ARTIFACT,
        "classify": ARTIFACT,
    },
}
INPUTS = {name: make_dataclass(f"{name}_inputs", list(PORTS[name].items())) for name in STAGES}
CONFIGS: dict[str, type] = {
    name: getattr(settings, f"{name.capitalize()}Config") for name in STAGES
}


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> FakeStages:
    """Put fake stages in the place of the real ones."""
    fake = FakeStages()
    monkeypatch.setattr(runner, "load_stage", fake.load)
    return fake


@pytest.fixture
def said() -> list[str]:
    """Lines that the runner said."""
    return []


@pytest.fixture
def workplace(tmp_path: Path, said: list[str]) -> Workplace:
    """A data folder of the test's own."""
    return Workplace(tmp_path / "data", 1, said.append, said.append)
