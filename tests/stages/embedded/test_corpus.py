"""The phantoms of the embedded models: which subjects, and shards that come back as written."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.contracts import LABELS
from stages.embedded.corpora import heads
from stages.preprocess.sources.phantom import SEED_LIMIT


def test_base_models_see_no_tumour_and_the_vae_every_kind_too() -> None:
    for split in ("base", *heads.CUT_TWICE):
        assert {heads.label_of(split, index) for index in range(12)} == {"notumor"}
    assert {heads.label_of("vae", index) for index in range(12)} == set(LABELS[1:])
    assert {heads.label_of("val", index) for index in range(12)} == set(LABELS)


def test_no_split_shares_a_head_with_another_or_with_the_source() -> None:
    plans = [heads.plan(Path(), 500, split, 128) for split in heads.SPLIT_OFFSETS]
    seeds = [{order.seed for order in plan} for plan in plans]
    assert [len(own) for own in seeds] == [500, 500, 500, 250, 250]
    assert len(set().union(*seeds)) == 2000
    assert min(min(own) for own in seeds) >= SEED_LIMIT


def test_each_head_of_the_wide_phase_is_there_whole_and_stripped() -> None:
    whole, stripped, following, _ = heads.plan(Path(), 4, "wide", 128)
    assert (whole.is_stripped, stripped.is_stripped) == (False, True)
    assert whole.seed == stripped.seed == following.seed - 1
    assert whole.path != stripped.path
    assert {order.is_stripped for order in heads.plan(Path(), 4, "base", 128)} == {None}


@pytest.mark.slow
def test_a_shard_comes_back_as_it_was_made(tmp_path: Path) -> None:
    (order,) = heads.plan(tmp_path, 1, "val", 64)
    heads.make_shard(order)
    found = heads.read(tmp_path, 1, "val", 64)
    count = len(found.images)
    assert found.images.shape == (count, 64, 64)
    assert found.fine.shape == (count, heads.FINE_PX, heads.FINE_PX)
    assert 24 <= count <= 36  # 3 planes x 4 contrasts x 3 positions, less air
    assert set(found.orientation) == {0, 1, 2}
    assert np.all(found.images.std((1, 2)) > 5)
