"""Maker of images: samples and writes them, those of no use again with a new seed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pipeline.contracts import ArtifactWriter, SyntheticRecord
from pipeline.files import write_whole
from stages.components.diffusion.sampling import Sampler
from stages.components.imaging.pixels import RgbBatch, RgbImage, save_png
from stages.components.tumor_report.rendering import name_modality
from stages.generate import batch_size
from stages.generate.batch_size import BatchSize
from stages.generate.journal import ImageOutcome
from stages.generate.orders import ImageOrder, seed_of

COPY = "copy"  # the fault of an image that shows a training slice


class CopyWatch(Protocol):
    """Knows the training slices."""

    def find_copies(self, images: RgbBatch) -> Any:
        """Tell which images are copies of one, bool (n,)."""


@dataclass(frozen=True)
class Maker:
    """Makes batches of images; `note` hears of every image once, when it is on disk or given up.

    Attributes:
        sampler: the models.
        size: how many images are sampled at once.
        output: where they go.
        note: told what became of each image.
        run_seed: of the run; an image's own derives from it.
        max_attempts: seeds that an image may have, the first included.
        adapter_digest: of the adapter's artifact; None without one.
        marks: text chunks of every file, beside prompt and seed.
        watch: told to find copies of training slices; None: they stay.
    """

    sampler: Sampler
    size: BatchSize
    output: ArtifactWriter[SyntheticRecord]
    note: Callable[[ImageOutcome], None]
    run_seed: int
    max_attempts: int
    adapter_digest: str | None
    marks: Mapping[str, str]
    watch: CopyWatch | None = None

    def make(self, orders: Sequence[ImageOrder]) -> None:
        """Make a batch: first the originals, then the counterfactuals with the seeds these took.

        An original that is black, constant, NaN or a copy is made again. A counterfactual is not,
        because another seed would change more than the side.
        """
        waiting = [order for order in orders if order.counterfactual_of is None]
        faults: dict[str, list[str]] = {order.image_id: [] for order in orders}
        made: dict[str, tuple[int, int]] = {}  # image -> attempt and seed
        for attempt in range(self.max_attempts):
            plan = [(attempt, seed_of(self.run_seed, order.image_id, attempt)) for order in waiting]
            made |= self._try(waiting, plan, faults)
            waiting = [order for order in waiting if order.image_id not in made]
        others = [order for order in orders if order.counterfactual_of is not None]
        possible = [order for order in others if order.seed_from in made]
        plan = [made[order.seed_from] for order in possible]
        made |= self._try(possible, plan, faults)
        given_up = [order for order in orders if order.image_id not in made]
        for order in given_up:
            self.note(ImageOutcome(order.image_id, None, tuple(faults[order.image_id])))

    def _try(
        self,
        orders: Sequence[ImageOrder],
        plan: Sequence[tuple[int, int]],
        faults: Mapping[str, list[str]],
    ) -> dict[str, tuple[int, int]]:
        """Sample each order with its attempt and seed; write and return what came out well."""
        if not orders:
            return {}
        texts, seeds = [order.text for order in orders], [seed for _, seed in plan]
        reports = [order.prompt.report for order in orders]
        images, flaws = batch_size.draw(self.sampler, texts, seeds, self.size, reports)
        problems: list[str | None] = [*flaws]
        if self.watch is not None:
            copies = self.watch.find_copies(images)
            problems = [f or (COPY if c else None) for f, c in zip(flaws, copies, strict=True)]
        made = {}
        for order, image, tried, fault in zip(orders, images, plan, problems, strict=True):
            if fault is None:
                made[order.image_id] = tried
                self._write(order, image, *tried, faults[order.image_id])
            else:
                faults[order.image_id].append(fault)
        return made

    def _write(
        self, order: ImageOrder, image: RgbImage, attempt: int, seed: int, faults: Sequence[str]
    ) -> None:
        record = SyntheticRecord(
            image_id=order.image_id,
            image_path=order.image_path,
            prompt=order.text,
            requested=order.prompt.report,
            label=order.prompt.label,
            seed=seed,
            attempt=attempt,
            modality=name_modality(order.prompt.report.general_description or ""),
            adapter_digest=self.adapter_digest,
            counterfactual_of=order.counterfactual_of,
            prompt_slice_id=order.prompt.slice_id,
        )
        text = {**self.marks, "prompt": record.prompt, "seed": str(seed)}
        if record.counterfactual_of is not None:
            text["counterfactual_of"] = record.counterfactual_of
        path = self.output.path(record.image_path)
        write_whole(path, lambda partial: save_png(partial, image, text), is_synced=False)
        self.note(ImageOutcome(order.image_id, record, tuple(faults)))
