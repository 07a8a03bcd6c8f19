"""A part that is one new file works end to end, under its own name, without another edit."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline import registry
from pipeline.contracts import (
    Artifact,
    ArtifactWriter,
    CaptionRecord,
    Context,
    PluginConfig,
    ScoreRecord,
    SliceRecord,
    SyntheticRecord,
)
from pipeline.errors import ConfigError
from pipeline.run import checks, config, plan
from pipeline.settings import (
    CaptionConfig,
    EvaluateConfig,
    PreprocessConfig,
    ReportConfig,
    RunConfig,
)
from stages.caption import stage as caption
from stages.classify import stage as classify
from stages.evaluate import stage as evaluate
from stages.generate.stage import GenerateInputs
from stages.preprocess import stage as preprocess
from stages.report import stage as report
from stages.report.artifacts import ReportInputs
from tests.stages.classify import parts as classify_parts
from tests.stages.evaluate import parts as evaluate_parts
from tests.stages.evaluate import test_stage_location as location
from tests.stages.finetune.conftest import build_inputs
from tests.stages.finetune.conftest import make as finetune
from tests.stages.generate.conftest import make as generate
from tests.stages.report.parts import Fabricator

AddFile = Callable[..., Path]

# Of each kind a file of `tests/fabricate/parts`, and the stages that use it.
NEW = {
    registry.SOURCES: ("drawings", ("preprocess",)),
    registry.VLMS: ("parrot", ("caption", "evaluate")),
    registry.BASE_MODELS: ("nova", ("caption", "finetune", "generate", "evaluate")),
    registry.REFINERS: ("again", ("generate",)),
    registry.GUIDANCE: ("nudge", ("generate",)),
    registry.WITHHOLDING: ("first", ("generate",)),
    registry.FEATURES: ("blocks", ("evaluate",)),
    registry.METRICS: ("edges", ("evaluate",)),
    registry.CLASSIFIERS: ("plain", ("classify",)),
    registry.EXPLANATIONS: ("middle", ("classify",)),
    registry.JUDGES: ("bright", ("evaluate",)),
}
EXPERIMENT = {
    "experiment": "new",
    "base_model": "nova",
    "preprocess": {"source": "drawings", "image_size": 32},
    "caption": {"vlm": {"name": "parrot", "settings": {"side": "right"}}},
    "finetune": {"resolution": 32},
    "generate": {
        "image_size": 32,
        "refiner": "again",
        "guidance": "nudge",
        "withhold_copies": "first",
    },
    "evaluate": {
        "features": ["blocks"],
        "metrics": ["kid", "edges"],
        "judge": "bright",
        "recaption": "parrot",
    },
    "classify": {"image_size": 32, "model": "plain", "explain": ["middle"]},
}


def build() -> RunConfig:
    return config.build(dict(EXPERIMENT), where="test")


@pytest.fixture
def weights_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, written once for all tests of this file."""
    folder = tmp_path_factory.getbasetemp() / "weights"
    folder.mkdir(exist_ok=True)
    return folder


def context(root: Path) -> Context:
    return Context("new", 11, "cpu", "float32", 1, root / "cache", lambda line: None)


def writer(root: Path, record_type: Any) -> ArtifactWriter[Any]:
    root.mkdir(parents=True, exist_ok=True)
    return ArtifactWriter(root, record_type)


def test_every_kind_has_a_new_part() -> None:
    assert NEW.keys() == registry.KINDS.keys()


@pytest.mark.parametrize("package", NEW, ids=lambda package: package.rpartition(".")[2])
def test_a_part_without_its_file_is_named_by_the_config(package: str, add_file: AddFile) -> None:
    for other, (name, _) in NEW.items():
        if other != package:
            add_file(other, name)
    with pytest.raises(ConfigError, match=f"no .* named '{NEW[package][0]}'"):
        build()


def test_all_parts_are_planned_and_an_edit_of_a_file_makes_its_stages_stale(
    add_file: AddFile,
) -> None:
    paths = {package: add_file(package, name) for package, (name, _) in NEW.items()}
    before = plan.plan(build())
    for path in paths.values():
        with path.open("a", encoding="utf-8") as out:
            out.write("\nEDITED = True\n")
    after = {node.title: node.source_files for node in plan.plan(build())}
    edited: dict[str, set[str]] = {}
    for node in before:
        for file, digest in node.source_files.items():
            if after[node.title][file] != digest:
                edited.setdefault(file, set()).add(node.stage)
    assert edited == {
        f"{package.replace('.', '/')}/{name}.py": set(stages)
        for package, (name, stages) in NEW.items()
    }


