"""The rows of a stream's windows, as every process and worker of a machine maps them."""

import hashlib
import os
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..data.readers import DataSource
from ..data.rows import Group
from .fetching import files_of, window_folder
from .groups import Grouping, Groups, Only
from .recipe import Recipe
from .resuming import digest
from .selection import CocoTwins
from .sources import SourceData, data_of, grouping_of, held_share, look_through, read_table
from .windows import ShardPlan, Window, Windows

OPEN = 4  # windows that a process keeps mapped: a step may need two, and workers are ahead of it
TABLES = "rows"  # in the folder of a window

Fit = Callable[[list[SourceData], bool], list[SourceData]]


class WindowRows:
    """Reads windows. What the machine's first process has read is there for the others.

    Args:
        plan: Which shards a window has.
        folder: Where windows lie.
        sources: The sources, each with a name.
        recipe: What selects rows.
        twins: Visual Genome's pictures that are COCO's.
        excluded: Ids of pictures that must not be trained on.

    Attributes:
        share: What is kept for validation in every window; the first one says it where the recipe leaves it open.
        fit: Leaves out rows that the model cannot take, and says so where asked to; set once there is a model.
    """

    def __init__(
        self,
        plan: ShardPlan,
        folder: Path,
        sources: list[DataSource],
        recipe: Recipe,
        twins: CocoTwins,
        excluded: set[str],
    ):
        self.plan, self.folder, self.sources = plan, folder, sources
        self.recipe, self.twins, self.excluded = recipe, twins, excluded
        self.share: float | None = None
        self.fit: Fit = lambda sources, aloud: sources
        self._open: dict[int, list[SourceData]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_open": {}}

    def read(self, number: int, lost: Collection[str], look: bool = False, aloud: bool = False) -> list[SourceData]:
        """The groups of each source in a window, before rows that are too long for a model are left out; nothing
        where no source has a row in it.

        Args:
            number: The window.
            lost: Those of its shards that are left out.
            look: Whether to look for the pictures.
            aloud: Whether to say what is left out.

        Raises:
            ValueError: A shard cannot be read, or its rows are bad and the recipe does not allow it.
        """
        groupings: list[Grouping | None] = []
        tables = window_folder(self.folder, number) / TABLES
        for source in self._files(number, lost):
            table = read_table(source, self.recipe, aloud, tables=tables, may_be_empty=True) if source.path else None
            groupings.append(grouping_of(table, self.excluded, self.recipe, self.twins) if table else None)
        present = [grouping for grouping in groupings if grouping is not None]
        if self.share is None:
            self.share = held_share(self.recipe, present)
        found = []
        for each, (source, grouping) in enumerate(zip(self.sources, groupings, strict=True)):
            if look and grouping is not None:
                look_through(source, grouping, self.recipe)
            if present:
                data = data_of(source, grouping or present[0], self.recipe, each, self.share)
                found.append(data if grouping is not None else _without_groups(data))
        return found

    def _files(self, number: int, lost: Collection[str]) -> list[DataSource]:
        paths: list[list[str]] = [[] for _ in self.sources]
        for source, _, path in files_of(self.plan.members(number), lost, window_folder(self.folder, number)):
            paths[source].append(str(path))
        return [replace(source, path=own) for source, own in zip(self.sources, paths, strict=True)]

    def fitting(self, number: int, lost: Collection[str], aloud: bool = False) -> list[SourceData]:
        """The same without rows that are too long."""
        read = self.read(number, lost, aloud=aloud)
        left = iter(self.fit([source for source in read if source.training], aloud))
        return [next(left) if source.training else source for source in read]

    def index(self, number: int, lost: Collection[str], aloud: bool = False) -> tuple[list[int], str]:
        """Number of groups of each source to learn from, and SHA-256 of all that they teach."""
        read = self.fitting(number, lost, aloud)
        rows = hashlib.sha256("".join(map(digest, read)).encode()).hexdigest()
        return [len(source.training) for source in read] or [0] * len(self.sources), rows

    def open_window(self, window: Window) -> list[SourceData]:
        """The groups of each source in a window; the last ones stay mapped."""
        if window.number not in self._open:
            while len(self._open) >= OPEN:
                del self._open[min(self._open)]
            self._open[window.number] = self.fitting(window.number, window.lost)
        return self._open[window.number]

    def name_of(self, name: str) -> str:
        """What a picture of a window is called wherever windows lie: by its shard."""
        inside = name.removeprefix(f"{self.folder}{os.sep}window-")
        if inside == name:
            return name
        number, shard, rest = inside.split(os.sep, 2)
        shard = self.plan.members(int(number))[int(shard)][1]
        return shard + rest[len(shard.rpartition("/")[2]) :]


def _without_groups(data: SourceData) -> SourceData:
    nothing = Groups(data.training.grouping, Only(np.empty(0, np.int64)))
    return replace(data, training=nothing, validation=nothing, bad_rows=())


class StreamedGroups:
    """The groups of a source, counted through all windows; those of windows that lie here can be had.

    Args:
        windows: The windows of this machine.
        rows: Their rows.
        source: Number of the source.
    """

    def __init__(self, windows: Windows, rows: WindowRows, source: int):
        self.windows, self.rows, self.source = windows, rows, source

    def __getitem__(self, number: int) -> Group:
        window = self.windows.holding_of(self.source, number)
        return self.rows.open_window(window)[self.source].training[number - window.before[self.source]]
