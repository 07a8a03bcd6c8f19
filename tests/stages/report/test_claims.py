"""Claim rules by closed cases: each verdict of each claim from hand-written intervals."""

from dataclasses import replace

import pytest

from pipeline.contracts import Part, ScoreRecord
from stages.components.captioning.names import find_study
from stages.report.arms import Arm
from stages.report.claims import rules
from stages.report.claims.evidence import Difference, Findings
from stages.report.claims.location import decide_location


def _arm(name, family="sdxl", vlm="ovis", rank=128, text_encoder=False, **settings):
    captioner = Part(name=vlm, study=find_study(vlm))
    return Arm(name, family, family, vlm, rank, text_encoder, settings, captioner=captioner)


def _difference(pair, metric, low, high):
    first, second = pair.split(" - ")
    return Difference(first, second, metric, (low + high) / 2, low, high)


def _findings(arms, *differences):
    return Findings(tuple(arms), (), tuple(_difference(*row) for row in differences))


TWO_FAMILIES = (_arm("xl"), _arm("sd", family="sd15"))
TWO_RANKS = (*TWO_FAMILIES, _arm("xl2", rank=248), _arm("sd2", family="sd15", rank=248))
TWO_ENCODERS = (_arm("te", text_encoder=True), _arm("unet"))
FOUR_VLMS = tuple(_arm(name, vlm=name) for name in ("ovis", "gemma", "gemini", "llava_med"))


def test_tiny_captioners_stand_for_none_of_the_study_s():
    names = ("tiny Ovis2 (embedded)", "tiny Gemma 3 (embedded)", "tiny LLaVA (embedded)")
    arms = tuple(replace(_arm(name, vlm=name), captioner=Part(name=name)) for name in names)
    claim = rules.decide_vlm(_findings(arms, (f"{names[0]} - {names[1]}", "kid", -0.02, -0.01)))
    assert claim.verdict == "not decided"
    assert "this run has none of the poster's" in claim.why
    assert claim.evidence[0].what == f"{names[0]} − {names[1]}"


@pytest.mark.parametrize(
    ("kid", "fid", "verdict"),
    [
        ((-0.05, -0.01), (-9, -3), "supported"),
        ((0.01, 0.05), (3, 9), "contradicted"),
        ((-0.05, 0.01), (-9, -3), "not decided"),
        ((-0.05, -0.01), (3, 9), "not decided"),
    ],
)
def test_sdxl_against_sd15(kid, fid, verdict):
    pairs = [
        (pair, metric, *span)
        for pair in ("xl - sd", "xl2 - sd2")
        for metric, span in (("kid", kid), ("fid", fid))
    ]
    claim = rules.decide_sdxl(_findings(TWO_RANKS, *pairs))
    assert claim.verdict == verdict
    assert [item.metric for item in claim.evidence] == ["kid", "fid"] * 2
    assert claim.strength == "2 comparisons, one training each"


def test_sdxl_at_one_rank_is_open_since_the_claim_is_about_two():
    found = _findings(TWO_FAMILIES, ("xl - sd", "kid", -0.05, -0.01), ("xl - sd", "fid", -9, -3))
    claim = rules.decide_sdxl(found)
    assert claim.verdict == "not decided"
    assert "is better in KID and FID in the only pair (rank 128)" in claim.why
    assert claim.why.endswith("the claim is about two ranks.")


def test_sdxl_reads_a_difference_recorded_the_other_way_round():
    found = _findings(TWO_FAMILIES, ("sd - xl", "kid", 0.01, 0.05), ("sd - xl", "fid", 3, 9))
    claim = rules.decide_sdxl(found)
    assert "better in KID and FID" in claim.why
    assert (claim.evidence[0].low, claim.evidence[0].high) == (-0.05, -0.01)


def test_sdxl_is_contradicted_by_one_rank():
    found = _findings(
        TWO_RANKS,
        ("xl - sd", "kid", -0.05, -0.01),
        ("xl - sd", "fid", -9, -3),
        ("xl2 - sd2", "kid", 0.01, 0.05),
        ("xl2 - sd2", "fid", 3, 9),
    )
    claim = rules.decide_sdxl(found)
    assert claim.verdict == "contradicted"
    assert "1 of 2 pairs (rank 128, 248)" in claim.why


@pytest.mark.parametrize("change", [{"rank": 64}, {"text_encoder": True}, {"rank": None}])
def test_sdxl_is_open_where_arms_differ_in_more(change):
    arms = (_arm("xl", **change), _arm("sd", family="sd15"))
    found = _findings(arms, ("xl - sd", "kid", -0.05, -0.01), ("xl - sd", "fid", -9, -3))
    claim = rules.decide_sdxl(found)
    assert claim.verdict == "not decided"
    assert "no SDXL arm and SD 1.5 arm with the same" in claim.why
    assert len(claim.evidence) == 2  # shown, although it decides nothing


