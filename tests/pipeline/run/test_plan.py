from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import UsageError
from pipeline.run import code_digest, plan
from pipeline.run.plan import Node
from pipeline.settings import RunConfig

Load = Callable[..., RunConfig]


def titles(nodes: list[Node]) -> list[str]:
    return [node.title for node in nodes]


def digests(nodes: list[Node]) -> dict[str, str]:
    return {node.title: node.digest for node in nodes}


def moved(before: list[Node], after: list[Node]) -> set[str]:
    """Titles of what has another digest."""
    old = digests(before)
    return {title for title, digest in digests(after).items() if old.get(title) != digest}


def test_plan_of_three_arms(load: Load) -> None:
    assert titles(plan.plan(load())) == [
        "preprocess",
        "caption [a4, a8]",
        "caption [b4]",
        "finetune [a4]",
        "finetune [a8]",
        "finetune [b4]",
        "generate [a4]",
        "generate [a8]",
        "generate [b4]",
        "generate [base/tiny_a]",
        "generate [base/tiny_b]",
        "evaluate",
        "classify",
        "report",
    ]


def test_every_node_comes_after_what_it_reads(load: Load) -> None:
    seen: set[str] = set()
    for node in plan.plan(load()):
        assert {item.digest for item in node.upstream()} <= seen
        seen.add(node.digest)


def test_ports(load: Load) -> None:
    nodes = {node.title: node for node in plan.plan(load())}
    evaluate, classify = nodes["evaluate"], nodes["classify"]
    assert list(evaluate.recipe["inputs"]) [:6] == [
        "preprocess", "generate/a4", "generate/a8", "generate/b4",
        "generate/base/tiny_a", "generate/base/tiny_b",
    ]  # fmt: skip
    assert set(classify.recipe["inputs"]) == {
        "preprocess", "generate/a4", "generate/a8", "generate/b4",
    }  # fmt: skip
    base = nodes["generate [base/tiny_a]"]
    assert base.inputs == {"finetune": None, "caption": None, "preprocess": None}


@pytest.mark.parametrize(
    "setting", ["generate.prompts_from=test_captions", "generate.grid_sizes=trained"]
)
def test_captions_are_an_input_where_prompts_come_from_them(load: Load, setting: str) -> None:
    nodes = plan.plan(load(setting, "caption.splits=[train, val, test]"))
    for node in nodes:
        if node.stage == "generate":
            assert isinstance(node.inputs["caption"], Node)


def test_arms_alike_share_all_their_work(load: Load) -> None:
    nodes = plan.plan(load("finetune.lora_rank=4"))
    assert "finetune [a4, a8]" in titles(nodes)
    assert "generate [a4, a8]" in titles(nodes)


def test_one_arm(load: Load) -> None:
    assert titles(plan.plan(load(), ["b4"])) == [
        "preprocess",
        "caption [b4]",
        "finetune [b4]",
        "generate [b4]",
        "generate [base/tiny_b]",
        "evaluate",
        "classify",
        "report",
    ]


def test_unknown_arm_and_stage(load: Load) -> None:
    with pytest.raises(UsageError, match=r"no arm named 'c4'; arms: a4, a8, b4"):
        plan.plan(load(), ["c4"])
    with pytest.raises(UsageError, match=r"no stage named 'train'; stages: preprocess, "):
        plan.limit([], "train")


def test_limit(load: Load) -> None:
    stages = {node.stage for node in plan.limit(plan.plan(load()), "finetune")}
    assert stages == {"preprocess", "caption", "finetune"}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("evaluate.num_bootstrap=3", {"evaluate", "report"}),
        ("report.title=Other", {"report"}),
        ("classify.max_steps=11", {"classify", "report"}),
        (
            "arms.a8.generate.guidance_scale=3",
            {"generate [a8]", "evaluate", "classify", "report"},
        ),
        (
            "arms.b4.finetune.max_steps=30",
            {"finetune [b4]", "generate [b4]", "evaluate", "classify", "report"},
        ),
    ],
)
def test_a_setting_moves_only_what_depends_on_it(
    load: Load, override: str, expected: set[str]
) -> None:
    assert moved(plan.plan(load()), plan.plan(load(override))) == expected


@pytest.mark.parametrize("override", ["seed=8", "dtype=bfloat16"])
def test_some_settings_move_everything(load: Load, override: str) -> None:
    before = plan.plan(load())
    assert moved(before, plan.plan(load(override))) == set(titles(before))


def test_base_models_know_no_slices(load: Load) -> None:
    before = plan.plan(load())
    still = set(titles(before)) - moved(before, plan.plan(load("preprocess.crop_margin=0.1")))
    assert still == {"generate [base/tiny_a]", "generate [base/tiny_b]"}


def test_device_moves_nothing(load: Load) -> None:
    assert moved(plan.plan(load()), plan.plan(load("device=cuda"))) == set()


def test_explicit_default_moves_nothing(load: Load) -> None:
    override = "preprocess.source.settings.root=raw"
    assert moved(plan.plan(load()), plan.plan(load(override))) == set()


def test_weights_are_an_input(load: Load, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.write_text("first")
    override = f"base_model={{name: tiny_a, settings: {{weights: '{weights}'}}}}"
    before = plan.plan(load(override))
    weights.write_text("second")
    after = moved(before, plan.plan(load(override)))
    assert "finetune [a8]" in after
    assert "preprocess" not in after


def test_absent_weights_do_not_keep_a_plan_from_being_made(load: Load) -> None:
    for gone in ("gone", "/nowhere/weights"):
        settings = load(f"base_model={{name: tiny_a, settings: {{weights: '{gone}'}}}}")
        finetune = next(node for node in plan.plan(settings) if node.stage == "finetune")
        assert finetune.recipe["inputs"]["base_models:tiny_a"] == "absent"


def test_code_is_an_input(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    before = plan.plan(load())
    real = code_digest.source_files

    def edited(stage: str, plugins: list[str]) -> dict[str, str]:
        return real(stage, plugins) | (
            {"stages/evaluate/stage.py": "0"} if stage == "evaluate" else {}
        )

    monkeypatch.setattr(code_digest, "source_files", edited)
    assert moved(before, plan.plan(load())) == {"evaluate", "report"}


def test_needed_by_lists_each_once_in_order(load: Load) -> None:
    nodes = plan.plan(load())
    evaluate = [node for node in nodes if node.stage == "evaluate"]
    needed = titles(plan.needed_by(evaluate))
    assert sorted(needed) == sorted(titles(plan.limit(nodes, "generate")))
    assert needed.index("finetune [b4]") < needed.index("generate [b4]")
