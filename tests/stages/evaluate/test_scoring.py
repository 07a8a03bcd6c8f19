import numpy as np
import pytest
from PIL import Image

from pipeline import registry
from pipeline.contracts import PluginConfig
from pipeline.errors import DataError, MissingWeightsError, SampleSizeError, UnknownPluginError
from stages.components.features import extraction
from stages.components.statistics import estimates
from stages.components.statistics.estimates import Estimate
from stages.evaluate import differences
from stages.evaluate.metrics import fid, kid, prdc
from stages.evaluate.panel import Panel, load_metric


class Means:
    """A network's stand-in: mean and spread of each channel."""

    name = "means"
    digest = "weights"
    num_features = 6
    input_size = 16

    def __call__(self, images):
        pixels = images.astype(np.float32) / 255
        return np.concatenate([pixels.mean(axis=(1, 2)), pixels.std(axis=(1, 2))], axis=1)


def pictures(n, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (10 + k, 12, 3), dtype=np.uint8) for k in range(n)]


def estimate(value, draws, spec=kid.SPEC):
    return Estimate(spec, value, None, None, np.asarray(draws, float), 10, 10)


@pytest.fixture
def panel():
    rows = np.random.default_rng(0).normal(size=(20, 4))
    groups = [str(row // 2) for row in range(20)]
    return Panel.of(rows, groups, num_draws=40, confidence=0.95, seed_parts=(0, "test"))


def test_one_channel_is_repeated_and_colour_is_kept(tmp_path):
    gray = np.arange(64, dtype=np.uint8).reshape(8, 8)
    Image.fromarray(gray).save(tmp_path / "gray.png")
    colour = np.stack([gray, gray // 2, 255 - gray], axis=-1)
    Image.fromarray(colour).save(tmp_path / "colour.png")
    np.testing.assert_array_equal(
        extraction.read_rgb(tmp_path / "gray.png"), np.repeat(gray[..., None], 3, -1)
    )
    np.testing.assert_array_equal(extraction.read_rgb(tmp_path / "colour.png"), colour)


def test_transparency_lies_over_black(tmp_path):
    clear = np.full((4, 4, 4), 200, np.uint8)
    clear[..., 3] = 0
    Image.fromarray(clear).save(tmp_path / "clear.png")
    assert extraction.read_rgb(tmp_path / "clear.png").max() == 0


def test_a_damaged_image_is_named(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"bad\.png"):
        extraction.read_rgb(tmp_path / "bad.png")


def test_padding_is_black_and_even():
    square = extraction.to_square(np.full((2, 4, 3), 9, np.uint8))
    assert square.shape == (4, 4, 3)
    assert square[[0, 3]].max() == 0
    assert (square[1:3] == 9).all()


@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_batch_size_does_not_matter(batch_size):
    expected = extraction.extract([Means()], pictures(7), batch_size=7)["means"]
    found = extraction.extract([Means()], pictures(7), batch_size=batch_size)["means"]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found.dtype == np.float64


def test_images_are_consumed_once_for_all_extractors():
    class Other(Means):
        name = "other"

    found = extraction.extract([Means(), Other()], iter(pictures(3)), batch_size=2)
    assert {name: rows.shape for name, rows in found.items()} == {
        "means": (3, 6),
        "other": (3, 6),
    }


def test_no_images_give_no_rows():
    assert extraction.extract([Means()], [], batch_size=2)["means"].shape == (0, 6)


def test_plugins_are_found_by_name():
    assert load_metric("kid").SPEC.key == "kid"
    with pytest.raises(UnknownPluginError, match="'kidd'"):
        load_metric("kidd")
    with pytest.raises(UnknownPluginError, match="'inceptoin'"):
        extraction.load_extractor(PluginConfig(name="inceptoin"), "cpu")


def test_arms_meet_the_same_real_draws(panel):
    rows = np.random.default_rng(1).normal(size=(20, 4))
    groups = [str(row) for row in range(20)]
    same = [panel.score(kid, rows, groups, name="a")["kid"] for _ in range(2)]
    assert (same[0].draws == same[1].draws).all()
    other = panel.score(kid, rows, groups, name="b")["kid"]
    assert other.value == same[0].value
    assert (other.draws != same[0].draws).any()


def test_intervals_hold_the_value(panel):
    rows = np.random.default_rng(1).normal(0.5, size=(20, 4))
    for metric in (kid, fid):
        (found,) = panel.score(metric, rows, [str(k) for k in range(20)], name="a").values()
        assert found.low < found.value < found.high
        assert (found.n_real, found.n_synthetic) == (20, 20)


def test_arms_of_one_pool_meet_the_same_draws_of_prompts(panel):
    rows = np.random.default_rng(1).normal(size=(20, 4))
    groups = [f"grid-{row}" for row in range(20)]
    a, b = (panel.score(kid, rows, groups, name=n, pool=groups)["kid"] for n in "ab")
    assert (a.draws == b.draws).all()


def test_paired_samples_share_groups_and_draws(panel):
    paired = panel.score(kid, panel.real.features * 1.01, [], name="vae", paired=True)["kid"]
    assert len(paired.draws) == 40


def test_too_few_images_are_refused(panel):
    with pytest.raises(SampleSizeError, match="found 1"):
        panel.score(kid, np.zeros((1, 4)), ["a"], name="a")


def test_no_bootstrap_gives_no_interval():
    rows = np.random.default_rng(0).normal(size=(8, 3))
    bare = Panel.of(rows, list("abcdefgh"), num_draws=0, confidence=0.95, seed_parts=(0,))
    found = bare.score(kid, rows + 1, list("abcdefgh"), name="a")["kid"]
    assert (found.low, found.high, len(found.draws)) == (None, None, 0)


def test_difference_takes_paired_draws():
    noise = np.random.default_rng(0).normal(size=50)
    a, b = estimate(2.0, 2 + noise), estimate(1.5, 1.5 + 0.99 * noise)
    found = differences.difference(a, b, confidence=0.95)
    assert (found["metric"], found["value"], found["num_groups"]) == ("kid", 0.5, None)
    assert 0.45 < found["low"] < 0.5 < found["high"] < 0.55
    same = differences.difference(a, estimate(1.5, 1.5 + noise), confidence=0.95)
    assert (same["low"], same["high"]) == (None, None)  # no spread, so nothing is known of it


def test_differences_of_biased_metrics_are_centred():
    draws = np.random.default_rng(0).normal(size=200)
    a, b = estimate(2.0, 9 + draws, fid.SPEC), estimate(1.0, np.full(200, 2.0), fid.SPEC)
    found = differences.difference(a, b, confidence=0.9)
    assert found["low"] < 1.0 < found["high"]


def test_all_pairs_are_named_in_order():
    found = {name: estimate(float(k), [k, 2 * k + 1]) for k, name in enumerate("abc")}
    assert list(differences.all_differences(found, "abc", confidence=0.9)) == [
        "a - b",
        "a - c",
        "b - c",
    ]
    found["d"] = found["c"]
    assert "c - d" not in differences.all_differences(found, "abcd", confidence=0.9)


def test_gap_closed_runs_from_base_to_vae():
    base, vae = estimate(1.0, [1.0, 1.0, 1.0]), estimate(0.2, [0.2, 0.2, 0.2])
    for value, expected in ((1.0, 0.0), (0.6, 0.5), (0.2, 1.0), (1.4, -0.5)):
        arm = estimate(value, [value - 0.08, value, value + 0.08])
        found = differences.gap_closed(arm=arm, base=base, vae=vae, confidence=0.9)
        assert found.value == pytest.approx(expected)
        assert found.low < found.value < found.high
        assert found.spec.higher_is_better


def test_no_gap_where_the_base_is_as_good_as_its_vae():
    arm = estimate(0.1, [0.1])
    assert differences.gap_closed(arm=arm, base=arm, vae=arm, confidence=0.9) is None


def test_draws_without_a_gap_are_left_out():
    base, vae = estimate(1.0, [1.0, 0.1]), estimate(0.2, [0.2, 0.2])
    found = differences.gap_closed(
        arm=estimate(0.6, [0.6, 0.6]), base=base, vae=vae, confidence=0.9
    )
    assert found.draws == pytest.approx([0.5])


def test_p_is_small_for_a_shifted_sample_and_not_for_one_like_the_floor(panel):
    rng = np.random.default_rng(5)
    floor = rng.normal(size=(20, 4)), [str(row // 2) for row in range(20)]
    for shift, low, high in ((2.0, 0.009, 0.048), (0.0, 0.05, 1.0)):
        sample = rng.normal(shift, size=(20, 4)), [str(row) for row in range(20)]
        for metric in (kid, fid):
            (p,) = panel.chance(metric, sample, floor, name="a", count=99)
            assert low < p <= high, (metric.SPEC.key, shift)
            assert (p,) == panel.chance(metric, sample, floor, name="a", count=99)


def test_p_of_a_score_that_should_be_high_looks_at_low_draws(panel):
    rng = np.random.default_rng(6)
    floor = rng.normal(size=(20, 4)), [str(row) for row in range(20)]
    far = 9 + rng.normal(size=(20, 4)), floor[1]
    precision, recall, density, coverage = panel.chance(prdc, far, floor, name="a", count=99)
    assert max(precision, recall, density, coverage) == pytest.approx(0.01)


def test_p_is_uniform_where_the_sample_is_of_the_floors_kind():
    rng = np.random.default_rng(7)
    values = []
    for seed in range(60):
        rows = [rng.normal(size=(12, 3)) for _ in range(3)]
        names = [str(k) for k in range(12)]
        panel = Panel.of(rows[0], names, num_draws=0, confidence=0.9, seed_parts=(seed,))
        values += panel.chance(kid, (rows[1], names), (rows[2], names), name="a", count=39)
    assert np.mean(values) == pytest.approx(0.5, abs=0.12)  # standard error 0.037
    assert np.mean(np.asarray(values) <= 0.1) < 0.25


def test_no_permutations_give_no_p(panel):
    sample = np.zeros((4, 4)), list("abcd")
    assert panel.chance(prdc, sample, sample, name="a", count=0) == (None,) * 4


def test_a_missing_network_is_named_and_the_others_go_on(add_file):
    add_file(registry.FEATURES, "blocks")
    gone = PluginConfig(name="vgg16", settings={"weights": "gone.pth"})
    found, missing = extraction.load_extractors([PluginConfig(name="blocks"), gone], "cpu")
    assert [extractor.name for extractor in found] == ["blocks"]
    assert "gone.pth'" in missing[0] and "download" in missing[0]
    with pytest.raises(MissingWeightsError, match=r"gone\.pth"):
        extraction.load_extractors([gone], "cpu")


class Counting(Means):
    """Counts the images it sees."""

    digest = "weights-1"

    def __init__(self):
        self.count = 0

    def __call__(self, images):
        self.count += len(images)
        return super().__call__(images)


def test_features_are_computed_once_for_each_image_and_network(tmp_path):
    images = [*pictures(7), *pictures(3)]
    first = Counting()
    whole = extraction.extract([first], images, batch_size=4, cache_dir=tmp_path)["means"]
    assert first.count == 7
    again = Counting()
    found = extraction.extract([again], images[::-1], batch_size=3, cache_dir=tmp_path)["means"]
    assert again.count == 0
    np.testing.assert_array_equal(found[::-1], whole)
    other = Counting()
    other.digest = "weights-2"
    extraction.extract([other], images, batch_size=4, cache_dir=tmp_path)
    assert other.count == 7


def test_brightness_is_kept_beside_features():
    image = np.zeros((8, 8, 3), np.uint8)
    image[..., 1] = 200
    found = extraction.extract([], [image, image], batch_size=1, luma_sizes=[4])
    assert found[extraction.luma_name(4)].dtype == np.uint8
    assert found[extraction.luma_name(4)].tolist() == [[117] * 16] * 2  # 0.587 * 200


@pytest.mark.parametrize(("value", "width"), [(0.0, 0.37), (1.0, 0.37)])
def test_no_interval_has_no_width(value, width):
    """All draws alike, as of a precision of 0: as many groups as there are say no more."""
    precision, _, density, _ = prdc.SPEC.each()
    same = np.full(200, value)
    given = {"num_groups": 9, "confidence": 0.95, "n_real": 9, "n_synthetic": 9}
    found = estimates.make_estimate(precision, same, **given)
    assert found.high - found.low == pytest.approx(width, abs=0.01)
    alone = estimates.make_estimate(density, same, **given)
    assert (alone.low, alone.high) == (None, None)


def test_an_interval_of_a_share_holds_its_value_and_stays_between_nought_and_one():
    precision, _, density, _ = prdc.SPEC.each()
    for spec, values, expected in (
        (precision, [0.0] + [0.0] * 30 + [0.2] * 2, (0.0, None)),  # the mean lies above most draws
        (precision, [1.0, 0.5, 0.9, 1.0, 1.0], (None, 1.0)),
        (density, [0.0, 0.0, 0.0, 0.3], (0.0, None)),
    ):
        found = estimates.make_estimate(
            spec, np.asarray(values), num_groups=9, confidence=0.9, n_real=9, n_synthetic=9
        )
        assert found.low <= found.value <= found.high
        assert expected[0] is None or found.low == expected[0]
        assert expected[1] is None or found.high == expected[1]