def test_claims_are_open_without_differences():
    claim = rules.decide_sdxl(_findings(TWO_FAMILIES))
    assert (claim.verdict, claim.evidence) == ("not decided", ())
    assert claim.why == rules.NOT_RECORDED
    assert rules.decide_text_encoder(_findings(TWO_ENCODERS)).why == rules.NOT_RECORDED
    assert rules.decide_vlm(_findings(FOUR_VLMS)).why == rules.NOT_RECORDED


def test_other_unequal_settings_are_caveats():
    arms = (
        _arm("xl", **{"finetune.max_steps": 900, "finetune.warmup_steps": 100}),
        _arm("sd", family="sd15", **{"finetune.max_steps": 500, "finetune.warmup_steps": 50}),
    )
    found = _findings(arms, ("xl - sd", "kid", -0.05, -0.01), ("xl - sd", "fid", -9, -3))
    assert rules.decide_sdxl(found).caveats == ("xl − sd also differ in finetune.max_steps",)


@pytest.mark.parametrize(
    ("kid", "verdict"),
    [
        ((-0.02, -0.001), "supported"),
        ((0.001, 0.02), "contradicted"),
        ((-0.01, 0.01), "not decided"),
    ],
)
def test_text_encoder(kid, verdict):
    claim = rules.decide_text_encoder(_findings(TWO_ENCODERS, ("te - unet", "kid", *kid)))
    assert claim.verdict == verdict


def test_text_encoder_is_open_where_pairs_disagree():
    arms = (*TWO_ENCODERS, _arm("te2", rank=8, text_encoder=True), _arm("unet2", rank=8))
    found = _findings(arms, ("te - unet", "kid", -0.02, -0.01), ("te2 - unet2", "kid", 0.01, 0.02))
    assert rules.decide_text_encoder(found).verdict == "not decided"


def test_text_encoder_needs_both_kinds_of_arm():
    arms = (_arm("te", text_encoder=True), _arm("other", vlm="gemma"))
    claim = rules.decide_text_encoder(_findings(arms, ("te - other", "kid", -0.02, -0.01)))
    assert claim.verdict == "not decided"
    assert "no two SDXL arms" in claim.why


def _orderings(kid, fid):
    """Differences of all pairs of the four captioners: rank numbers become clear intervals."""
    rows = []
    for metric, ranks in (("kid", kid), ("fid", fid)):
        for first, a in ranks.items():
            for second, b in ranks.items():
                if first < second:
                    rows.append((f"{first} - {second}", metric, a - b - 0.1, a - b + 0.1))
    return rows


KID_AS_CLAIMED = {"ovis": 1, "gemini": 2, "gemma": 3, "llava_med": 4}
FID_AS_CLAIMED = {"gemma": 1, "gemini": 2, "ovis": 3, "llava_med": 4}


def test_vlm_as_claimed():
    claim = rules.decide_vlm(_findings(FOUR_VLMS, *_orderings(KID_AS_CLAIMED, FID_AS_CLAIMED)))
    assert claim.verdict == "supported"
    assert "All 10 orderings" in claim.why
    assert len(claim.evidence) == 12


def test_vlm_contradicted_by_one_ordering():
    kid = {**KID_AS_CLAIMED, "ovis": 2.5}
    claim = rules.decide_vlm(_findings(FOUR_VLMS, *_orderings(kid, FID_AS_CLAIMED)))
    assert claim.verdict == "contradicted"
    assert "ovis was to be below gemini in KID" in claim.why


def test_vlm_open_where_an_interval_covers_zero():
    fid = {**FID_AS_CLAIMED, "gemini": 1.05}
    claim = rules.decide_vlm(_findings(FOUR_VLMS, *_orderings(KID_AS_CLAIMED, fid)))
    assert claim.verdict == "not decided"
    assert "9 of 10 orderings" in claim.why


def test_vlm_needs_three_captioners():
    rows = _orderings(KID_AS_CLAIMED, FID_AS_CLAIMED)
    claim = rules.decide_vlm(_findings(FOUR_VLMS[:2], *rows))
    assert claim.verdict == "not decided"
    assert "this run has gemma, ovis" in claim.why
    assert len(claim.evidence) == 2


def test_vlm_without_the_posters_captioners():
    claim = rules.decide_vlm(_findings((_arm("a", vlm="truth"),)))
    assert claim.verdict == "not decided"
    assert "none of the poster's" in claim.why