def test_what_a_part_lacks_is_said_before_a_run(add_file: AddFile, tmp_path: Path) -> None:
    for package, (name, _) in NEW.items():
        add_file(package, name)
    lines = checks.problems(plan.plan(build()), build(), tmp_path)
    assert [line for line in lines if "nobody/nova" in line and "Train it." in line]


def test_all_licences_are_on_the_page(add_file: AddFile, tmp_path: Path) -> None:
    for package, (name, _) in NEW.items():
        add_file(package, name)
    built = build()
    sections = {
        "preprocess": built.preprocess,
        "evaluate": built.evaluate,
        "classify": built.classify,
        **{name: getattr(built.arms[0], name) for name in ("caption", "finetune", "generate")},
    }
    made = Fabricator(tmp_path / "run").inputs()

    def ran_with(artifact: Artifact[Any]) -> Artifact[Any]:
        section = sections[artifact.manifest["stage"]]
        told = {
            "config": section.model_dump(mode="json"),
            "parts": registry.list_parts(artifact.manifest["stage"], section),
        }
        return dataclasses.replace(artifact, manifest={**artifact.manifest, **told})

    values = {field.name: getattr(made, field.name) for field in dataclasses.fields(made)}
    inputs = ReportInputs(
        **{
            port: {name: ran_with(item) for name, item in value.items()}
            if isinstance(value, dict)
            else ran_with(value)
            for port, value in values.items()
        }
    )
    html = write_page(inputs, tmp_path)
    missing = [
        part
        for part, terms in {
            "Drawings": "Terms of the drawings.",
            "Parrot": "Seeds, weekly.",
            "Nova": "Terms of Nova.",
            "Again": "Terms of doing it again.",
            "Nudge": "Terms of the nudge.",
            "First": "Terms of the first.",
            "Blocks": "Terms of the blocks.",
            "Edges": "Terms of the edges.",
            "Plain": "Terms of the plain one.",
            "Middle": "Terms of the middle.",
            "Bright": "Terms of the bright.",
        }.items()
        if f"<dt>{part}</dt><dd>{terms}</dd>" not in html
    ]
    assert missing == []
    assert "Parrot of the left" in html  # a captioner is called what it calls itself


def write_page(inputs: ReportInputs, tmp_path: Path) -> str:
    output = writer(tmp_path / "page", ScoreRecord)
    report.run(ReportConfig(images_per_class=1), inputs, output, context(tmp_path))
    return (output.root / "report.html").read_text(encoding="utf-8")


def test_a_source_is_one_file(add_file: AddFile, tmp_path: Path) -> None:
    add_file(registry.SOURCES, "drawings")
    settings = PreprocessConfig(source=PluginConfig(name="drawings"), image_size=32)
    output = writer(tmp_path / "out", SliceRecord)
    preprocess.run(settings, preprocess.PreprocessInputs(), output, context(tmp_path))
    records = list(Artifact(output.root, "p", SliceRecord, {}).records())
    assert len(records) == 12
    assert {record.source for record in records} == {"drawings"}
    assert {record.label for record in records} == {"glioma", "notumor"}


def test_a_captioner_is_one_file(add_file: AddFile, tmp_path: Path) -> None:
    add_file(registry.VLMS, "parrot")
    slices = evaluate_parts.write_slices(tmp_path / "slices", {"train": 2})
    settings = CaptionConfig(
        vlm=PluginConfig(name="parrot", settings={"side": "right"}),
        tokenizer=PluginConfig(name="tiny_sd15"),
    )
    output = writer(tmp_path / "out", CaptionRecord)
    caption.run(settings, caption.CaptionInputs(slices), output, context(tmp_path))
    records = list(Artifact(output.root, "c", CaptionRecord, {}).records())
    assert {record.text for record in records} == {"tumor: yes; location: right; size: small"}
    assert output.notes["vlm"] == "parrot"


def test_a_base_model_is_one_file(add_file: AddFile, tmp_path: Path, weights_dir: Path) -> None:
    add_file(registry.BASE_MODELS, "nova")
    (tmp_path / "inputs").mkdir()
    inputs = build_inputs(tmp_path / "inputs", ("train", "train", "val"))
    trained = finetune(
        tmp_path / "trained", weights_dir, inputs, model="nova", max_steps=1, warmup_steps=0
    )
    assert "A base model in the layout of SDXL." in (trained.root / "README.md").read_text()
    adapter = Artifact(trained.root, "a", trained.record_type, {})
    arm = GenerateInputs(finetune=adapter, caption=None)
    output = generate(tmp_path / "made", weights_dir, arm, model="nova", num_images=4)
    assert output.counts["written"] == 4


