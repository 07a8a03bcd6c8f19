"""The scorer: every metric of every sample on every network, overall, by class, by orientation.

What cannot be scored is said, not raised: a metric that needs more images than a group has, or a
network that is not there, leaves a warning and no row.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from pipeline.contracts import ALL, BASE, GAP_CLOSED, REAL, VAE, ScoreRecord, ScoreStyle
from pipeline.errors import SampleSizeError
from pipeline.seeding import numpy_rng
from pipeline.settings import EvaluateConfig
from stages.components.features import extraction
from stages.components.features.extraction import luma_name
from stages.components.statistics.bootstrap import FloatArray, weighted_mean
from stages.components.statistics.estimates import LUMA, Estimate
from stages.evaluate import ssim
from stages.evaluate.differences import all_differences, gap_closed
from stages.evaluate.metric import Described, Metric, SampleMetric
from stages.evaluate.panel import Panel, load_metric, with_p
from stages.evaluate.reconstruction import PSNR
from stages.evaluate.samples import FeatureSample, pool_groups

LUMA_FEATURES = luma_name(ssim.SIZE_PX)
PAIRED_WITH_REAL = "kid"  # the score that `gap_closed` is made of


@dataclass(frozen=True)
class Scores:
    """All that was scored: rows, the draws behind their intervals, and what the notes say."""

    records: tuple[ScoreRecord, ...]
    draws: Mapping[str, FloatArray]  # "metric/features/group/arm" -> (num_draws,)
    differences: Mapping[str, Sequence[Mapping[str, Any]]]  # "arm - arm" -> a JSON object each
    num_draws: Mapping[str, int]  # by metric
    styles: Mapping[str, ScoreStyle]  # by metric: how a page shows it
    warnings: tuple[str, ...]  # with what was refused, and all groups that it was refused for


class Scorer:
    """Turns samples into estimates, and gathers them; `result` hands out what there is."""

    def __init__(self, config: EvaluateConfig, *, experiment: str, seed: int) -> None:
        self.config = config
        self.experiment = experiment
        self.seed = seed
        self._records: list[ScoreRecord] = []
        self._draws: dict[str, FloatArray] = {}
        self._differences: dict[str, list[dict[str, Any]]] = {}
        self._num_draws: dict[str, int] = {}
        self._styles: dict[str, ScoreStyle] = {}
        self._warnings: list[str] = []
        self._refused: dict[str, dict[str, None]] = {}

    def warn(self, line: str) -> None:
        """Keep a warning, once."""
        if line not in self._warnings:
            self._warnings.append(line)

    def result(self) -> Scores:
        """Hand out what was gathered so far; what is added later does not change it."""
        refused = (f"{why}; refused for {', '.join(of)}" for why, of in self._refused.items())
        return Scores(
            records=tuple(self._records),
            draws=dict(self._draws),
            differences={pair: list(rows) for pair, rows in self._differences.items()},
            num_draws=dict(self._num_draws),
            styles=dict(self._styles),
            warnings=(*self._warnings, *refused),
        )

    def add(self, arm: str, group: str, features: str | None, estimate: Estimate) -> None:
        """Keep an estimate as a record and its draws."""
        spec = estimate.spec
        self._records.append(
            ScoreRecord(
                experiment=self.experiment,
                arm=arm,
                stage="evaluate",
                metric=spec.key,
                features=features,
                group=group,
                value=estimate.value,
                low=estimate.low,
                high=estimate.high,
                n_real=estimate.n_real,
                n_synthetic=estimate.n_synthetic,
                higher_is_better=spec.higher_is_better,
                p=estimate.p,
                num_groups=estimate.num_groups,
                num_negative_groups=estimate.num_negative_groups,
            )
        )
        self._styles[spec.key] = spec.style()
        if len(estimate.draws):
            self._draws["/".join([spec.key, features or "pixels", group, arm])] = estimate.draws
            self._num_draws[spec.key] = len(estimate.draws)

    def add_records(self, records: Iterable[ScoreRecord]) -> None:
        """Keep rows that were made elsewhere, without draws."""
        self._records.extend(records)

    def add_difference(self, pair: str, row: Mapping[str, Any], *, features: str | None) -> None:
        """Keep what a pair ("arm - arm") differs in, as `differences.difference` gives it."""
        self._differences.setdefault(pair, []).append({**row, "features": features})

    def panel(self, features: FloatArray, groups: Sequence[str], *names: str) -> Panel:
        """Draw a reference sample; equal for all that is scored against it."""
        return Panel.of(
            features,
            groups,
            num_draws=self.config.num_bootstrap,
            confidence=self.config.confidence,
            seed_parts=(self.seed, "evaluate", *names),
        )

    def score_group(
        self,
        extractors: Sequence[extraction.FeatureExtractor],
        group: str,
        test: FeatureSample,
        samples: Mapping[str, FeatureSample],
        bases: Mapping[str, str | None],
    ) -> None:
        """Score every sample of one group (all, a class, an orientation) by every metric.

        Args:
            extractors: The networks whose features the samples hold.
            group: Which rows.
            test: The real slices that all are scored against.
            samples: Arms, base models, VAE rows, floor and ceiling.
            bases: The arms, each with its base model, and the base models themselves.
        """
        test = test.take(test.rows(group))
        if len(test.labels) < 2:
            self.warn(f"{group}: {len(test.labels)} images in common, so it has no scores")
            return
        samples = {arm: sample.take(sample.rows(group)) for arm, sample in samples.items()}
        for network, metric in self.list_metrics(extractors, group, len(test.labels)):
            if metric.SPEC.kind == "pair":
                self.score_pairs(cast(Metric, metric), network, group, test, samples, bases)
            else:
                self._describe(cast(SampleMetric, metric), network, group, test, samples, bases)

    def list_metrics(
        self, extractors: Sequence[extraction.FeatureExtractor], group: str, n: int
    ) -> Iterator[tuple[str, Metric | SampleMetric]]:
        """Yield each network with each metric that can be had of n images; say what cannot."""
        networks = {e.name: e.num_features for e in extractors}
        for number, (network, num_features) in enumerate(networks.items()):
            for name in self.config.metrics:
                metric = load_metric(name)
                spec = metric.SPEC
                if spec.features == LUMA and number > 0:
                    continue  # has nothing to do with a network, so once is enough
                if spec.features not in (None, LUMA, network):
                    if spec.features not in networks:
                        self.warn(f"{name} needs the features {spec.features}, which are not here")
                    continue
                why = spec.refuse(n=n, num_features=num_features)
                if why:
                    self._refused.setdefault(why, {})[f"{group} (n = {n})"] = None
                    continue
                advice = spec.advise(n=n, num_features=num_features)
                if advice:
                    self.warn(advice)
                yield network, metric

    def score_pairs(
        self,
        metric: Metric,
        network: str,
        group: str,
        test: FeatureSample,
        samples: Mapping[str, FeatureSample],
        bases: Mapping[str, str | None],
    ) -> None:
        """Score samples against real slices by one metric of one network's features.

        All their rows count, whatever `group` they are rows of. A sample that is too small for the
        metric, or of too few groups, is named in the warnings. Other arguments as in `score_group`.
        """
        panel = self.panel(test.features[network], test.groups, group)
        pool = pool_groups(samples[arm] for arm in bases if arm in samples)
        by_score: dict[str, dict[str, Estimate]] = {}
        is_scored = dict.fromkeys(samples, False)
        for arm, sample in samples.items():
            try:
                estimates = panel.score(
                    metric,
                    sample.features[network],
                    sample.groups,
                    name=arm,
                    pool=pool if arm in bases else None,
                    paired=sample.is_paired,
                )
            except SampleSizeError as error:
                self._refused.setdefault(str(error), {})[f"{group} of {arm}"] = None
                continue
            is_scored[arm] = True
            if arm in bases and is_scored.get(REAL):
                values = panel.chance(
                    metric,
                    (sample.features[network], sample.groups),
                    (samples[REAL].features[network], samples[REAL].groups),
                    name=arm,
                    count=self.config.num_permutations,
                )
                estimates = with_p(estimates, metric.SPEC, values)
            for estimate in estimates.values():
                self.add(arm, group, network, estimate)
                by_score.setdefault(estimate.spec.key, {})[arm] = estimate
        for key, estimates in by_score.items():
            if key == PAIRED_WITH_REAL:
                self.score_gaps(network, group, estimates, bases)
            if group == ALL:
                self.compare_arms(network, estimates, [arm for arm in bases if arm in estimates])

    def _describe(
        self,
        metric: SampleMetric,
        network: str,
        group: str,
        test: FeatureSample,
        samples: Mapping[str, FeatureSample],
        bases: Mapping[str, str | None],
    ) -> None:
        panel = self.panel(test.features[network], test.groups, group)
        features = LUMA_FEATURES if metric.SPEC.features == LUMA else network
        pool = pool_groups(samples[arm] for arm in bases if arm in samples)
        described: dict[str, Described] = {}
        for arm, sample in samples.items():
            rows = sample.features[features]
            drawn = panel.draw(
                np.zeros((len(rows), 1)),
                sample.groups,
                name=arm,
                pool=pool if arm in bases else None,
            )
            described[arm] = Described(
                rows=rows,
                groups=drawn.groups,
                weights=drawn.weights,
                labels=sample.labels,
                prompts=sample.prompts,
                texts=sample.texts.get(network),
            )
        for arm, described_arm in described.items():
            estimates = panel.estimates(
                metric.SPEC, metric.describe(described_arm), n_synthetic=len(described_arm)
            )
            if arm in bases and REAL in described:
                rng = numpy_rng(self.seed, "evaluate", group, "permutation", metric.SPEC.key, arm)
                values = metric.chance(
                    described_arm, described[REAL], rng, self.config.num_permutations
                )
                estimates = with_p(estimates, metric.SPEC, values)
            for estimate in estimates.values():
                self.add(arm, group, None if features != network else network, estimate)

    def score_gaps(
        self,
        features: str,
        group: str,
        estimates: Mapping[str, Estimate],
        bases: Mapping[str, str | None],
    ) -> None:
        """Add `gap_closed` for every arm whose base model and VAE were scored."""
        for arm, base in bases.items():
            ends = (estimates.get(f"{BASE}{base}"), estimates.get(f"{VAE}{base}"))
            if arm.startswith(BASE) or ends[0] is None or ends[1] is None:
                continue
            gap = gap_closed(
                arm=estimates[arm], base=ends[0], vae=ends[1], confidence=self.config.confidence
            )
            if gap is None:
                self.warn(
                    f"{GAP_CLOSED} of {arm} ({features}, {group}): {BASE}{base} is as near to real "
                    f"slices as {VAE}{base}, so there is no gap"
                )
            else:
                self.add(arm, group, features, gap)

    def compare_arms(
        self, features: str, estimates: Mapping[str, Estimate], arms: Sequence[str]
    ) -> None:
        """Keep the differences of all pairs of arms, where there are draws to compare."""
        if not all(len(estimates[arm].draws) for arm in arms):
            return
        pairs = all_differences(estimates, arms, confidence=self.config.confidence)
        for pair, row in pairs.items():
            self.add_difference(pair, row, features=features)

    def score_psnr(self, arm: str, test: FeatureSample, psnr_db: Sequence[float]) -> None:
        """Add the mean PSNR of a VAE on the test slices, overall, per class and orientation."""
        values = np.asarray(psnr_db)
        for group in (ALL, *dict.fromkeys(test.labels), *test.planes):
            rows = test.rows(group)
            if len(rows) < 2:
                continue
            panel = self.panel(values[rows, None], [test.groups[row] for row in rows], group)
            means = weighted_mean(values[rows], panel.real)
            for estimate in panel.estimates(PSNR, means[None], n_synthetic=len(rows)).values():
                self.add(arm, group, None, estimate)
