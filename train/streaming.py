"""Training on data that is seen once: a run's stream from the first look at the data to the last step."""

import hashlib
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from tqdm import tqdm
from transformers import TrainerCallback

from ..checkpoint import locked_folder
from ..data.growing_lines import append
from ..data.id_lists import read_ids
from ..data.readers import DataSource, as_source
from ..data.rows import Row
from ..data.shards import list_shards
from .distributed import from_all, from_first, processes_here
from .fetch_process import FetchProcess, fetched_by
from .fetching import FetchAhead, fetch_window, window_folder
from .recipe import Recipe
from .selection import CocoTwins, not_in
from .sources import BadPictures, SourceData
from .window_rows import StreamedGroups, WindowRows
from .windows import (
    ALIVE,
    LEDGER,
    LOOKS,
    ShardPlan,
    StreamOrder,
    Window,
    Windows,
    are_being_made,
    begin_at,
    read_ledger,
)

BAD_ROWS = "bad_rows.jsonl"
FIRST = 0  # the window that a run looks at before anything is learnt, and validates with


def streamed(data: Any, recipe: Recipe, cache: Any, max_steps: int | None) -> list[DataSource]:
    """The sources of a run that streams; none where it does not.

    Raises:
        ValueError: Some sources stream and others do not, one has a weight, the length of the run is not said, or
            there is a feature cache.
    """
    data = [data] if isinstance(data, str | os.PathLike | dict | DataSource) else data or []
    sources = [as_source(each) for each in data if not isinstance(each, Row)]
    if not any(source.stream for source in sources):
        return []
    if still := [source for source in sources if not source.stream]:
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
    return sources


def sized_for_stream(
    recipe: Recipe, share: float | None, max_steps: int | None, held: int
) -> tuple[Recipe, tuple[int, int]]:
    """The recipe with what the size of the data cannot say; how many pictures the run takes, and how many are `held`
    for validation.

    Without `steps_per_epoch` the run is one epoch of `max_steps`.
    """
    known: dict[str, Any] = {"pictures_per_step": 256, "epochs": 1, "validation": share}
    known = {name: value for name, value in known.items() if name in recipe.auto}
    if recipe.steps_per_epoch is None:
        known["epochs"] = 1
    recipe = recipe.with_(**known)
    steps = (recipe.steps_per_epoch or max_steps or 1) * recipe.epochs
    return recipe, (min(steps, max_steps or steps) * recipe.pictures_per_step, held)