def _judged(*differences, own=0.96, arms=FOUR_VLMS, base=0.5):
    rows = [("real", own), ("base/sdxl", base)]
    scores = tuple(
        ScoreRecord(
            experiment="test",
            arm=name,
            stage="evaluate",
            metric="location_side",
            features=None,
            group="all",
            value=value,
            low=None,
            high=None,
            n_real=40,
            n_synthetic=72,
            higher_is_better=True,
        )
        for name, value in rows
    )
    given = tuple(_difference(pair, "location_side", *ends) for pair, *ends in differences)
    return decide_location(Findings(tuple(arms), scores, given))


ABOVE_BASE = [(f"{arm.name} - base/sdxl", 0.2, 0.4) for arm in FOUR_VLMS]
LIKE_BASE = [(f"base/sdxl - {arm.name}", -0.1, 0.1) for arm in FOUR_VLMS]  # the other way round
ABOVE_CHANCE = [(f"{arm.name} - chance", 0.2, 0.4) for arm in FOUR_VLMS]
GEMINI_LEADS = [(f"gemini - {name}", 0.05, 0.2) for name in ("ovis", "gemma", "llava_med")]


@pytest.mark.parametrize(
    ("differences", "verdict", "words"),
    [
        ([*ABOVE_BASE, *GEMINI_LEADS], "supported", "best with Gemini's captions"),
        ([*ABOVE_BASE, *GEMINI_LEADS[:2]], "not decided", "lead is not clear of zero"),
        (
            [*ABOVE_BASE, *GEMINI_LEADS[:2], ("gemini - llava_med", -0.2, -0.1)],
            "contradicted",
            "Gemini's arm is not the best",
        ),
        ([*LIKE_BASE, *ABOVE_CHANCE], "contradicted", "no better than without LoRA in any arm"),
        ([("ovis - base/sdxl", -0.1, 0.3)], "not decided", "is open"),
    ],
)
def test_location_by_side_against_the_base_model(differences, verdict, words):
    # the base model has 0.5, so halfway to always right is 0.25 more
    claim = _judged(*differences)
    assert claim.verdict == verdict
    assert words in claim.why
    assert any("base/sdxl" in item.what for item in claim.evidence)


def test_a_base_model_that_follows_prompts_leaves_its_arms_little_to_show():
    """The arms are far above chance, and so is the model that they were made from."""
    rows = [(f"{arm.name} - base/sdxl", -0.02, 0.07) for arm in FOUR_VLMS]
    claim = _judged(*rows, *ABOVE_CHANCE, base=0.84)
    assert claim.verdict == "contradicted"
    assert [item.what for item in claim.evidence if "chance" in item.what] == [
        f"{arm.name} − chance" for arm in FOUR_VLMS
    ]
    assert _judged(("ovis - base/sdxl", -0.02, 0.09), base=0.84).verdict == "not decided"


def test_location_without_geminis_captions_says_what_is_known():
    (arm,) = (_arm("truth", vlm="truth"),)
    claim = _judged(("truth - base/sdxl", 0.2, 0.4), arms=(arm,))
    assert claim.verdict == "not decided"
    assert "follows the prompt more often than without LoRA in at least one arm" in claim.why
    assert "no arms differ in Gemini's captions alone" in claim.why


@pytest.mark.parametrize("own", [0.79, 0.5])
def test_location_needs_a_judge_that_knows_left_from_right(own):
    claim = _judged(*ABOVE_BASE, *GEMINI_LEADS, own=own)
    assert claim.verdict == "not decided"
    assert f"the side of {own:.0%} of real slices" in claim.why


def test_location_without_a_judge_is_open():
    claim = decide_location(_findings(FOUR_VLMS))
    assert claim.verdict == "not decided"
    assert "No judge of this run says on which side the tumours" in claim.why
    assert claim.evidence == ()


def test_chance_alone_decides_no_claim():
    claim = _judged(*ABOVE_CHANCE)
    assert claim.verdict == "not decided"
    assert "beside those of its base model without LoRA" in claim.why


LOST = {"accuracy": (-0.19, -0.12), "sensitivity": (-0.3, -0.2), "specificity": (-0.04, 0.02)}


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, "supported"),
        ({"accuracy": (-0.28, -0.01)}, "supported"),
        ({"accuracy": (-0.05, 0.02)}, "contradicted"),  # certainly loses less
        ({"accuracy": (-0.45, -0.25)}, "contradicted"),  # certainly loses more
        ({"sensitivity": (-0.02, 0.02), "specificity": (-0.3, -0.2)}, "contradicted"),
        ({"accuracy": (-0.32, 0.02)}, "not decided"),  # may lose nothing
        ({"accuracy": (-0.3, -0.15)}, "not decided"),  # a point estimate beyond 20
        ({"sensitivity": (-0.2, 0.1), "specificity": (-0.3, -0.02)}, "not decided"),
    ],
)
def test_classifier(change, verdict):
    rows = [("a - real", metric, *interval) for metric, interval in (LOST | change).items()]
    assert rules.decide_classifier(_findings((_arm("a"),), *rows)).verdict == verdict


