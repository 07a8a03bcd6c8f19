"""What is asked of classifiers beside their scores, and the captioner that reads images again."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import settings
from pipeline.errors import ConfigError
from pipeline.run import config, plan

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
Load = Callable[..., settings.RunConfig]
CLINIC = "classify.cross_test.clinic.source.settings.num_scans=9"


def test_a_cross_test_takes_what_it_leaves_out_from_preprocess(load: Load) -> None:
    found = load(CLINIC, "preprocess.crop_margin=0.1")
    (section,) = found.classify.cross_test.values()
    assert (section.image_size, section.crop_margin) == (64, 0.1)
    assert (section.source.name, section.source.settings["num_scans"]) == ("folder", 9)
    assert found.preprocess.source.settings["num_scans"] == 2


def test_a_cross_test_survives_the_run_s_own_config(load: Load, tmp_path: Path) -> None:
    found = load(CLINIC)
    path = tmp_path / "config.yaml"
    path.write_text(config.dump(found))
    assert config.load(path) == found


def test_its_source_is_a_node_that_classify_reads(load: Load) -> None:
    nodes = {node.title: node for node in plan.plan(load(CLINIC))}
    classify = nodes["classify"]
    assert classify.inputs["cross_test"] == {"clinic": nodes["preprocess [cross_test/clinic]"]}
    assert "cross_test/clinic" in classify.recipe["inputs"]
    order = list(nodes)
    assert order.index("preprocess [cross_test/clinic]") < order.index("classify")
    assert plan.plan(load())[0].digest == nodes["preprocess"].digest
    other = {node.title: node for node in plan.plan(load(CLINIC.replace("9", "8")))}
    moved = {title for title, node in nodes.items() if node.digest != other[title].digest}
    assert moved == {"preprocess [cross_test/clinic]", "classify", "report"}


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        (
            "classify.cross_test.clinic.image_size=32",
            "classify.cross_test.clinic.image_size: expected 64 as in preprocess.image_size, "
            "found 32",
        ),
        (
            "classify.cross_test.clinic.source=foldr",
            "classify.cross_test.clinic.source: no data source named 'foldr'; did you mean",
        ),
        (
            "classify.cross_test.clinic.crop_marign=0.1",
            "classify.cross_test.clinic.crop_marign: unknown key; did you mean 'crop_margin'?",
        ),
        (
            "classify.cross_test={Clinic A: {image_size: 64}}",
            "classify.cross_test.Clinic A: expected a name of small letters",
        ),
        ("classify.cross_test=3", "classify.cross_test: expected a valid dictionary, found 3"),
        ("classify.explain=[oclusion]", "classify.explain: no explanation named 'oclusion'"),
        ("classify.num_explained=0", "classify.num_explained: expected a number >= 1, found 0"),
        (
            "evaluate.recaption=truth",
            "evaluate.recaption: expected a captioner that looks at images, found 'truth'",
        ),
        ("evaluate.recaption=modl", "evaluate.recaption: no VLM named 'modl'; did you mean"),
    ],
)
def test_each_fault_in_words(load: Load, override: str, fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(override)
    assert any(line.startswith(fault) for line in caught.value.problems), caught.value.problems


def test_explanations_are_of_the_task_that_has_a_tumour_or_not(load: Load) -> None:
    assert load("classify.explain=[occlusion]").classify.explain == ("occlusion",)
    with pytest.raises(ConfigError, match=r"task 'binary', found tasks \['four_class'\]"):
        load("classify.explain=[occlusion]", "classify.tasks=[four_class]")


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        (
            ["evaluate.recaption={name: llava, settings: {prompt: poster}}"],
            "evaluate.recaption.settings.prompt: expected 'blind', found 'poster'",
        ),
        (["evaluate.recaption=gemini"], "evaluate.recaption: gemini would send images"),
    ],
)
def test_a_captioner_that_is_told_or_sends_away_is_refused(
    overrides: list[str], fault: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load(CONFIGS / "smoke.yaml", overrides)
    assert any(line.startswith(fault) for line in caught.value.problems), caught.value.problems


def test_a_captioner_may_be_allowed_to_send_away() -> None:
    found = config.load(
        CONFIGS / "smoke.yaml", ["evaluate.recaption=gemini", "evaluate.recaption_upload=true"]
    )
    assert found.evaluate.recaption is not None
    assert found.evaluate.recaption.name == "gemini"
