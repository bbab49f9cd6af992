"""A stream in windows: which shards a window has, which steps its rows, and the few windows that lie on this machine.

Data that is seen once is never on a machine as a whole. Its shards are put in an order by (seed, turn), and some of
them at a time are a window: an ordinary set of rows, mixed by the ordinary order. Groups of rows are counted through
all windows, and a step takes the next ones, from two windows where one ends inside of it.
"""

import hashlib
import os
import time
from bisect import bisect_right
from contextlib import suppress
from os.path import commonprefix
from pathlib import Path

from pydantic import BaseModel, TypeAdapter

from ..checkpoint import lock_open_file
from ..data.growing_lines import read_back
from .order import KIND, SampleOrder

LEDGER = "stream.jsonl"  # beside the checkpoints of a run
HERE = "windows.jsonl"  # in the folder of a machine's windows
FAILED = "failed.json"
ALIVE = ".fetching"  # locked for as long as the process lives that makes the windows, where that is one of its own
KILLED = (
    "The process that fetches the stream was killed, perhaps for want of memory. Begin the command again: it goes on "
    "from the newest checkpoint."
)
LOOKS = 0.05  # seconds between looks for a window that is being made


class Window(BaseModel, extra="forbid", frozen=True):
    """A line of the ledger.

    Args:
        number: Of the window, counted over all turns.
        first_step: The step that its first group is in.
        before: Groups of each source in the windows before it.
        groups: Groups of each source in it.
        shards: Names of its shards.
        lost: Those among them that could not be fetched, and why; their rows are not in the window.
        rows: SHA-256 of its rows.
    """

    number: int
    first_step: int
    before: list[int]
    groups: list[int]
    shards: list[str]
    lost: dict[str, str] = {}
    rows: str

    @property
    def after(self) -> list[int]:
        """Groups of each source up to its end."""
        return [before + count for before, count in zip(self.before, self.groups, strict=True)]

    @property
    def first(self) -> int:
        """Number of its first group, counted over all windows."""
        return sum(self.before)

    @property
    def end(self) -> int:
        """Number of the first group behind it."""
        return self.first + sum(self.groups)


def read_ledger(output: Path) -> dict[int, Window]:
    """The windows that a run has seen, by number; nothing where it has seen none.

    Raises:
        ValueError: The ledger is damaged.
    """
    windows = read_back(output / LEDGER, Window)
    for number, window in enumerate(windows):
        ahead = windows[number - 1] if number else None
        before = [0] * len(window.groups) if ahead is None else ahead.after
        if window.number != number or window.before != before:
            raise ValueError(f"{output / LEDGER}, line {number + 1}, does not go on from the line before it.")
    return dict(enumerate(windows))


def begin_at(group: int, ledger: dict[int, Window], sources: int) -> tuple[int, list[int]]:
    """The window that holds a group, counted over all windows, and the groups of each source before it; the first
    window that nobody has seen where none of the ledger's holds it.

    Raises:
        ValueError: The ledger does not reach that far.
    """
    for window in ledger.values():
        if window.end > group:
            return window.number, window.before
    last = ledger[len(ledger) - 1] if ledger else None
    if group != (last.end if last else 0):
        raise ValueError(
            f"{LEDGER} ends before the newest checkpoint: it says which shards its steps were learnt from. "
            "Put it back, or begin in another output folder with the checkpoint as `projection`."
        )
    return len(ledger), last.after if last else [0] * sources


class Failure(BaseModel):
    """Why no further window comes."""

    reason: str
    of_data: bool

    def error(self) -> Exception:
        return ValueError(self.reason) if self.of_data else OSError(self.reason)


class ShardPlan:
    """Which shards are in which window, as a pure function of the seed.

    A turn holds every shard once, and no window shards of two turns.

    Args:
        shards: Names of the shards of each source.
        in_window: Shards in a window; the last of a turn may have fewer.
        seed: What the order is drawn from.
    """

    def __init__(self, shards: list[list[str]], in_window: int, seed: int):
        self.shards, self.in_window = shards, in_window
        self._order = SampleOrder([len(each) for each in shards], in_window, seed)

    @property
    def windows_in_turn(self) -> int:
        return self._order.steps_per_epoch

    def members(self, number: int) -> list[tuple[int, str]]:
        """(source, shard) pairs of a window."""
        return [(source, self.shards[source][shard]) for source, shard in self._order.step(number)]

    def describe(self) -> dict[str, object]:
        """All that the windows are a function of. Names count without the folder or server that all have in common,
        so that shards may move."""
        names = [name for shards in self.shards for name in shards]
        common = commonprefix(names).rpartition("/")[0]
        sum_ = hashlib.sha256("\n".join(name.removeprefix(common) for name in names).encode())
        return {
            "shards of each source": [len(each) for each in self.shards],
            "names of the shards": sum_.hexdigest(),
            "window_shards": self.in_window,
            "kind": f"a stream, {KIND}",
        }


