"""The page of a run whose images were judged: the section, the claim, and no score told twice."""

import dataclasses
import re

import pytest

from pipeline.contracts import ArtifactWriter, Context, ScoreRecord
from pipeline.settings import EvaluateConfig, ReportConfig
from stages.report.stage import STAGE
from tests.stages.report.parts import Fabricator

FACTS = {"chance": 0.4567, "majority": 0.5, "commonest": "left", "n": 72, "num_groups": 72}
ARM, BASE = "sdxl-ovis", "base/tiny_sdxl"
NOTES = {
    "judge": {"name": "embedded"},
    "fields": {arm: {"side": FACTS} for arm in (ARM, BASE, "real")},
    "confusion": {ARM: {"side": {"left": {"left": 33, "right": 3}, "right": {"right": 36}}}},
    "flips": {ARM: {"n": 41, "chance": 0.25}},
}


def score(arm, name, value):
    return ScoreRecord(
        experiment="fabricated",
        arm=arm,
        stage="evaluate",
        metric=f"location_{name}",
        features=None,
        group="all",
        value=value,
        low=value - 0.05,
        high=value + 0.01,
        n_real=61,
        n_synthetic=72,
        num_groups=70,
        higher_is_better=True,
    )


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    root = tmp_path_factory.mktemp("judged")
    fabricator = Fabricator(root / "inputs")
    inputs = fabricator.inputs()
    records = [
        *inputs.evaluate.records(),
        score(ARM, "side", 0.876),
        score(BASE, "side", 0.4567),
        score(ARM, "side_flip", 0.7321),
        score("real", "side", 0.9612),
        score("real", "dice", 0.8114),
    ]
    above = {"metric": "location_side", "value": 0.42, "low": 0.37, "high": 0.43, "features": None}
    pairs = {f"{ARM} - {other}": [above] for other in (BASE, "chance")}
    notes = {"differences": pairs, "location": NOTES}
    evaluate = fabricator.publish(
        "evaluate", ScoreRecord, "two", EvaluateConfig(), records, counts={}, notes=notes
    )
    folder = root / "report"
    folder.mkdir()
    output = ArtifactWriter(folder, ScoreRecord)
    context = Context("fabricated", 11, "cpu", "float32", 1, folder / "cache", lambda line: None)
    made = dataclasses.replace(inputs, evaluate=evaluate)
    STAGE.run(ReportConfig(images_per_class=1), made, output, context)
    return (folder / "report.html").read_text(encoding="utf-8")


def test_the_section_shows_arms_judge_pairs_and_confusion(html):
    section = re.search(r'<section id="location">.*?</section>', html, re.S).group(0)
    for words in (
        "Does it do as it was told?",
        "87.6 (82.6 to 88.6); chance 45.7; n = 72, groups 70",
        "Left or right, beside the same model without LoRA",
        "42.0 (37.0 to 43.0)",
        "reference phantoms: the judge itself",
        "96.1 (91.1 to 97.1)",
        "73.2 (68.2 to 74.2)",
        "side found (columns) for each that was asked for (rows)",
    ):
        assert words in section, words


def test_sides_stand_in_the_summary(html):
    summary = re.search(r'<section id="summary">.*?</section>', html, re.S).group(0)
    assert "tumours lie there in 87.6 % of the arms&#39; slices, without LoRA in" in summary
    cells = ("87.6\u00a0(82.6\u00a0to\u00a088.6)", "45.7", "73.2", "72")
    row = "".join(f'<td class="num">{cell}</td>' for cell in cells)
    assert f'<th scope="row">{ARM}</th>{row}' in summary
    assert "the judge, on reference phantoms" in summary


def test_location_scores_stand_in_their_own_section_alone(html):
    scores = re.search(r'<section id="scores">.*?</section>', html, re.S).group(0)
    assert "KID" in scores
    assert "ocation" not in scores
    assert "num_groups" not in html


def test_the_claim_draws_on_them(html):
    claims = re.search(r'<section id="claims">.*?</section>', html, re.S).group(0)
    assert "The side follows the prompt more often than without LoRA in at least one arm" in claims
    assert f"{ARM} − {BASE}" in claims
    assert f"{ARM} − chance" in claims
    assert "is read by a network trained on reference phantoms" in html
