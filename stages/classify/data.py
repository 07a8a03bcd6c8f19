"""Slices that classifiers are trained, chosen and tested on, with their classes as numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.contracts import Label, SliceRecord, Task
from stages.classify import training
from stages.components.statistics.cohorts import Item

# Of each kind, on validation: with fewer, single subjects would choose the state and the cut.
LEAST_GROUPS_TO_CHOOSE = 5


@dataclass(frozen=True)
class Data:
    """The slices of every split, how many of each class are trained on, and their records."""

    sets: Mapping[str, Sequence[Item]]  # training slices by generate arm, real ones under "real"
    val: tuple[Item, ...]
    test: tuple[Item, ...]
    counts: Mapping[Label, int]
    ratio_counts: Mapping[Label, int]  # real ones of each class on the curve in n
    records: Mapping[str, SliceRecord]
    image_size: int

    def images(self, items: Sequence[Item]) -> NDArray[np.uint8]:
        """Read slices as one channel, uint8 (n, size, size)."""
        return training.read_images([item.path for item in items], self.image_size)

    def records_of(self, items: Sequence[Item]) -> list[SliceRecord]:
        """Return the records of real slices, in their order."""
        return [self.records[item.name] for item in items]

    def within(self, task: Task) -> "Data":
        """Leave out test and validation slices of classes that a task does not know."""
        if task == "binary":
            return self
        val, test = (tuple(i for i in s if i.label in self.counts) for s in (self.val, self.test))
        return replace(self, val=val, test=test)

    def targets(self, task: Task, items: Sequence[Item]) -> NDArray[np.intp]:
        """Number the classes of slices, (n,): 0 and 1 without and with a tumour, or each class."""
        if task == "binary":
            return np.asarray([item.label != "notumor" for item in items], dtype=np.intp)
        labels = list(self.counts)
        return np.asarray([labels.index(item.label) for item in items], dtype=np.intp)

    def count_val_groups(self, task: Task) -> dict[str, int]:
        """Count the validation groups of each kind that a task tells apart."""
        kinds = ("none", "tumour") if task == "binary" else tuple(self.counts)
        groups: dict[str, set[str]] = {kind: set() for kind in kinds}
        for item, number in zip(self.val, self.targets(task, self.val), strict=True):
            groups[kinds[number]].add(item.group)
        return {kind: len(names) for kind, names in groups.items()}

    def can_choose(self, task: Task) -> bool:
        """Whether validation has enough groups of every kind to choose states and cuts by."""
        return min(self.count_val_groups(task).values()) >= LEAST_GROUPS_TO_CHOOSE
