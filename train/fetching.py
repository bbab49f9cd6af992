"""Windows of a stream made ahead of training, by a thread of the first process of every machine."""

import shutil
import threading
import traceback
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from ..checkpoint import finished_file
from ..data.growing_lines import append
from ..data.shards import ShardLost, fetch, file_name, is_remote, size_of
from .windows import FAILED, HERE, Failure, ShardPlan, Window

AT_ONCE = 4  # shards that are fetched at a time
AHEAD = 1  # windows that lie ready beyond what the next step needs
SPARE = 0.05  # of the disk stays free

Files = list[tuple[int, str, Path]]  # source, shard and its file


class FetchAhead(threading.Thread):
    """Fetches the shards of one window after the other, has their rows indexed, and removes what is used up.

    At any moment at most the windows that the next step needs, `AHEAD` more, and those of `kept` are on the disk.

    Args:
        plan: Which shards a window has.
        folder: Where the windows lie, this machine's alone.
        index: Called with a window's number and the shards that it lacks; returns the number of groups of each source
            and SHA-256 of the rows.
        begin: Window to begin with.
        known: Windows that an earlier run has seen, by number.
        before: Groups of each source in the windows before `begin`.
        groups_per_step, steps: Of the run: nothing is fetched for later steps.
        done: Steps that are done already.
        kept: Windows that are never removed.
        note: Called with every window that is made, before any other process sees it.
        skip_lost: Whether a shard that cannot be fetched is left out; off, it is an error.
        ready: Windows that have been fetched already, each with the shards that it lacks.
    """

    def __init__(
        self,
        plan: ShardPlan,
        folder: Path,
        index: Callable[[int, dict[str, str]], tuple[list[int], str]],
        begin: int,
        known: dict[int, Window],
        before: list[int],
        groups_per_step: int,
        steps: int,
        done: int = 0,
        kept: frozenset[int] = frozenset(),
        note: Callable[[Window], None] = lambda window: None,
        skip_lost: bool = False,
        ready: dict[int, dict[str, str]] | None = None,
    ):
        super().__init__(name="stream", daemon=True)
        self.plan, self.folder, self.index, self.known, self.note = plan, folder, index, known, note
        self.groups_per_step, self.steps, self.kept, self.skip_lost = groups_per_step, steps, kept, skip_lost
        self.begin, self.before, self.ended = begin, before, threading.Event()
        self.made: list[Window] = []
        self.ready = dict(ready or {})
        self._done = done
        self._changed = threading.Condition()

    def done(self, steps: int):
        """Takes note that so many steps of the run are done in all processes."""
        with self._changed:
            self._done = steps
            self._changed.notify()

    def end(self):
        """Gives up what is being fetched; nothing more is made."""
        self.ended.set()
        with self._changed:
            self._changed.notify()
        if self.is_alive():
            self.join()

    def run(self):
        """Makes windows until the steps of the run are covered."""
        try:
            number = self.begin
            while self._wanted():
                append(self.folder / HERE, [self._make(number).model_dump()])
                number += 1
        except InterruptedError:
            self._fail(Failure(reason="The run has ended.", of_data=False))
        except Exception as error:
            if not isinstance(error, OSError | ValueError):
                traceback.print_exc()
            reason = str(error) or type(error).__name__
            self._fail(Failure(reason=reason, of_data=isinstance(error, ValueError)))

    def _fail(self, failure: Failure):
        with suppress(OSError), finished_file(self.folder / FAILED) as temporary:  # the folder may be gone
            temporary.write_text(failure.model_dump_json(), encoding="utf-8")

    def _wanted(self) -> bool:
        """Waits until another window is wanted, and removes what is used up meanwhile; `False` when none ever is."""
        with self._changed:
            while not self.ended.is_set():
                self._remove_used()
                if self.made and self.made[-1].end >= self.steps * self.groups_per_step:
                    return False
                needed = (self._done + 1) * self.groups_per_step
                if sum(window.first >= needed for window in self.made) < AHEAD:
                    return True
                self._changed.wait()
        raise InterruptedError

    def _remove_used(self):
        for window in self.made:
            if window.end <= self._done * self.groups_per_step and window.number not in self.kept:
                shutil.rmtree(window_folder(self.folder, window.number), ignore_errors=True)

    def _make(self, number: int) -> Window:
        """Fetches and indexes a window.

        Raises:
            OSError: A shard cannot be fetched, or the disk is too small.
            ValueError: A shard is not what the ledger says, or a whole turn has no row.
        """
        members = self.plan.members(number)
        known = self.known.get(number)
        folder = window_folder(self.folder, number)
        lost = self.ready.pop(number, None)
        if lost is None:
            known_lost = None if known is None else known.lost
            lost = fetch_window(members, folder, self.ended, self.skip_lost, known_lost)
        groups, digest = self.index(number, lost)
        window = Window(
            number=number,
            first_step=sum(self.before) // self.groups_per_step,
            before=self.before,
            groups=groups,
            shards=[shard for _, shard in members],
            lost=lost,
            rows=digest,
        )
        self._check(window, known)
        self.note(window)
        self.before = window.after
        self.made.append(window)
        return window

    def _check(self, window: Window, known: Window | None):
        if known is not None and (known.groups, known.rows) != (window.groups, window.rows):
            raise ValueError(
                f"Window {window.number} of the stream held {sum(known.groups):,} groups of rows when the run was here"
                f" before, and has {sum(window.groups):,} others now: its shards have changed, such as "
                f"{window.shards[0]}. Put back what they were, or begin in another output folder."
            )
        turn = [*self.made, window][-self.plan.windows_in_turn :]
        if len(turn) == self.plan.windows_in_turn and not any(sum(each.groups) for each in turn):
            raise ValueError("No shard of the stream has a row to train on.")