class Stream:
    """The windows of a run. The first process of every machine fetches and indexes them; all map what it made.

    Args:
        sources: From [`streamed`].
        recipe: Its `window_shards`, `stream_folder`, `on_bad_row` and what selects rows.
        twins: Visual Genome's pictures that are COCO's.
        output: Folder of the run, where the ledger lies; `None`: nothing is to stay.
        state: accelerate's.

    Raises:
        BlockingIOError: Another run has its windows in the same place.
        FileNotFoundError: A pattern names no shard.
        ValueError: A pattern is wrong, or the ledger is damaged.
    """

    def __init__(
        self, sources: list[DataSource], recipe: Recipe, twins: CocoTwins, output: Path | None, state: PartialState
    ):
        self.recipe, self.state = recipe, state
        listed = self._done_by(state.is_main_process, lambda: [list_shards(source.patterns) for source in sources])
        plan = ShardPlan(from_first(listed), recipe.window_shards, recipe.seed)
        self._temporary = None if output else tempfile.TemporaryDirectory(prefix="jminigpt4-stream-")
        self.output = output or Path(from_first(self._temporary.name))
        self.ledger = from_first(self._done_by(state.is_main_process, lambda: read_ledger(self.output)))
        own = hashlib.sha256(os.path.abspath(self.output).encode()).hexdigest()[:8]
        self.folder = Path(recipe.stream_folder or self.output).absolute() / f"stream-{socket.gethostname()}-{own}"
        self._held = ExitStack()
        self._done_by(state.is_local_main_process, self._empty_folder)
        self.windows = Windows(self.folder)
        self._excluded = {path: read_ids(path) for path in recipe.exclude}
        excluded = {each for ids in self._excluded.values() for each in ids}
        named = [replace(source, name=source.title) for source in sources]
        self.rows = WindowRows(plan, self.folder, named, recipe, twins, excluded)
        self._ahead: FetchAhead | FetchProcess | None = None
        self._entered = -1

    def _done_by(self, mine: bool, work: Callable[[], Any]) -> Any:
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

    def _empty_folder(self):
        self._held.enter_context(locked_folder(self.folder))
        while are_being_made(self.folder):  # for a run that was killed a moment ago
            time.sleep(LOOKS)
        (self.folder / ALIVE).unlink(missing_ok=True)
        for leftover in self.folder.iterdir():  # of a run that was killed
            if leftover.is_dir():
                shutil.rmtree(leftover)
            elif not leftover.name.startswith("."):
                leftover.unlink()

    def first(self) -> list[SourceData]:
        """The sources as the first window has them: what a run looks at before it learns, and validates with.

        Raises:
            OSError: A shard cannot be fetched, and the recipe does not allow it.
            ValueError: The rows or pictures are not in order, or there are none.
        """
        rows, known = self.rows, self.ledger.get(FIRST)

        def make() -> dict[str, str]:
            lost = fetch_window(
                rows.plan.members(FIRST),
                window_folder(self.folder, FIRST),
                threading.Event(),
                self.recipe.on_bad_row == "skip",
                None if known is None else known.lost,
            )
            rows.read(FIRST, lost, look=True, aloud=self.state.is_main_process)
            return lost

        every = from_all([self._done_by(self.state.is_local_main_process, make)])
        every = [lost for lost in every if lost is not None]
        if any(lost.keys() != every[0].keys() for lost in every):
            raise OSError("A shard could be fetched by some machines and not by others: try again later.")
        self.lost = every[0]
        sources = rows.read(FIRST, self.lost)
        if not sources or not any(source.training for source in sources):
            raise ValueError(
                f"Nothing of the stream's first {len(rows.plan.members(FIRST))} shards is left to train on: they have "
                "no rows, or these have no pictures, are excluded, or fall into the validation share."
            )
        self._say_excluded(sources)
        return [replace(source, bad_rows=()) for source in sources]  # they are listed as their windows come

    def _say_excluded(self, sources: list[SourceData]):
        """A list of another spelling excludes nothing: the first window shows it."""
        for path, ids in self._excluded.items():
            unmatched = not_in(ids, [source.training.grouping.table for source in sources], self.rows.twins)
            if self.state.is_main_process:
                tqdm.write(
                    f"exclude: {len(ids) - len(unmatched):,} of the {len(ids):,} ids in {path} are pictures of the "
                    "stream's first window."
                )

    def start(self, step: int, steps: int):
        """Begins to fetch ahead, from the window that step `step` needs; the run ends with step `steps`.

        Raises:
            ValueError: The ledger does not reach to that step.
        """
        per_step = self.recipe.pictures_per_step
        begin, before = begin_at(step * per_step, self.ledger, len(self.rows.sources))
        if self.state.is_local_main_process:
            ahead = FetchAhead(
                self.rows.plan,
                self.folder,
                self._index,
                begin,
                self.ledger,
                before,
                per_step,
                steps,
                done=step,
                kept=frozenset({FIRST}),
                note=self._note,
                skip_lost=self.recipe.on_bad_row == "skip",
                ready={FIRST: self.lost},
            )
            self._ahead = fetched_by(ahead)
            self._ahead.start()

    def order(self, steps_per_epoch: int) -> StreamOrder:
        """Which groups are in which step, epochs being so long."""
        recipe = self.recipe
        return StreamOrder(self.windows, self.rows.plan, recipe.pictures_per_step, recipe.seed, steps_per_epoch)

    def groups(self) -> list[StreamedGroups]:
        """The groups of each source, as the order numbers them."""
        return [StreamedGroups(self.windows, self.rows, number) for number in range(len(self.rows.sources))]

    def _index(self, number: int, lost: dict[str, str]) -> tuple[list[int], str]:
        """Where windows are fetched: the first process of all lists what is left out, once in the life of a run."""
        if not self.state.is_main_process or number in self.ledger:
            return self.rows.index(number, lost)
        for reason in lost.values():
            tqdm.write(f"{reason} Its rows are left out.")
        found = self.rows.index(number, lost, aloud=True)
        bad = [asdict(each) for source in self.rows.read(number, lost) for each in source.bad_rows]
        if bad:
            append(self.output / BAD_ROWS, [{"window": number, **each} for each in bad])
        return found

    def _note(self, window: Window):
        if self.state.is_main_process and window.number not in self.ledger:
            append(self.output / LEDGER, [window.model_dump()])

    def enter(self, step: int):
        """Before a step, in all processes: machines that have not read the same rows stop.

        Raises:
            ValueError: They have not.
        """
        if self.state.num_processes == processes_here():
            return
        window = self.windows.holding((step + 1) * self.recipe.pictures_per_step - 1)
        if window.number > self._entered:
            self._entered = window.number
            if len(set(from_all([window.rows]))) > 1:
                raise ValueError(
                    f"Window {window.number} of the stream has other rows on one machine than on another: a shard was "
                    "not to be had there, or has changed. Begin the command again: it goes on from the newest "
                    "checkpoint."
                )

    def done(self, steps: int):
        """After so many steps: windows that are used up may go."""
        if self._ahead is not None:
            self._ahead.done(steps)

    def close(self):
        """Ends fetching, and removes the windows."""
        if self._ahead is not None:
            self._ahead.end()
        self._held.close()
        if self.state.is_local_main_process:
            shutil.rmtree(self.folder, ignore_errors=True)
        if self._temporary is not None:
            self._temporary.cleanup()


class StreamProgress(TrainerCallback):
    """Tells a stream where training is.

    Args:
        stream: The stream.
        bad: Takes note of bad pictures; as many have been seen as steps have taken.
    """

    def __init__(self, stream: Stream, bad: BadPictures):
        self.stream, self.bad = stream, bad

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any):
        """Before step `state.global_step`."""
        self.stream.enter(state.global_step)
        self.bad.pictures = (state.global_step + 1) * self.stream.recipe.pictures_per_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any):
        """After so many steps."""
        self.stream.done(state.global_step)