class Windows:
    """The windows that lie on this machine, as every process and worker on it sees them: in a file that grows.

    Args:
        folder: Where the machine's first process makes them.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._known: list[Window] = []
        self._read = 0  # bytes of the file

    def holding(self, number: int) -> Window:
        """The window that holds a group, counted over all windows; waits until it is there.

        Raises:
            OSError, ValueError: It does not come; the message says why.
        """
        return self._find(lambda window: window.end > number, lambda window: window.first, number)

    def holding_of(self, source: int, number: int) -> Window:
        """The same for a group counted over all groups of a source."""
        return self._find(
            lambda window: window.before[source] + window.groups[source] > number,
            lambda window: window.before[source],
            number,
        )

    def _find(self, reaches, start, number: int) -> Window:
        while not (self._known and reaches(self._known[-1])):
            over = self._over()  # asked before the file is read: what was made before the end counts
            if not self._refresh():
                if over is not None:
                    raise over.error()
                time.sleep(LOOKS)
        # Windows without a group of a source begin where the next one does: the last of them that begins there has it.
        return self._known[bisect_right(self._known, number, key=start) - 1]

    def _over(self) -> Failure | None:
        """Why no further window comes, if none does."""
        with suppress(FileNotFoundError):
            return Failure.model_validate_json((self.folder / FAILED).read_bytes())
        if not (self.folder / ALIVE).exists() or are_being_made(self.folder):
            return None
        return Failure(reason=KILLED, of_data=False)

    def _refresh(self) -> bool:
        """Reads what was added to the file; `False` where nothing was."""
        try:
            with open(self.folder / HERE, "rb") as file:
                file.seek(self._read)
                added = file.read()
        except FileNotFoundError:
            return False
        whole = added[: added.rfind(b"\n") + 1]
        self._known += [_WINDOW.validate_json(line) for line in whole.splitlines()]
        self._read += len(whole)
        return bool(whole)


_WINDOW = TypeAdapter(Window)


def are_being_made(folder: Path) -> bool:
    """Whether a process lives that makes the windows of a machine, where that is one of its own."""
    try:
        descriptor = os.open(folder / ALIVE, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        lock_open_file(descriptor)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


class StreamOrder:
    """As [`SampleOrder`], over groups that are counted through all windows of a stream.

    Args:
        windows: The windows of this machine.
        plan: Which shards they have.
        groups_per_step: Groups of one optimiser step, over all processes.
        seed: What the order inside a window is drawn from.
        steps_per_epoch: Number of steps that count as an epoch, for learning rates and in the log.
    """

    def __init__(self, windows: Windows, plan: ShardPlan, groups_per_step: int, seed: int, steps_per_epoch: int):
        self.windows, self.plan, self.seed = windows, plan, seed
        self.groups_per_step, self.steps_per_epoch = groups_per_step, steps_per_epoch

    def describe(self) -> dict[str, object]:
        """All that the order is a function of, beside the content of the shards."""
        return {**self.plan.describe(), "pictures_per_step": self.groups_per_step, "seed": self.seed}

    def step(self, step: int, rank: int = 0, world: int = 1) -> list[tuple[int, int]]:
        """(source, group) pairs of a step for process `rank` of `world`, groups counted over all windows; waits for
        the windows that hold them."""
        first, found = step * self.groups_per_step, []
        while len(found) < self.groups_per_step:
            window = self.windows.holding(first + len(found))
            start = first + len(found) - window.first
            found += self._inside(window, start, min(start + self.groups_per_step - len(found), sum(window.groups)))
        return found[rank::world]

    def _inside(self, window: Window, start: int, end: int) -> list[tuple[int, int]]:
        """The groups from place `start` of a window to `end`; another order in every window."""
        size = self.groups_per_step
        order = SampleOrder(window.groups, size, self.seed)
        whole, before = start // size, window.number * order.steps_per_epoch
        places = [pair for step in range(whole, -(-end // size)) for pair in order.step(before + step)]
        chosen = places[start - whole * size : end - whole * size]
        return [(source, window.before[source] + group) for source, group in chosen]
