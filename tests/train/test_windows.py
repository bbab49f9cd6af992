"""Windows of a stream: every row once a turn, whatever is killed, whoever shares; and bounded in what lies here."""

import hashlib
import json
import random
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial

import fsspec
import pytest

from jminigpt4.data import shards as shards_module
from jminigpt4.data.growing_lines import append
from jminigpt4.train import fetching
from jminigpt4.train.fetching import FetchAhead, files_of, window_folder
from jminigpt4.train.windows import (
    LEDGER,
    ShardPlan,
    StreamOrder,
    Windows,
    begin_at,
    read_ledger,
)

SIZES = [[5, 0, 7, 3, 4, 9, 1], [2, 6, 11]]  # rows of the shards of two sources


@pytest.fixture
def memory():
    files = fsspec.filesystem("memory")
    for source, sizes in enumerate(SIZES):
        for shard, size in enumerate(sizes):
            lines = "".join(f"{source}-{shard}-{row}\n" for row in range(size))
            files.pipe(f"/{source}/{shard}.txt", lines.encode())
    yield files
    files.store.clear()
    files.pseudo_dirs[:] = [""]


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(shards_module, "FIRST_WAIT", 0.001)


NAMES = [[f"memory:///{source}/{shard}.txt" for shard in range(len(sizes))] for source, sizes in enumerate(SIZES)]
EVERYTHING = Counter(
    f"{source}-{shard}-{row}" for source, sizes in enumerate(SIZES) for shard, size in enumerate(sizes)
    for row in range(size)
)  # fmt: skip


def index(plan, here, number, lost):
    """What stands for the reading of rows: one group a line."""
    rows, folder = [[], []], window_folder(here, number)
    for source, _, path in files_of(plan.members(number), lost, folder):
        rows[source] += path.read_text().splitlines()
    (folder / "rows.json").write_text(json.dumps(rows))
    return [len(each) for each in rows], hashlib.sha256(json.dumps(rows).encode()).hexdigest()


class Streaming:
    """A run over the shards of `NAMES` in `folder`, from its ledger's place for `step`."""

    def __init__(self, folder, step: int, steps: int, per_step: int = 4, in_window: int = 3, seed: int = 5, **options):
        self.plan = ShardPlan(NAMES, in_window, seed)
        ledger = read_ledger(folder) if folder.is_dir() else {}
        begin, before = begin_at(step * per_step, ledger, 2)
        self.here = folder / "here"
        shutil.rmtree(self.here, ignore_errors=True)
        self.here.mkdir(parents=True)

        def note(window):
            if window.number not in ledger:
                append(folder / LEDGER, [window.model_dump()])

        options = {"index": partial(index, self.plan, self.here), "note": note, "done": step, **options}
        self.fetch = FetchAhead(
            self.plan, self.here, begin=begin, known=ledger, before=before, groups_per_step=per_step, steps=steps,
            **options,
        )  # fmt: skip
        self.fetch.start()
        self.order = StreamOrder(Windows(self.here), self.plan, per_step, seed, 10)

    def rows(self, step: int, rank: int = 0, world: int = 1) -> list[str]:
        found = []
        for source, number in self.order.step(step, rank, world):
            window = self.order.windows.holding_of(source, number)
            rows = json.loads((window_folder(self.here, window.number) / "rows.json").read_text())
            found.append(rows[source][number - window.before[source]])
        return found

    def go(self, first: int, last: int, world: int = 1) -> list[list[str]]:
        steps = []
        for step in range(first, last):
            steps.append([row for rank in range(world) for row in self.rows(step, rank, world)])
            self.fetch.done(step + 1)
        self.fetch.end()
        return steps


TOTAL = sum(EVERYTHING.values())  # 48: twelve steps of four are a turn


def test_a_turn_holds_every_row_once_in_an_order_of_its_own(memory, tmp_path):
    steps = Streaming(tmp_path, 0, 36).go(0, 36)
    turns = [[row for step in steps[start : start + 12] for row in step] for start in (0, 12, 24)]
    assert all(Counter(turn) == EVERYTHING for turn in turns)
    assert turns[0] != turns[1] != turns[2]
    assert [row for turn in turns for row in turn] != [
        row for step in Streaming(tmp_path / "other", 0, 36, seed=6).go(0, 36) for row in step
    ]


