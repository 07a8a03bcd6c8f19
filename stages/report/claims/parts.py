"""Parts of all claims' rules: the claim, pairs of arms, outcomes and caveats."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Literal

from stages.report.arms import Arm
from stages.report.claims.evidence import Difference, Evidence, Findings

Verdict = Literal["supported", "contradicted", "in favour", "against", "not decided"]
SideOfZero = Literal["below", "above", "open"]

SCOPE = "in this run, at this size"
# What a rule's verdict comes to where each arm was trained once: intervals hold which slices were
# drawn, and another training of one arm moved KID as far as captioners did (0.006, n = 192).
BY_ONE_TRAINING: Mapping[Verdict, Verdict] = {"supported": "in favour", "contradicted": "against"}
# Claims about captioners: arms may differ in these, or they follow from it.
VLM_SETTINGS = ("caption.vlm", "caption.max_failed_fraction")


@dataclass(frozen=True)
class Claim:
    """A claim of the poster, what the poster measured, and what this run says."""

    number: int
    text: str
    published: str
    verdict: Verdict
    why: str
    evidence: tuple[Evidence, ...] = ()
    caveats: tuple[str, ...] = ()

    @property
    def strength(self) -> str:
        """Say what the verdict rests on."""
        count = len({item.what for item in self.evidence})
        if not count:
            return "nothing to compare"
        return f"{count} comparison{'s' if count > 1 else ''}, one training each"


@dataclass(frozen=True)
class ArmPair:
    """Two arms that differ in the thing a claim is about."""

    first: Arm
    second: Arm

    def __str__(self) -> str:
        return f"{self.first.name} − {self.second.name}"


def find_outcome(difference: Difference | None) -> SideOfZero:
    """Tell on which side of zero a difference lies with its whole interval."""
    if difference is None:
        return "open"
    if difference.high < 0:
        return "below"
    return "above" if difference.low > 0 else "open"


def agree(outcomes: Sequence[SideOfZero]) -> SideOfZero:
    """Return what all outcomes are; open where they differ."""
    return outcomes[0] if len(set(outcomes)) == 1 else "open"


def is_same(first: object, second: object) -> bool:
    """Tell whether two facts are known and equal."""
    return first is not None and first == second


def list_pairs(findings: Findings, is_pair: Callable[[Arm, Arm], bool]) -> list[ArmPair]:
    """List the ordered pairs of arms that fit."""
    return [ArmPair(a, b) for a, b in permutations(findings.arms, 2) if is_pair(a, b)]


def group_arms(arms: Sequence[Arm]) -> list[list[Arm]]:
    """Group arms that are equal in base model, rank and text-encoder training."""
    grouped: dict[tuple[str | None, int | None, bool | None], list[Arm]] = {}
    for arm in arms:
        key = (arm.base_model, arm.lora_rank, arm.train_text_encoder)
        grouped.setdefault(key, []).append(arm)
    return list(grouped.values())


def list_vlms(arms: Sequence[Arm]) -> set[str]:
    """Return which of the study's captioners the arms have."""
    return {arm.study for arm in arms if arm.study is not None}


def name_all(pairs: Sequence[ArmPair]) -> str:
    """Say how many pairs, in words."""
    return "the only pair" if len(pairs) == 1 else f"all {len(pairs)} pairs"


def capitalise(text: str) -> str:
    """Begin with a capital."""
    return text[0].upper() + text[1:]


def list_caveats(pairs: Sequence[ArmPair], apart_from: Sequence[str]) -> tuple[str, ...]:
    """Name the settings that pairs differ in besides what the claim is about."""
    return tuple(
        f"{pair} also differ in {', '.join(unequal)}"
        for pair in pairs
        if (unequal := pair.first.unequal_settings(pair.second, apart_from=apart_from))
    )


def pair_evidence(
    findings: Findings, pairs: Sequence[ArmPair], metrics: Sequence[str]
) -> tuple[Evidence, ...]:
    """List the recorded differences of pairs."""
    return findings.evidence([(p.first.name, p.second.name) for p in pairs], metrics)
