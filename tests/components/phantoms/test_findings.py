"""Findings that are no tumours: where they lie, what they look like, and that seeds repeat."""

import functools

import numpy as np
import pytest

from stages.components.phantoms.findings import KINDS, Finding, build_findings
from stages.components.phantoms.sites import LOCATIONS

NUM_FINDINGS = 6


@functools.cache
def findings(seed: int) -> tuple[Finding, ...]:
    """Build each head of this file once."""
    return tuple(build_findings(seed, NUM_FINDINGS, spacing_mm=3.0))


def test_one_seed_repeats_and_earlier_findings_do_not_depend_on_the_count() -> None:
    again = next(build_findings(0, 1, spacing_mm=3.0))
    first = findings(0)[0]
    assert (again.name, again.location, again.side) == (first.name, first.location, first.side)
    for modality, volume in first.volumes.items():
        assert np.array_equal(volume, again.volumes[modality])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_findings_lie_where_tumours_do_on_the_side_they_name(seed: int) -> None:
    names = {kind.name for kind in KINDS}
    for finding in findings(seed):
        assert finding.name in names
        assert finding.location in LOCATIONS
        inside = finding.mask > 0
        assert inside.any()
        middle = (finding.mask.shape[0] - 1) / 2
        offset = np.nonzero(inside)[0].mean() - middle
        if finding.side != "midline":
            assert (offset < 0) == (finding.side == "left")


def test_a_stripped_head_keeps_its_brain_and_its_finding_alone() -> None:
    whole, stripped = (
        next(build_findings(0, 1, spacing_mm=3.0, skull_stripped=cut)) for cut in (False, True)
    )
    assert np.array_equal(whole.mask, stripped.mask)
    inside = whole.mask > 0
    for modality, volume in whole.volumes.items():
        cut = stripped.volumes[modality]
        assert (cut > 0.2).mean() < 0.8 * (volume > 0.2).mean()
        assert np.allclose(cut[inside].mean(), volume[inside].mean(), atol=0.05)


def test_contrasts_take_turns() -> None:
    assert [tuple(finding.volumes) for finding in findings(0)] == [
        ("t1", "t1ce"),
        ("t2", "flair"),
    ] * (NUM_FINDINGS // 2)


def test_fluid_is_dark_on_t1_and_blood_is_bright() -> None:
    means: dict[str, list[float]] = {"cyst": [], "hematoma": []}
    for finding in (found for seed in range(4) for found in findings(seed)):
        for kind, values in means.items():
            if finding.name.endswith(kind) and "t1" in finding.volumes:
                values.append(float(finding.volumes["t1"][finding.mask > 0].mean()))
    assert means["cyst"]
    assert means["hematoma"]
    assert max(means["cyst"]) < min(means["hematoma"])