def test_rows_of_a_window_are_mixed_and_steps_are_full_over_its_end(memory, tmp_path):
    run = Streaming(tmp_path, 0, 12, per_step=5, in_window=5)
    steps = run.go(0, 9)
    assert all(len(step) == 5 for step in steps)
    first = [row for step in steps for row in step][: sum(read_ledger(tmp_path)[0].groups)]
    held = {
        tuple(name.partition("memory:///")[2].split(".")[0].split("/")) for name in read_ledger(tmp_path)[0].shards
    }
    assert {tuple(row.split("-")[:2]) for row in first} <= held
    assert first != sorted(first) and len({tuple(row.split("-")[:2]) for row in first[:8]}) > 2


@pytest.mark.parametrize("seed", range(4))
def test_kills_at_any_step_and_other_numbers_of_processes_lose_and_repeat_nothing(memory, tmp_path, seed):
    chance = random.Random(seed)
    whole = Streaming(tmp_path / "whole", 0, 24).go(0, 24)
    seen, step = [], 0
    while step < 24:
        killed = min(24, step + chance.randint(1, 6))
        done = Streaming(tmp_path / "killed", step, 24).go(step, killed, world=chance.choice([1, 2, 3]))
        saved = chance.randint(step, killed) if killed < 24 else 24  # the newest checkpoint
        seen, step = seen[:step] + done[: saved - step], saved
    assert [sorted(each) for each in seen] == [sorted(each) for each in whole]
    assert Counter(row for each in seen for row in each) == Counter(dict.fromkeys(EVERYTHING, 2))
    assert (tmp_path / "killed" / LEDGER).read_text() == (tmp_path / "whole" / LEDGER).read_text()


def waits_for(what: Callable[[], bool]):
    end = time.monotonic() + 120
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_no_more_lies_here_than_what_the_next_step_needs_and_one_window_more(memory, tmp_path):
    run = Streaming(tmp_path, 0, 36, kept=frozenset({0}))
    most = 0
    for step in range(36):
        run.rows(step)
        lying = {int(each.name.partition("-")[2]) for each in run.here.glob("window-*")}
        needed = {window.number for window in run.fetch.made if step * 4 < window.end and window.first < step * 4 + 8}
        assert len(lying - needed - {0}) <= fetching.AHEAD + 1, (step, lying, needed)  # one is being removed
        most = max(most, len(lying))
        run.fetch.done(step + 1)
    assert most <= 5 and (run.here / "window-000000").is_dir()
    run.fetch.end()
    waits_for(lambda: not run.fetch.is_alive())
    assert len(run.fetch.made) < 3 * run.plan.windows_in_turn + 2


def test_nothing_is_fetched_for_steps_that_never_come(memory, tmp_path):
    run = Streaming(tmp_path, 0, 2)
    run.go(0, 2)
    assert len(run.fetch.made) <= 2


def test_a_step_larger_than_many_windows_does_not_wait_for_ever(memory, tmp_path):
    steps = Streaming(tmp_path, 0, 3, per_step=30, in_window=1).go(0, 3)
    assert Counter(row for step in steps for row in step).total() == 90


def test_a_lost_shard_is_an_error_or_left_out_counted_and_left_out_again(memory, tmp_path):
    lost = next(shard for _, shard in ShardPlan(NAMES, 3, 5).members(1) if memory.size(shard))
    content = memory.cat(lost)
    memory.rm(lost)
    run = Streaming(tmp_path / "raise", 0, 12)
    with pytest.raises(OSError, match=rf"{lost} cannot be fetched: it is not there.*on_bad_row"):
        run.go(0, 12)
    run = Streaming(tmp_path / "skip", 0, 8, skip_lost=True)
    steps = run.go(0, 8)
    ledger = read_ledger(tmp_path / "skip")
    assert list(ledger[1].lost) == [lost] and "it is not there" in ledger[1].lost[lost]
    gone = set(content.decode().split())
    assert gone and gone.isdisjoint(row for step in steps for row in step)
    # It is there again: a run that goes on inside of this window leaves it out all the same.
    memory.pipe(lost.removeprefix("memory://"), content)
    step = ledger[1].first_step + 1
    assert Streaming(tmp_path / "skip", step, 8, skip_lost=True).go(step, 8) == steps[step:]