def test_classifier_is_open_where_arms_disagree():
    rows = [("a - real", metric, *interval) for metric, interval in LOST.items()]
    rows += [("b - real", metric, *interval) for metric, interval in LOST.items()]
    rows[3] = ("b - real", "accuracy", -0.02, 0.02)
    claim = rules.decide_classifier(_findings((_arm("a"), _arm("b")), *rows))
    assert claim.verdict == "not decided"
    assert "do not agree" in claim.why


def test_classifier_is_open_without_sensitivity():
    rows = [("a - real", "accuracy", *LOST["accuracy"])]
    assert rules.decide_classifier(_findings((_arm("a"),), *rows)).verdict == "not decided"


def test_classifier_is_open_without_differences():
    claim = rules.decide_classifier(_findings((_arm("a"),)))
    assert claim.verdict == "not decided"
    assert "No difference of accuracy" in claim.why


@pytest.mark.parametrize("metric", ["auroc", "auroc_within_contrast"])
@pytest.mark.parametrize(("low", "verdict"), [(0.45, "not decided"), (0.8, "supported")])
def test_classifier_needs_a_real_arm_clear_of_chance(low, verdict, metric):
    score = ScoreRecord(
        experiment="e", arm="real", stage="classify", metric=metric, features=None, group="all",
        value=0.9, low=low, high=0.95, n_real=300, n_synthetic=0, higher_is_better=True,
    )  # fmt: skip
    rows = tuple(_difference("a - real", metric, *span) for metric, span in LOST.items())
    claim = rules.decide_classifier(Findings((_arm("a"),), (score,), rows))
    assert claim.verdict == verdict


@pytest.mark.parametrize(
    ("span", "verdict"), [((-0.2, -0.1), "supported"), ((-0.1, 0.02), "not decided")]
)
def test_classifier_needs_a_real_arm_above_its_shortcuts(span, verdict):
    score = ScoreRecord(
        experiment="e", arm="baseline/intensity_only", stage="classify", metric="accuracy",
        features=None, group="all", value=0.8, low=0.7, high=0.9, n_real=300, n_synthetic=0,
        higher_is_better=True,
    )  # fmt: skip
    rows = [_difference("a - real", metric, *ends) for metric, ends in LOST.items()]
    rows.append(_difference("baseline/intensity_only - real", "accuracy", *span))
    claim = rules.decide_classifier(Findings((_arm("a"),), (score,), tuple(rows)))
    assert claim.verdict == verdict
    assert ("baseline/intensity_only" in claim.why) == (verdict == "not decided")


@pytest.mark.parametrize(("span", "count"), [((-0.04, -0.01), 1), ((-0.04, 0.01), 0)])
def test_sdxl_says_where_the_base_models_differ_already(span, count):
    rows = [("xl - sd", "kid", -0.05, -0.01), ("base/sdxl - base/sd15", "kid", *span)]
    assert len(rules.decide_sdxl(_findings(TWO_FAMILIES, *rows)).caveats) == count


def test_five_claims_in_order():
    judged = rules.decide_all(_findings(TWO_FAMILIES))
    assert [claim.number for claim in judged] == [1, 2, 3, 4, 5]


def test_arms_that_a_judge_steered_decide_no_claim():
    guided = _arm("guided", text_encoder=True, **{"generate.guidance.name": "location"})
    rows = [("te - unet", "kid", -0.02, -0.01), ("guided - unet", "kid", 0.01, 0.02)]
    found = _findings((*TWO_ENCODERS, guided), *rows)
    assert rules.decide_text_encoder(found).verdict == "not decided"
    assert rules.decide_all(found)[1].verdict == "in favour"  # each arm was trained once


def test_only_deciding_features_count():
    rows = tuple(
        Difference("xl", "sd", metric, -1, -1.5, -0.5, features="dinov2")
        for metric in ("kid", "fid")
    )
    found = Findings(TWO_FAMILIES, (), rows, features="efficientnet_lite0")
    assert rules.decide_sdxl(found).verdict == "not decided"


def test_evidence_carries_sample_sizes():
    score = ScoreRecord(
        experiment="e", arm="te", stage="evaluate", metric="kid", features="f", group="all",
        value=0.1, low=None, high=None, n_real=300, n_synthetic=200, higher_is_better=False,
    )  # fmt: skip
    rows = (Difference("te", "unet", "kid", -1, -1.5, -0.5, features="f"),)
    claim = rules.decide_text_encoder(Findings(TWO_ENCODERS, (score,), rows, features="f"))
    assert [(item.n_real, item.n_synthetic) for item in claim.evidence] == [(300, 200)]