def window_folder(folder: Path, number: int) -> Path:
    """Where a window lies."""
    return folder / f"window-{number:06d}"


def fetch_window(
    members: list[tuple[int, str]],
    folder: Path,
    ended: threading.Event,
    skip_lost: bool = False,
    known_lost: dict[str, str] | None = None,
) -> dict[str, str]:
    """Fetches the shards of a window into sub-folders of `folder`, some at a time.

    Args:
        members: (source, shard) pairs.
        folder: A folder to be made; what is in it gives way.
        ended: Set to give up.
        skip_lost: Whether a shard that cannot be fetched is left out.
        known_lost: Shards that the run left out when it was at this window before: they are left out again, and no
            others. `None`: it was not.

    Returns:
        The shards that are left out, each with the reason; [`files_of`] says where the others lie.

    Raises:
        InterruptedError: `ended` was set.
        OSError: A shard cannot be fetched and is not to be left out, or the disk is too small.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    lost = dict(known_lost or {})
    wanted = {number: pair[1] for number, pair in enumerate(members) if pair[1] not in lost}
    _check_disk(list(wanted.values()), folder)

    def get(number: int, shard: str) -> ShardLost | None:
        (folder / f"{number:03d}").mkdir()
        try:
            fetch(shard, folder / f"{number:03d}", ended)
        except ShardLost as error:
            return error

    with ThreadPoolExecutor(AT_ONCE, "stream") as pool:
        errors = [job.result() for job in [pool.submit(get, *each) for each in wanted.items()]]
    for shard, error in zip(wanted.values(), errors, strict=True):
        if error is None:
            continue
        if known_lost is not None:
            raise OSError(f"{error} The run has learnt from it before, so it cannot be left out now: try again later.")
        if not skip_lost:
            raise OSError(f"{error} (on_bad_row is `raise`; `skip` leaves such a shard out.)")
        lost[shard] = str(error)
    return lost


def files_of(members: list[tuple[int, str]], lost: Collection[str], folder: Path) -> Files:
    """Where the shards of a window lie that were fetched into `folder`; each has a folder of its own, as those of two
    servers may have the same name."""
    return [
        (source, shard, folder / f"{number:03d}" / file_name(shard) if is_remote(shard) else Path(shard))
        for number, (source, shard) in enumerate(members)
        if shard not in lost
    ]


def _check_disk(shards: list[str], folder: Path):
    """Raises `OSError` where shards do not fit on the disk, as far as the server says how large they are."""
    size = sum(size_of(shard) or 0 for shard in shards if is_remote(shard))
    disk = shutil.disk_usage(folder)
    if size > disk.free - SPARE * disk.total:
        raise OSError(
            f"{len(shards)} shards of the stream have {size / 1e9:,.1f} GB, and {folder.parent} has "
            f"{disk.free / 1e9:,.1f} GB free, of which {SPARE * disk.total / 1e9:,.1f} stay so: "
            "take fewer at a time (`window_shards`), or another disk (`stream_folder`)."
        )