def test_a_shard_that_was_there_before_cannot_be_left_out_later(memory, tmp_path):
    Streaming(tmp_path, 0, 12, skip_lost=True).go(0, 2)
    memory.rm(read_ledger(tmp_path)[0].shards[0])
    with pytest.raises(OSError, match="has learnt from it before, so it cannot be left out now"):
        Streaming(tmp_path, 2, 12, skip_lost=True).go(2, 3)


def test_changed_shards_and_a_changed_ledger_are_noticed(memory, tmp_path):
    Streaming(tmp_path, 0, 12).go(0, 2)
    name = next(name for name in read_ledger(tmp_path)[0].shards if memory.size(name))
    memory.pipe(name.removeprefix("memory://"), memory.cat(name).replace(b"-", b"+"))
    with pytest.raises(ValueError, match="Window 0 of the stream held .* its shards have changed"):
        Streaming(tmp_path, 2, 12).go(2, 3)
    lines = (tmp_path / LEDGER).read_text().splitlines(keepends=True)
    (tmp_path / LEDGER).write_text("".join(lines[1:]))
    with pytest.raises(ValueError, match="line 1, does not go on"):
        read_ledger(tmp_path)
    (tmp_path / LEDGER).unlink()
    with pytest.raises(ValueError, match="ends before the newest checkpoint"):
        begin_at(8, read_ledger(tmp_path), 2)


def test_a_stream_without_a_row_ends(memory, tmp_path):
    for name in [name for names in NAMES for name in names]:
        memory.pipe(name.removeprefix("memory://"), b"")
    with pytest.raises(ValueError, match="No shard of the stream has a row"):
        Streaming(tmp_path, 0, 3).go(0, 1)


def test_a_disk_that_is_too_small_is_said_before_anything_is_fetched(memory, tmp_path, monkeypatch):
    monkeypatch.setattr(fetching, "size_of", lambda shard: 10**15)
    with pytest.raises(OSError, match=r"3 shards of the stream have 3,000,000.0 GB.*window_shards.*stream_folder"):
        Streaming(tmp_path, 0, 3).go(0, 1)
    assert not list((tmp_path / "here").rglob("*.txt"))


def test_one_pause_of_the_server_is_hidden_behind_training(memory, tmp_path, monkeypatch):
    """The window ahead comes in while steps of this one are learnt."""
    run = Streaming(tmp_path, 0, 36, in_window=3)
    run.rows(0)
    waits_for(lambda: len(run.fetch.made) >= 2)
    slow = threading.Event()
    fetch = fetching.fetch
    monkeypatch.setattr(fetching, "fetch", lambda *arguments: slow.wait(20) and fetch(*arguments))
    for step in range(run.fetch.made[-1].end // 4):
        run.rows(step)  # does not wait
        run.fetch.done(step + 1)
    slow.set()
    run.fetch.end()


def test_the_description_of_a_plan_forgives_a_move_and_nothing_else():
    described = ShardPlan([["s3://a/x/0.tar", "s3://a/x/1.tar"]], 2, 0).describe()
    assert described == ShardPlan([["/disk/0.tar", "/disk/1.tar"]], 2, 1).describe()
    for other in ([["/disk/0.tar", "/disk/2.tar"]], [["/disk/0.tar"]], [["/disk/0.tar"], ["/disk/1.tar"]]):
        assert described != ShardPlan(other, 2, 0).describe()
    assert described != ShardPlan([["/disk/0.tar", "/disk/1.tar"]], 3, 0).describe()
