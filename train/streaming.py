"""Training on data that is seen once: a run's windows from the first look at the data to its last step."""

import hashlib
import json
import os
import shutil
import socket
import threading
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from accelerate import PartialState
from tqdm import tqdm
from transformers import TrainerCallback

from ..checkpoint import locked_folder
from ..data.growing_lines import append
from ..data.readers import DataSource
from ..data.rows import Group
from ..data.shards import is_remote, list_shards
from .distributed import from_all, from_first, processes_here
from .fetching import FetchAhead, fetch_window, files_of, window_folder
from .recipe import Recipe
from .resuming import digest
from .selection import CocoTwins
from .sources import BadPictures, SourceData, read_sources
from .windows import LEDGER, ShardPlan, StreamOrder, Window, Windows, begin_at, read_ledger

BAD_ROWS = "bad_rows.jsonl"
FIRST = 0  # the window that a run looks at before anything is learnt, and validates with
OPEN = 4  # windows that a process keeps mapped: a step may need two, and workers are ahead of it
Result = TypeVar("Result")


def check_stream(sources: list[DataSource], recipe: Recipe, cache: Any, max_steps: int | None):
    """Makes sure that a run can stream its sources.

    Raises:
        ValueError: Some sources stream and others do not, one has a weight, the length of the run is not said, or
            there is a feature cache.
    """
    still = [source for source in sources if not source.stream]
    if still:
        raise ValueError(
            f"{still[0].path} has no `stream: true`, and other sources have: a run streams all of its data or none of "
            "it. Files of this machine can be streamed as well."
        )
    if weighted := [source for source in sources if source.weight is not None]:
        raise ValueError(
            f"{weighted[0].path} streams and has a weight: each row of a stream comes once before any comes again. "
            "Leave `weight` out."
        )
    if recipe.steps_per_epoch is None and max_steps is None:
        raise ValueError(
            "How many rows a stream has is known when it has been seen: say how long to train, by --max-steps N or "
            "`steps_per_epoch` of the recipe."
        )
    if cache is not None:
        raise ValueError(
            "A feature cache is for pictures that are seen again, and a stream's are not: leave the cache out, or "
            "leave `stream` out and have the files on this machine."
        )


def sized_for_stream(recipe: Recipe, max_steps: int | None) -> tuple[Recipe, int]:
    """The recipe with what the size of the data cannot say, and the pictures that the run takes.

    Without `steps_per_epoch` the run is one epoch of `max_steps`.
    """
    known: dict[str, Any] = {}
    if "pictures_per_step" in recipe.auto:
        known["pictures_per_step"] = 256
    if "epochs" in recipe.auto or recipe.steps_per_epoch is None:
        known["epochs"] = 1
    recipe = recipe.with_(**known)
    steps = (recipe.steps_per_epoch or max_steps or 1) * recipe.epochs
    return recipe, min(steps, max_steps or steps) * recipe.pictures_per_step


