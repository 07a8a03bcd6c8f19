"""Cards say what the committed ones say, and a model's folder is the old one or the new one."""

import json
import math
from pathlib import Path
from typing import Any

import jinja2
import pytest
from safetensors import safe_open

from stages.components.judge.network import Judge
from stages.embedded.base_data import captions_of
from stages.embedded.build import BASES, JUDGE, NAMES
from stages.embedded.cards import publish, render_card, word_interval, write_card

EMBEDDED = Path(__file__).parents[3] / "data" / "embedded"


def count_parameters(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*.safetensors"):
        with safe_open(path, "np") as file:
            total += sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118
    return total


def read_words(name: str) -> tuple[str, dict[str, Any]]:
    """Return a committed model's template, and the words that its build gave to it."""
    folder = EMBEDDED / name
    facts = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    words = {"parameters": count_parameters(folder), "facts": facts, "name": name}
    if name in BASES:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        prompt = captions_of("t1", "axial")[0]
        words |= {"kind": index["_class_name"], "prompt": prompt, "knows_brains": "wide" in facts}
        return "base", words
    rows = words["held_out"] = facts.pop("held_out")
    counted = [row["n"] for row in rows if row["field"] in ("presence", "tumor")]
    words |= {"num_slices": counted[0], "num_subjects": facts["subjects"]["test"]}
    if name == JUDGE:
        return "judge", words | {"kind": Judge.__name__, "module": Judge.__module__}
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return "vlm", words | {"kind": config["architectures"][0]}


@pytest.mark.parametrize("name", NAMES)
def test_the_committed_card_is_what_its_facts_render_to(name: str, tmp_path: Path) -> None:
    template, words = read_words(name)
    write_card(tmp_path, template, **words)
    for file in ("README.md", "training.json"):
        assert (tmp_path / file).read_bytes() == (EMBEDDED / name / file).read_bytes(), file


def test_a_word_that_is_missing_is_named() -> None:
    with pytest.raises(jinja2.UndefinedError, match="kind"):
        render_card("base", name="x", facts={"image_size": 1}, parameters=1, knows_brains=False)


def test_estimates_of_very_few_subjects_have_no_interval_and_of_none_no_value() -> None:
    assert word_interval({"value": 0.5, "low": 0.25, "high": 1.0}) == "0.500 [0.250, 1.000]"
    assert word_interval({"value": 0.5, "low": None, "high": None}) == "0.500"
    assert word_interval({"value": None, "low": None, "high": None}) == "–"


def test_publishing_replaces_what_stood_there_and_what_a_killed_build_left(tmp_path: Path) -> None:
    for name, words in (("new", "new"), ("model", "standing"), ("model.old", "older")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "README.md").write_text(words)
    publish(tmp_path / "new", tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "README.md").read_text() == "new"
