"""A part that is one new file works end to end, under its own name, without another edit."""

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline import registry
from pipeline.contracts import ArtifactWriter, Context, ScoreRecord
from pipeline.run import config
from pipeline.settings import EvaluateConfig, ReportConfig
from stages.evaluate import stage as evaluate
from stages.report import stage as report
from tests.stages.evaluate import parts as evaluate_parts
from tests.stages.report.parts import Fabricator

AddFile = Callable[[str, str, str], None]

METRIC = '''"""Share of synthetic slices that are as sharp as real ones; here always a quarter."""

import numpy as np

from stages.components.statistics.estimates import MetricSpec

SPEC = MetricSpec(
    key="edge_share",
    higher_is_better=True,
    least_n=2,
    citation="Nobody et al., a journal of edges, 2026",
    names={"edge_share": "Sharp edges"},
    is_share=True,
    section="Sharpness",
)


def compute(*, real, synthetic, rng=None):
    return 0.25


def resample(*, real, synthetic, paired=False):
    return np.full(min(len(real.weights), len(synthetic.weights)), 0.25)
'''


@pytest.fixture
def add_file(tmp_path: Path) -> Iterator[AddFile]:
    """Give a function that puts a file (package, name, text) beside the plug-ins of a package."""
    added: list[tuple[str, str]] = []
    folder = tmp_path / "added"

    def add(package: str, name: str, text: str) -> None:
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
        importlib.import_module(package).__path__.append(str(folder))
        importlib.invalidate_caches()
        added.append((package, name))

    yield add
    for package, name in added:
        sys.modules[package].__path__.remove(str(folder))
        sys.modules.pop(f"{package}.{name}", None)


def test_a_metric_is_one_file(add_file: AddFile, tmp_path: Path) -> None:
    add_file(registry.METRICS, "edges", METRIC)
    settings = {
        "experiment": "edges",
        "base_model": "tiny_sd15",
        "preprocess": {"source": "phantom"},
        "caption": {"vlm": "truth"},
        "evaluate": {"metrics": ["kid", "edges"]},
        "arms": [{"name": "one"}],
    }
    assert config.build(settings, where="test").evaluate.metrics == ("kid", "edges")

    with evaluate_parts.stand_ins():
        inputs = evaluate.EvaluateInputs(
            evaluate_parts.write_slices(tmp_path / "slices", {"train": 8, "test": 8}),
            {"one": evaluate_parts.write_arm(tmp_path / "one", 3, count=8)},
        )
        chosen = EvaluateConfig(
            metrics=("kid", "edges"), num_bootstrap=4, num_permutations=0, memorisation=False
        )
        scores, output = evaluate_parts.run(tmp_path, inputs, chosen)
    assert scores["one", "edge_share", "all"].value == 0.25

    fabricator = Fabricator(tmp_path / "run")
    made = fabricator.inputs(evaluate_notes=output.notes, evaluate_scores=list(scores.values()))
    writer = ArtifactWriter(tmp_path / "page", ScoreRecord)
    context = Context("edges", 11, "cpu", "float32", 1, tmp_path, lambda line: None)
    report.run(ReportConfig(images_per_class=1), made, writer, context)
    html = (tmp_path / "page" / "report.html").read_text(encoding="utf-8")
    for words in (
        "Sharpness, on blocks features",
        "Sharp edges (%)\u00a0↑",
        ">25.0<",
        "Nobody et al., a journal of edges, 2026",
    ):
        assert words in html
