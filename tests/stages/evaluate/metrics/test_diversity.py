import numpy as np
import pytest
from scipy.spatial.distance import pdist

from stages.components.statistics.bootstrap import BLOCK
from stages.evaluate import ssim
from stages.evaluate.metric import Described
from stages.evaluate.metrics import clip_score, feature_spread, ms_ssim
from stages.evaluate.metrics._pairs import disjoint_pairs, permutation_p


def described(rows, groups=None, labels=None, prompts=None, weights=None, texts=None):
    count = len(rows)
    groups = np.arange(count) if groups is None else np.asarray(groups)
    weights = np.ones((1, groups.max() + 1)) if weights is None else weights
    return Described(rows, groups, weights, labels or ("a",) * count, prompts, texts)


def test_pairs_share_a_class_and_no_group_and_no_slice():
    sample = described(np.zeros((7, 1)), [0, 0, 1, 1, 2, 3, 4], tuple("aaaaabb"))
    first, second = disjoint_pairs(sample, "class")
    pairs = set(zip(first.tolist(), second.tolist(), strict=True))
    assert pairs == {(0, 2), (1, 3), (5, 6)}


def test_real_slices_have_no_pairs_of_one_prompt():
    first, _ = disjoint_pairs(described(np.zeros((4, 1))), "prompt")
    assert len(first) == 0


def test_spread_is_that_of_the_definition():
    rows = np.random.default_rng(0).normal(size=(6, 3))
    sample = described(rows, [0, 0, 1, 2, 3, 4], tuple("aaabbb"), ("p", "q", "q", "r", "r", "s"))
    within, prompt = feature_spread.describe(sample)[:, 0]
    pairs = [(0, 2), (1, 2), (3, 4), (3, 5), (4, 5)]
    expected = np.mean([np.linalg.norm(rows[i] - rows[j]) for i, j in pairs])
    assert within == pytest.approx(expected)
    expected = np.mean([np.linalg.norm(rows[i] - rows[j]) for i, j in [(1, 2), (3, 4)]])
    assert prompt == pytest.approx(expected)


def test_spread_in_a_draw_counts_groups_as_drawn():
    rows = np.random.default_rng(0).normal(size=(4, 3))
    weights = np.array([[1.0, 1, 1, 1], [2, 1, 0, 1]])
    found = feature_spread.describe(described(rows, weights=weights))[0, 1]
    pairs = {(0, 1): 2, (0, 3): 2, (1, 3): 1}
    values = [np.linalg.norm(rows[i] - rows[j]) for i, j in pairs]
    assert found == pytest.approx(np.average(values, weights=list(pairs.values())))


def test_spread_of_more_rows_than_a_block_holds_is_that_of_the_definition():
    rows = np.random.default_rng(0).normal(size=(BLOCK + 7, 3))
    found = feature_spread.describe(described(rows))[0]
    assert found == pytest.approx(np.mean(pdist(rows)))


def test_a_sample_that_repeats_itself_has_less_spread_and_a_small_p():
    rng = np.random.default_rng(0)
    real, repeated = described(rng.normal(size=(40, 5))), described(0.1 * rng.normal(size=(40, 5)))
    assert feature_spread.describe(repeated)[0, 0] < feature_spread.describe(real)[0, 0]
    p, none = feature_spread.chance(repeated, real, rng, 99)
    assert p == pytest.approx(0.01)
    assert none is None
    like = described(rng.normal(size=(40, 5)))
    assert feature_spread.chance(like, real, rng, 99)[0] > 0.02


def pictures(n, noise, seed=0):
    rng = np.random.default_rng(seed)
    shape = (n, ssim.SIZE_PX, ssim.SIZE_PX)
    return np.clip(rng.normal(128, noise, shape), 0, 255).astype(np.uint8).reshape(n, -1)


def test_copies_are_all_alike_and_noise_is_not():
    same = np.repeat(pictures(1, 40), 6, axis=0)
    assert ms_ssim.describe(described(same))[0, 0] == pytest.approx(1, abs=1e-5)
    assert ms_ssim.describe(described(pictures(6, 40)))[0, 0] < 0.3


def test_sameness_has_a_p_against_real_slices_and_prompts_of_their_own():
    rng = np.random.default_rng(0)
    same = described(np.repeat(pictures(1, 40), 12, axis=0), prompts=("p",) * 12)
    varied = described(pictures(12, 40))
    assert ms_ssim.describe(same)[:, 0] == pytest.approx([1, 1], abs=1e-5)
    assert np.isnan(ms_ssim.describe(varied)[1, 0])
    p, none = ms_ssim.chance(same, varied, rng, 99)
    assert p < 0.05
    assert none is None


def test_no_values_or_permutations_give_no_p():
    rng = np.random.default_rng(0)
    values = np.arange(5.0)
    assert permutation_p(values, values[:0], higher=True, rng=rng, count=9) is None
    assert permutation_p(values, values, higher=True, rng=rng, count=0) is None


def test_images_that_fit_their_prompts_score_higher_than_chance():
    rng = np.random.default_rng(0)
    texts = rng.normal(size=(12, 6))
    fitting = described(texts + 0.3 * rng.normal(size=texts.shape), texts=texts)
    score, gain = clip_score.describe(fitting)[:, 0]
    assert score > 80
    others = np.mean([score_of(fitting.rows[i], texts[j]) for i in range(12) for j in range(12)
                      if i != j])  # fmt: skip
    assert gain == pytest.approx(score - others)
    fits = [score_of(image, text) for image, text in zip(fitting.rows, texts, strict=True)]
    assert score == pytest.approx(np.mean(fits))
    assert clip_score.chance(fitting, fitting, rng, 99)[0] == pytest.approx(0.01)
    stranger = described(rng.normal(size=texts.shape), texts=texts)
    assert clip_score.chance(stranger, fitting, rng, 99)[0] > 0.02


def score_of(image, text):
    return 100 * image @ text / np.linalg.norm(image) / np.linalg.norm(text)


def test_real_slices_have_no_prompts_to_fit():
    bare = described(np.ones((4, 2)))
    assert np.isnan(clip_score.describe(bare)).all()
    assert clip_score.chance(bare, bare, np.random.default_rng(0), 9) == (None, None)
