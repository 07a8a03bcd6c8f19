"""The poster's five claims, each decided by a fixed rule from recorded scores.

A rule reads intervals of differences that a stage recorded; it computes no statistic. "Clear of
zero" means that the whole interval lies on one side. A verdict holds for the run it was made
from, at that run's size, and for nothing else.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations

from pipeline.contracts import ALL, AUROC_WITHIN_CONTRAST, BASELINE, REAL, ScoreRecord
from stages.report.arms import Arm
from stages.report.claims.evidence import Findings
from stages.report.claims.location import decide_location
from stages.report.claims.parts import (
    BY_ONE_TRAINING,
    SCOPE,
    VLM_SETTINGS,
    ArmPair,
    Claim,
    Verdict,
    agree,
    capitalise,
    find_outcome,
    group_arms,
    is_same,
    list_caveats,
    list_pairs,
    list_vlms,
    name_all,
    pair_evidence,
)

NOT_RECORDED = "The arms are there, but no difference between them was recorded."
CHANCE = 0.5  # AUROC
LOSS_BAND = (-0.20, -0.10)  # "about 15 points" of accuracy, synthetic minus real

# Settings that the compared arms may differ in without a caveat: the claim is about them, or
# they follow from it (the poster warms SDXL up for longer).
BASE_MODEL_SETTINGS = (
    "caption.tokenizer",
    "finetune.base_model",
    "finetune.warmup_steps",
    "generate.base_model",
)
TEXT_ENCODER_SETTINGS = (
    "finetune.train_text_encoder",
    "finetune.text_encoder_rank",
    "finetune.text_encoder_learning_rate",
)
KEYS = ("kid", "fid")


def decide_all(findings: Findings) -> list[Claim]:
    """Decide the five claims in the poster's order, by arms that no judge steered: it had none.

    Each arm was trained once, so a rule's verdict is worded as no more than a lean.
    """
    plain = tuple(arm for arm in findings.arms if not arm.is_guided)
    findings = replace(findings, arms=plain)
    claims = [
        decide_sdxl(findings),
        decide_text_encoder(findings),
        decide_vlm(findings),
        decide_location(findings),
        decide_classifier(findings),
    ]
    return [
        replace(claim, verdict=BY_ONE_TRAINING.get(claim.verdict, claim.verdict))
        for claim in claims
    ]


def decide_sdxl(findings: Findings) -> Claim:
    """Decide claim 1 on pairs of arms equal in captioner, rank and text-encoder training.

    Supported: KID and FID of every pair clear below zero, at two ranks at least. Contradicted: both
    clear above zero in some pair, since the claim is about every rank. Else not decided.
    """

    def is_pair(first: Arm, second: Arm) -> bool:
        return (
            (first.family, second.family) == ("sdxl", "sd15")
            and is_same(first.vlm, second.vlm)
            and is_same(first.lora_rank, second.lora_rank)
            and is_same(first.train_text_encoder, second.train_text_encoder)
        )

    def claim(verdict: Verdict, why: str, pairs: Sequence[ArmPair]) -> Claim:
        return Claim(
            number=1,
            text="SDXL beats SD 1.5 on FID and KID, at both ranks.",
            published="KID 0.065 → 0.028 (rank 128), 0.083 → 0.030 (rank 248); FID 15.1 → 5.81",
            verdict=verdict,
            why=why,
            evidence=pair_evidence(findings, pairs, ("kid", "fid")),
            caveats=list_caveats(pairs, BASE_MODEL_SETTINGS) + _base_caveats(findings, pairs),
        )

    pairs = list_pairs(findings, is_pair)
    if not pairs:
        return claim(
            "not decided",
            "This run has no SDXL arm and SD 1.5 arm with the same captioner, rank and "
            "text-encoder setting.",
            list_pairs(
                findings,
                lambda a, b: (a.family, b.family) == ("sdxl", "sd15") and is_same(a.vlm, b.vlm),
            ),
        )
    outcomes = [
        agree([find_outcome(findings.difference(p.first.name, p.second.name, m)) for m in KEYS])
        for p in pairs
    ]
    distinct = sorted({str(pair.first.lora_rank) for pair in pairs}, key=int)
    ranks = ", ".join(distinct)
    if "above" in outcomes:
        worse = outcomes.count("above")
        why = (
            f"SDXL is worse in KID and FID in {worse} of {len(pairs)} pairs (rank {ranks}) {SCOPE}."
        )
        return claim("contradicted", why, pairs)
    if set(outcomes) == {"below"}:
        why = f"SDXL is better in KID and FID in {name_all(pairs)} (rank {ranks}) {SCOPE}"
        if len(distinct) < 2:
            return claim("not decided", f"{why}; the claim is about two ranks.", pairs)
        return claim("supported", f"{why}.", pairs)
    if not pair_evidence(findings, pairs, KEYS):
        return claim("not decided", NOT_RECORDED, pairs)
    why = (
        f"KID and FID are not both clear of zero on the same side in {name_all(pairs)} "
        f"(rank {ranks}) of this run."
    )
    return claim("not decided", why, pairs)


def decide_text_encoder(findings: Findings) -> Claim:
    """Decide claim 2 by KID, on SDXL arms equal in base model, captioner and rank.

    Supported or contradicted when every pair is clear of zero on the same side.
    """

    def is_pair(first: Arm, second: Arm) -> bool:
        return (
            first.family == "sdxl"
            and first.base_model == second.base_model
            and (first.train_text_encoder, second.train_text_encoder) == (True, False)
            and is_same(first.vlm, second.vlm)
            and is_same(first.lora_rank, second.lora_rank)
        )

    def claim(verdict: Verdict, why: str) -> Claim:
        return Claim(
            number=2,
            text="A trainable text encoder improves SDXL.",
            published="KID 0.028 → 0.020 at rank 128, 0.030 → 0.021 at rank 248",
            verdict=verdict,
            why=why,
            evidence=pair_evidence(findings, pairs, ("kid", "fid")),
            caveats=list_caveats(pairs, TEXT_ENCODER_SETTINGS),
        )

    pairs = list_pairs(findings, is_pair)
    if not pairs:
        return claim(
            "not decided",
            "This run has no two SDXL arms with the same captioner and rank, one with and one "
            "without a trained text encoder.",
        )
    outcome = agree(
        [find_outcome(findings.difference(p.first.name, p.second.name, "kid")) for p in pairs]
    )
    if outcome == "below":
        return claim("supported", f"Training it lowers KID in {name_all(pairs)} {SCOPE}.")
    if outcome == "above":
        return claim("contradicted", f"Training it raises KID in {name_all(pairs)} {SCOPE}.")
    if not pair_evidence(findings, pairs, ("kid",)):
        return claim("not decided", NOT_RECORDED)
    return claim(
        "not decided",
        f"The KID differences of {name_all(pairs)} are not clear of zero on one side.",
    )


def decide_vlm(findings: Findings) -> Claim:
    """Decide claim 3 where arms with Ovis, Gemma and LLaVA-Med differ in the captioner alone.

    Supported: in every such group Ovis is clear below every other captioner in KID, Gemma in FID,
    and LLaVA-Med clear above all in both. Contradicted: one of these is clear the other way.
    """

    def claim(verdict: Verdict, why: str, arms: Sequence[Arm]) -> Claim:
        pairs = [ArmPair(a, b) for i, a in enumerate(arms) for b in arms[i + 1 :]]
        pairs = [pair for pair in pairs if pair.first.vlm != pair.second.vlm]
        return Claim(
            number=3,
            text="The VLM matters: best KID with Ovis, best FID with Gemma, worst both with "
            "LLaVA-Med.",
            published="KID 0.020 (Ovis) to 0.058 (LLaVA-Med); FID 5.05 (Gemma) to 12 (LLaVA-Med)",
            verdict=verdict,
            why=why,
            evidence=pair_evidence(findings, pairs, ("kid", "fid")),
            caveats=list_caveats(pairs, VLM_SETTINGS),
        )

    captioned = [arm for arm in findings.arms if arm.study is not None]
    groups = [
        group
        for group in group_arms(captioned)
        if {"ovis", "gemma", "llava_med"} <= list_vlms(group)
    ]
    if not groups:
        # Without any of the study's captioners, show what there is.
        others = group_arms(captioned or findings.arms)
        largest = max(others, key=lambda group: len({arm.vlm for arm in group}), default=[])
        there = ", ".join(sorted(list_vlms(captioned))) or "none of the poster's"
        why = f"Needs arms alike but for Ovis, Gemma and LLaVA-Med captions; this run has {there}."
        return claim("not decided", why, largest)
    expected = [
        (pair, metric)
        for group in groups
        for pair in (ArmPair(a, b) for a, b in permutations(group, 2))
        for metric, best in (("kid", "ovis"), ("fid", "gemma"))
        if (pair.first.study == best and pair.second.study != best)
        or (pair.second.study == "llava_med" and pair.first.study not in (best, "llava_med"))
    ]
    outcomes = [
        find_outcome(findings.difference(pair.first.name, pair.second.name, metric))
        for pair, metric in expected
    ]
    arms = [arm for group in groups for arm in group]
    if "above" in outcomes:
        pair, metric = expected[outcomes.index("above")]
        why = (
            f"{pair.first.study} was to be below {pair.second.study} in {metric.upper()} and lies "
            f"above it {SCOPE}."
        )
        return claim("contradicted", why, arms)
    held = outcomes.count("below")
    if held == len(outcomes):
        return claim("supported", f"All {held} orderings are clear of zero {SCOPE}.", arms)
    if not any(findings.difference(p.first.name, p.second.name, m) for p, m in expected):
        return claim("not decided", NOT_RECORDED, arms)
    why = f"{held} of {len(outcomes)} orderings are clear of zero as claimed, the others open."
    return claim("not decided", why, arms)


def decide_classifier(findings: Findings) -> Claim:
    """Decide claim 5 on every arm's classifier against the one trained on real slices.

    Supported for an arm: its accuracy is clear below the real one's, the loss is 10 to 20 points,
    and it loses more sensitivity than specificity. Contradicted: the whole interval lies outside
    10 to 20 points of loss, or the specificity's loss is clear of the sensitivity's. All arms
    have to agree. Nothing is decided where the classifier trained on real slices is itself not
    clear of chance, within contrasts too, or no more accurate than a shortcut: there is no
    accuracy to lose.
    """

    def claim(verdict: Verdict, why: str) -> Claim:
        pairs = [(name, REAL) for name in names]
        return Claim(
            number=5,
            text="A ViT trained only on synthetic slices loses about 15 points of accuracy against "
            "real slices, mostly sensitivity.",
            published="accuracy 95 → 80 %, sensitivity 96 → 72.8 %, specificity 98.9 → 95.5 %",
            verdict=verdict,
            why=why,
            evidence=findings.evidence(pairs, ("accuracy", "sensitivity", "specificity")),
        )

    names = [
        arm.name
        for arm in findings.arms
        if findings.difference(arm.name, REAL, "accuracy") is not None
    ]
    if not names:
        why = "No difference of accuracy between synthetic and real training was recorded."
        return claim("not decided", why)
    if any(_is_chance(score) for score in findings.scores):
        why = f"The classifier trained on real slices is not clear of chance {SCOPE}."
        return claim("not decided", why)
    shortcuts = _shortcuts_as_good(findings)
    if shortcuts:
        why = (
            f"The classifier trained on real slices is not clearly more accurate than "
            f"{' and '.join(shortcuts)} {SCOPE}."
        )
        return claim("not decided", why)
    verdicts = {_decide_loss(findings, name) for name in names}
    arms = "the only arm" if len(names) == 1 else f"all {len(names)} arms"
    if verdicts == {"supported"}:
        why = f"{arms} lost 10 to 20 points of accuracy, more of sensitivity, {SCOPE}."
        return claim("supported", capitalise(why))
    if verdicts == {"contradicted"}:
        why = (
            f"{arms} lost clearly less than 10 or more than 20 points, or mostly specificity, "
            f"{SCOPE}."
        )
        return claim("contradicted", capitalise(why))
    if len(verdicts) > 1:
        return claim("not decided", f"The {len(names)} arms do not agree {SCOPE}.")
    why = f"the intervals of {arms} do not settle a loss of 10 to 20 points, mostly sensitivity."
    return claim("not decided", capitalise(why))


def _is_chance(score: ScoreRecord) -> bool:
    is_real = (score.arm, score.group) == (REAL, ALL)
    is_ranking = score.metric in ("auroc", AUROC_WITHIN_CONTRAST)
    return is_real and is_ranking and (score.low is None or score.low <= CHANCE)


def _shortcuts_as_good(findings: Findings) -> list[str]:
    """Name the shortcut baselines whose accuracy is not clear below the real arm's."""
    names = dict.fromkeys(s.arm for s in findings.scores if s.arm.startswith(BASELINE))
    rows = {name: findings.difference(name, REAL, "accuracy") for name in names}
    return [name for name, row in rows.items() if row and find_outcome(row) != "below"]


