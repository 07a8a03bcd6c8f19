"""Claim 4 of the poster: the prompt sets where a tumour lies, best with the best captions.

The side is left against right, of images in which a tumour is seen. A base model may follow prompts
without any captions of ours, so an arm is held against its own base model without LoRA, asked the
same with the same seeds. Chance, what the arm's answers would reach if they were dealt out among
its prompts, stands beside it and decides nothing.
"""

from collections.abc import Sequence
from itertools import permutations

from pipeline.contracts import CHANCE, REAL
from stages.report.claims.evidence import Findings
from stages.report.claims.parts import (
    SCOPE,
    VLM_SETTINGS,
    ArmPair,
    Claim,
    Verdict,
    capitalise,
    find_outcome,
    group_arms,
    list_caveats,
    pair_evidence,
)

METRIC = "location_side"
LEAST_JUDGE = 0.8  # share of real slices whose side the judge must name rightly
WORDS: dict[Verdict, str] = {
    "supported": "the side follows the prompt more often than without LoRA in at least one arm "
    f"{SCOPE}",
    "contradicted": f"the side follows the prompt no better than without LoRA in any arm {SCOPE}",
    "not decided": "whether the side follows the prompt more often than without LoRA is open "
    f"{SCOPE}",
}


def decide_location(findings: Findings) -> Claim:
    """Decide claim 4 by the share of images whose tumour lies on the side asked for.

    Control: shown where some arm is clear above its base model without LoRA, refuted where no arm
    is and every arm's whole interval stays below halfway from its base model to always right.
    Captions: shown where Gemini's
    arm is clear above every arm that differs in the captioner alone, refuted where it is clear
    below one. Supported when both are shown, contradicted when one is refuted. Nothing is decided
    where the judge itself names the side of fewer than `LEAST_JUDGE` of real slices rightly.
    """
    compared = [
        (arm.name, arm.without_lora)
        for arm in findings.arms
        if findings.difference(arm.name, arm.without_lora, METRIC) is not None
    ]
    beside = [(arm.name, CHANCE) for arm in findings.arms]
    pairs = [
        ArmPair(first, second)
        for group in group_arms(findings.arms)
        for first, second in permutations(group, 2)
        if compared and first.study == "gemini" and second.study not in (None, "gemini")
    ]

    def claim(verdict: Verdict, why: str) -> Claim:
        return Claim(
            number=4,
            text="Location can be set by the prompt, and the more structured the captions the "
            "better prompts are followed (best: Gemini).",
            published="location followed, by eye on 20: Gemini .82, Ovis .66, Gemma .47, LLaVA-Med "
            ".45",
            verdict=verdict,
            why=why,
            evidence=findings.evidence([*compared, *beside], (METRIC,))
            + pair_evidence(findings, pairs, (METRIC,)),
            caveats=list_caveats(pairs, VLM_SETTINGS),
        )

    if not compared:
        return claim(
            "not decided",
            "No judge of this run says on which side the tumours of an arm lie, beside those of "
            "its base model without LoRA. The image grid shows prompts beside images, which is no "
            "evidence.",
        )
    ceiling = findings.score(REAL, METRIC)
    if ceiling is None or ceiling.value < LEAST_JUDGE:
        share = "an unknown share" if ceiling is None else f"{ceiling.value:.0%}"
        why = (
            f"The judge names the side of {share} of real slices rightly: too few to judge others."
        )
        return claim("not decided", why)
    control = decide_control(findings, compared)
    words = capitalise(WORDS[control])
    outcomes = [
        find_outcome(findings.difference(pair.first.name, pair.second.name, METRIC))
        for pair in pairs
    ]
    if control == "contradicted":
        return claim("contradicted", f"{words}.")
    if "below" in outcomes:
        return claim("contradicted", f"{words}, but Gemini's arm is not the best.")
    if not outcomes:
        return claim("not decided", f"{words}; no arms differ in Gemini's captions alone.")
    if control == "supported" and set(outcomes) == {"above"}:
        return claim("supported", f"{words}, best with Gemini's captions.")
    return claim("not decided", f"{words}; Gemini's lead is not clear of zero.")


def decide_control(findings: Findings, compared: Sequence[tuple[str, str]]) -> Verdict:
    """Decide whether the side follows the prompt in any arm, or in none of them, by its base."""
    refuted = []
    for name, base in compared:
        difference, score = findings.difference(name, base, METRIC), findings.score(base, METRIC)
        if difference is not None and difference.low > 0:
            return "supported"
        if difference is not None and score is not None:
            refuted.append(difference.high < (1 - score.value) / 2)
    return "contradicted" if refuted and all(refuted) else "not decided"