def test_refiner_guidance_and_rule_for_copies_are_one_file_each(
    add_file: AddFile, tmp_path: Path, weights_dir: Path
) -> None:
    add_file(registry.BASE_MODELS, "nova")
    slices = evaluate_parts.write_slices(tmp_path / "slices", {"train": 2, "val": 2})
    changes = {"model": "nova", "num_images": 2, "labels": ("glioma", "notumor"), "batch_size": 2}
    rows = {}
    for field, package in (
        (None, None),
        ("refiner", registry.REFINERS),
        ("guidance", registry.GUIDANCE),
        ("withhold_copies", registry.WITHHOLDING),
    ):
        given: dict[str, Any] = {}
        if field and package:
            add_file(package, NEW[package][0])
            given[field] = PluginConfig(name=NEW[package][0])
        root = tmp_path / str(field)
        inputs = GenerateInputs(None, None, preprocess=slices)
        output = generate(root, weights_dir, inputs, **changes, **given)
        found = list(Artifact(root, "g", SyntheticRecord, {}).records())
        rows[field] = [(root / record.image_path).read_bytes() for record in found]
        attempts = [record.attempt for record in found]
        assert attempts == ([1, 0] if field == "withhold_copies" else [0, 0]), field
        assert output.counts["copies_withheld"] == (field == "withhold_copies")
    assert len({tuple(files) for files in rows.values()}) == 4
    assert rows["withhold_copies"][1] == rows[None][1]


def test_a_metric_and_an_extractor_are_one_file_each(add_file: AddFile, tmp_path: Path) -> None:
    add_file(registry.METRICS, "edges")
    add_file(registry.FEATURES, "blocks")
    inputs = evaluate.EvaluateInputs(
        evaluate_parts.write_slices(tmp_path / "slices", {"train": 8, "test": 8}),
        {"one": evaluate_parts.write_arm(tmp_path / "one", 3, count=8)},
    )
    chosen = EvaluateConfig(
        features=(PluginConfig(name="blocks"),),
        metrics=("kid", "edges"),
        num_bootstrap=4,
        num_permutations=0,
        memorisation=False,
        location=False,
    )
    scores, output = evaluate_parts.run(tmp_path, inputs, chosen)
    assert scores["one", "edge_share", "all"].value == 0.25
    assert scores["one", "kid", "all"].features == "blocks"

    fabricator = Fabricator(tmp_path / "run")
    made = fabricator.inputs(evaluate_notes=output.notes, evaluate_scores=list(scores.values()))
    html = write_page(made, tmp_path)
    for words in (
        "Sharpness, on blocks features",
        "Sharp edges (%)\u00a0↑",
        ">25.0<",
        "Nobody et al., a journal of edges, 2026",
    ):
        assert words in html


def test_a_judge_is_one_file(add_file: AddFile, tmp_path: Path) -> None:
    add_file(registry.JUDGES, "bright")
    add_file(registry.FEATURES, "blocks")
    inputs = evaluate.EvaluateInputs(
        location.write_real(tmp_path / "slices"),
        {"obeys": location.write_arm(tmp_path / "arm", lambda side: side)},
    )
    chosen = location.ONLY_KID.model_copy(
        update={
            "judge": PluginConfig(name="bright"),
            "features": (PluginConfig(name="blocks"),),
            "base_models": {},
        }
    )
    scores, _ = evaluate_parts.run(tmp_path, inputs, chosen)
    assert scores["obeys", "location_side", "all"].value == 1


def test_a_classifier_and_an_explanation_are_one_file_each(
    add_file: AddFile, tmp_path: Path
) -> None:
    add_file(registry.CLASSIFIERS, "plain")
    add_file(registry.EXPLANATIONS, "middle")
    inputs = classify.ClassifyInputs(
        classify_parts.write_slices(tmp_path / "slices", {"train": 6, "val": 4, "test": 4}), {}
    )
    chosen = classify_parts.SHORT.model_copy(
        update={
            "model": PluginConfig(name="plain"),
            "regimes": ("real",),
            "explain": ("middle",),
            "num_explained": 2,
        }
    )
    scores, output = classify_parts.run(tmp_path / "out", inputs, chosen)
    assert 0 <= scores["real", "accuracy", "all"].value <= 1
    assert "middle: Nobody et al., a journal of middles, 2026" in output.notes["methods"]
    assert json.dumps(output.notes["explanations"]["arms"]["real"]["scores"]).count("middle") == 1
