"""Heads with findings: seeds of their own, and shards that come back with the truth of each."""

from pathlib import Path

import numpy as np
import pytest

from stages.components.phantoms.findings import KINDS
from stages.embedded.corpora import findings, heads


def test_no_head_is_shared_with_another_split() -> None:
    plans = [findings.plan(Path(), 500, split, 128) for split in findings.SPLIT_OFFSETS]
    own = {order.seed for plan in plans for order in plan}
    assert len(own) == 1000
    for split in heads.SPLIT_OFFSETS:
        assert own.isdisjoint(order.seed for order in heads.plan(Path(), 500, split, 128))


def test_heads_of_the_wide_phase_are_whole_and_stripped_in_turn() -> None:
    wide = findings.plan(Path(), 4, "wide_findings", 128)
    assert [order.is_stripped for order in wide] == [False, True, False, True]
    assert {order.is_stripped for order in findings.plan(Path(), 4, "findings", 128)} == {None}


@pytest.mark.slow
def test_a_shard_comes_back_with_the_truth_of_every_slice(tmp_path: Path) -> None:
    (order,) = findings.plan(tmp_path, 1, "findings", 64)
    findings.make_shard(order)
    found = findings.read(tmp_path, 1, "findings", 64)
    count = len(found.reports)
    # eight findings, two contrasts, three planes, less slivers
    assert 36 <= count <= 48
    assert found.images.shape == found.findings.shape == (count, 64, 64)
    assert set(found.names) <= {kind.name for kind in KINDS}
    for image, inside, name, report in zip(
        found.images, found.findings, found.names, found.reports, strict=True
    ):
        assert image.std() > 5
        assert np.count_nonzero(inside) >= findings.MIN_PIXELS
        assert report.tumor is False
        assert report.general_description is not None
        assert report.general_description.endswith(name)
        if report.orientation != "sagittal" and report.side in ("left", "right"):
            columns = np.flatnonzero((image > 30).any(axis=0))
            offset = np.nonzero(inside)[1].mean() - columns.mean()
            assert (offset < 0) == (report.side == "left")