class Stream:
    """The windows of a run. The first process of every machine fetches and indexes them; all map what it made.

    Args:
        sources: Data sources with `stream`.
        recipe: Its `window_shards`, `stream_folder`, `on_bad_row` and what selects rows.
        twins: Visual Genome's pictures that are COCO's.
        output: Folder of the run, where the ledger lies.
        state: accelerate's.

    Raises:
        BlockingIOError: Another run has its windows there.
        OSError: A shard of the first window cannot be fetched.
        ValueError: A source names no shards, or the ledger is damaged.
    """

    def __init__(self, sources: list[DataSource], recipe: Recipe, twins: CocoTwins, output: Path, state: PartialState):
        self.recipe, self.twins, self.output, self.state = recipe, twins, output, state
        self.sources = [replace(source, name=source.title) for source in sources]
        self._held = ExitStack()
        listed = self._together(lambda: [list_shards(source.patterns) for source in sources], state.is_main_process)
        self.plan = ShardPlan(from_first(listed), recipe.window_shards, recipe.seed)
        self.ledger = from_first(self._together(lambda: read_ledger(output), state.is_main_process))
        own = hashlib.sha256(os.path.abspath(output).encode()).hexdigest()[:8]
        self.folder = Path(recipe.stream_folder or output) / f"stream-{socket.gethostname()}-{own}"
        self.windows = Windows(self.folder)
        self._together(self._begin, state.is_local_main_process)
        self._ahead: FetchAhead | None = None
        self._entered = -1
        self._several = state.num_processes > processes_here()
        self.open = lru_cache(maxsize=OPEN)(self._open)

    def _together(self, work: Callable[[], Result], mine: bool) -> Result | None:
        """What some processes do while the others wait; all stop where one fails."""
        result, error = None, None
        if mine:
            try:
                result = work()
            except Exception as met:
                error = met
        for each in from_all([error]):
            if each is not None:
                raise each
        return result

    def _begin(self):
        self.output.mkdir(parents=True, exist_ok=True)
        self._held.enter_context(locked_folder(self.folder))
        for leftover in self.folder.iterdir():  # of a run that was killed
            if leftover.is_dir():
                shutil.rmtree(leftover)
            elif not leftover.name.startswith("."):
                leftover.unlink()
        weakref.finalize(self, _remove, self.folder, os.getpid())

    def first(self) -> list[SourceData]:
        """The sources as the first window has them: what a run looks at before it learns, and validates with."""
        members, known = self.plan.members(FIRST), self.ledger.get(FIRST)
        skip = self.recipe.on_bad_row == "skip"
        known_lost = None if known is None else known.lost

        def make() -> dict[str, str]:
            lost = fetch_window(members, window_folder(self.folder, FIRST), threading.Event(), skip, known_lost)
            self._read(FIRST, lost)
            return lost

        lost = self._together(make, self.state.is_local_main_process)
        every = [each for each in from_all([lost]) if each is not None]
        if any(each != every[0] for each in every):
            raise OSError("Some machines could fetch a shard that others could not: try again later.")
        self.lost = every[0]
        self._say_lost(self.lost if known is None else {})
        return self._read(FIRST, self.lost)

    def _read(self, number: int, lost: dict[str, str]) -> list[SourceData]:
        """The sources of a window, before rows that are too long are left out."""
        folder = window_folder(self.folder, number)
        paths: list[list[str]] = [[] for _ in self.sources]
        for source, _, path in files_of(self.plan.members(number), lost, folder):
            paths[source].append(str(path))
        sources = [replace(source, path=own) for source, own in zip(self.sources, paths, strict=True)]
        return read_sources(sources, self.recipe, self.twins, tables=folder / "rows", whole=False)

    def start(self, step: int, steps: int):
        """Begins to fetch ahead.

        Args:
            step: The step to begin with.
            steps: Where the run ends.
        """
        per_step = self.recipe.pictures_per_step
        # Every process finds out by itself that the ledger does not reach: it is the same in all.
        begin, before = begin_at(step * per_step, self.ledger, len(self.sources))
        if self.state.is_local_main_process:
            self._ahead = FetchAhead(
                self.plan,
                self.folder,
                self._index,
                begin,
                self.ledger,
                before,
                per_step,
                steps,
                done=step,
                kept=frozenset({FIRST}),
                note=self._note if self.state.is_main_process else lambda window: None,
                skip_lost=self.recipe.on_bad_row == "skip",
                ready={FIRST: self.lost},
            )
            self._ahead.start()

    def order(self, steps_per_epoch: int) -> StreamOrder:
        """Which group is in which step, for the model's order of steps; see [`StreamOrder`]."""
        recipe = self.recipe
        return StreamOrder(self.windows, self.plan, recipe.pictures_per_step, recipe.seed, steps_per_epoch)

    def groups(self) -> list["StreamedGroups"]:
        """The groups of each source, as the steps of an order number them."""
        return [StreamedGroups(self, number) for number in range(len(self.sources))]

    def _open(self, number: int, lost: tuple[tuple[str, str], ...]) -> list[SourceData]:
        return self.fit(self._read(number, dict(lost)))

    def _index(self, number: int, lost: dict[str, str]) -> tuple[list[int], str]:
        read = self.fit(self._read(number, lost))
        rows = hashlib.sha256("".join(map(digest, read)).encode()).hexdigest()
        if self.state.is_main_process and number not in self.ledger:
            if number != FIRST:
                self._say_lost(lost)
            bad = [{"window": number, **asdict(each)} for source in read for each in source.bad_rows]
            append(self.output / BAD_ROWS, bad) if bad else None
        return [len(source.training) for source in read], rows

    def _note(self, window: Window):
        if window.number not in self.ledger:
            append(self.output / LEDGER, [window.model_dump()])

    def _say_lost(self, lost: dict[str, str]):
        if self.state.is_main_process:
            for reason in lost.values():
                tqdm.write(f"{reason} Its rows are left out.")

    def name_of(self, name: str) -> str:
        """What a picture in a window's files is called wherever they lie: by its shard."""
        inside = name.removeprefix(f"{self.folder}{os.sep}window-")
        if inside == name:
            return name
        number, shard, rest = inside.split(os.sep, 2)
        shard = self.plan.members(int(number))[int(shard)][1]
        return shard + rest[len(shard.rpartition("/")[2]) :]

    def enter(self, step: int):
        """Before a step, in all processes: machines that do not read the same rows stop.

        Raises:
            ValueError: They do not.
        """
        if not self._several:
            return
        window = self.windows.holding((step + 1) * self.recipe.pictures_per_step - 1)
        if window.number > self._entered:
            self._entered = window.number
            if len({rows for rows in from_all([window.rows])}) > 1:
                raise ValueError(
                    f"Window {window.number} of the stream has other rows on one machine than on another: a shard could "
                    "not be fetched by all, or changes. Begin the command again: it goes on from the newest checkpoint."
                )

    def done(self, steps: int, bad: BadPictures):
        """After a step: windows that are used up may go."""
        if self._ahead is not None:
            self._ahead.done(steps)
        bad.pictures = max(bad.pictures, steps * self.recipe.pictures_per_step)

    def close(self):
        """Ends fetching, and removes the windows."""
        if self._ahead is not None:
            self._ahead.end()
        self.open.cache_clear()
        self._held.close()
        if self.state.is_local_main_process:
            _remove(self.folder, os.getpid())


def _remove(folder: Path, process: int):
    if os.getpid() == process:  # and not in a worker that was forked
        shutil.rmtree(folder, ignore_errors=True)


class StreamedGroups:
    """The groups of a source, counted through all windows; those of windows that lie here can be had.

    Args:
        stream: The stream.
        source: Number of the source.
    """

    def __init__(self, stream: Stream, source: int):
        self.stream, self.source = stream, source

    def __getitem__(self, number: int) -> Group:
        window = self.stream.windows.holding_of(self.source, number)
        sources = self.stream.open(window.number, tuple(window.lost.items()))
        return sources[self.source].training[number - window.before[self.source]]


class StreamProgress(TrainerCallback):
    """Tells a stream where training is.

    Args:
        stream: The stream.
        bad: Takes note of bad pictures.
    """

    def __init__(self, stream: Stream, bad: BadPictures):
        self.stream, self.bad = stream, bad

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any):
        self.stream.enter(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any):
        self.stream.done(state.global_step, self.bad)