def _decide_loss(findings: Findings, arm: str) -> Verdict:
    accuracy = findings.difference(arm, REAL, "accuracy")
    sensitivity = findings.difference(arm, REAL, "sensitivity")
    specificity = findings.difference(arm, REAL, "specificity")
    if accuracy is None or sensitivity is None or specificity is None:
        return "not decided"
    largest, smallest = LOSS_BAND
    if accuracy.high < largest or accuracy.low > smallest or sensitivity.low > specificity.high:
        return "contradicted"
    if (
        accuracy.high < 0
        and largest <= accuracy.value <= smallest
        and sensitivity.value < specificity.value
    ):
        return "supported"
    return "not decided"


def _base_caveats(findings: Findings, pairs: Sequence[ArmPair]) -> tuple[str, ...]:
    """Say where the base models differ before any LoRA: then the arms may owe it to them."""
    lines = []
    for pair in pairs:
        bases = (pair.first.without_lora, pair.second.without_lora)
        difference = findings.difference(*bases, "kid")
        if difference is not None and find_outcome(difference) != "open":
            lines.append(
                f"without LoRA the base models already differ by {difference.value:.3f} in KID "
                f"({difference.low:.3f} to {difference.high:.3f})"
            )
    return tuple(dict.fromkeys(lines))
