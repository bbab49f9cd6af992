"""A run over a stream: what it learns from, that it goes on where it was, and what it refuses."""

import io
import json
import multiprocessing
import os
import signal
import sys
import tarfile
import threading
import time
from collections import Counter

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from jminigpt4 import DEMO
from jminigpt4.checkpoint import read_projection
from jminigpt4.data import shards as shards_module
from jminigpt4.data.growing_lines import append
from jminigpt4.train import engine, fetch_process, streaming
from jminigpt4.train.engine import _prepare, dry_run, train
from jminigpt4.train.recipe import Recipe
from jminigpt4.train.windows import LEDGER, read_ledger

SHARDS, PICTURES = 6, 5  # and as many captions
RECIPE = Recipe(
    learning_rate=1e-2, min_learning_rate=1e-3, warmup_steps=2, steps_per_epoch=8, epochs=2, pictures_per_step=4,
    pack_tokens=64, log_steps=1, save_steps=1, keep_checkpoints=99, window_shards=2,
)  # fmt: skip
EVERYTHING = {f"赤{shard}{picture}" for shard in range(SHARDS) for picture in range(PICTURES)}


def tar(draw, shard: int, pictures: int = PICTURES, broken: int = -1) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for number in range(pictures):
            picture = io.BytesIO()
            draw(10 * shard + number).save(picture, "PNG")
            data = b"broken" if number == broken else picture.getvalue()
            for ending, text in (("png", data), ("txt", f"赤{shard}{number}".encode())):
                member = tarfile.TarInfo(f"{number:04d}.{ending}")
                member.size = len(text)
                archive.addfile(member, io.BytesIO(text))
    return content.getvalue()


@pytest.fixture
def memory(draw, monkeypatch, tmp_path):
    """Six shards of five pictures on a server."""
    monkeypatch.setattr(shards_module, "FIRST_WAIT", 0.001)
    monkeypatch.setenv("JMINIGPT4_ROWS", str(tmp_path / "never"))
    files = fsspec.filesystem("memory")
    for shard in range(SHARDS):
        files.pipe(f"/cc/{shard}.tar", tar(draw, shard))
    yield files
    files.store.clear()
    files.pseudo_dirs[:] = [""]


SOURCE = {"path": "memory://cc/{0..5}.tar", "stream": True}


@pytest.fixture
def run(make_model, processor, memory, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "draw_learning_curve", lambda metrics, picture: None)

    def go(name: str = "run", data=SOURCE, recipe=RECIPE, **options):
        return train(make_model(), data, tmp_path / name, recipe, processor=processor, progress=False, **options)

    return go


@pytest.fixture
def rows_of(make_model, processor, memory, tmp_path):
    """`rows_of(steps, first, …)`: the answers in each step of a run, as its steps hand them on."""

    def go(steps: int, first: int = 0, name: str = "rows", data=SOURCE, recipe=RECIPE, **options):
        run = _prepare(make_model(), data, recipe, processor=processor, output=tmp_path / name, **options)
        run.stream.start(first, first + steps)
        found = []
        for step in range(first, first + steps):
            members = run.steps.order.step(step)
            groups = [run.steps.sources[source][group] for source, group in members]
            found.append([row.answer for group in groups for row in group.rows])
            run.stream.done(step + 1)
        held = [row.answer for source in run.sources for group in source.validation for row in group.rows]
        run.stream.close()
        return found, held

    return go


def weights(folder) -> torch.Tensor:
    weight, bias, _ = read_projection(folder)
    return torch.cat([weight.flatten(), bias])


def test_every_row_comes_once_a_turn_and_none_lies_here_afterwards(rows_of, tmp_path):
    steps, held = rows_of(15)
    rows = [row for step in steps for row in step]
    assert not held and Counter(rows[:30]) == Counter(EVERYTHING) == Counter(rows[30:]) and rows[:30] != rows[30:]
    assert [path.name for path in (tmp_path / "rows").iterdir()] == [LEDGER] and not (tmp_path / "never").exists()
    first = read_ledger(tmp_path / "rows")[0]
    assert set(rows[:10]) == {row for row in EVERYTHING for shard in first.shards if f"/{row[1]}.tar" in shard}


def test_a_run_learns_and_goes_on_to_the_same_weights(run, tmp_path, monkeypatch):
    whole = run("whole")
    assert whole.steps == 16 and not list(whole.output.glob("stream-*"))
    windows = read_ledger(whole.output)
    assert [len(windows), windows[0].first_step, windows[1].first_step] == [7, 0, 2]
    step = engine.ProjectionTrainer.training_step
    for last in (3, 4, 11):

        def dying(self, *arguments, last=last):
            if self.state.global_step == last:
                raise KeyboardInterrupt
            return step(self, *arguments)

        monkeypatch.setattr(engine.ProjectionTrainer, "training_step", dying)
        with pytest.raises(KeyboardInterrupt):
            run("broken")
    monkeypatch.setattr(engine.ProjectionTrainer, "training_step", step)
    resumed = run("broken")
    assert torch.equal(weights(resumed.output), weights(whole.output))
    assert (resumed.output / LEDGER).read_text() == (whole.output / LEDGER).read_text()


def test_crops_do_not_depend_on_where_windows_lie_nor_on_workers(run, tmp_path):
    cropped = RECIPE.with_(augmentation=True)
    one = run("one", recipe=cropped)
    two = run("two", recipe=cropped.with_(stream_folder=str(tmp_path / "scratch")), workers=2)
    assert torch.equal(weights(one.output), weights(two.output)) and not list((tmp_path / "scratch").iterdir())
    other = run("three", recipe=cropped.with_(seed=1))
    assert not torch.equal(weights(one.output), weights(other.output))


def test_what_is_held_out_is_never_learnt_and_stays_for_validation(rows_of, run):
    recipe = RECIPE.with_(validation=0.3)
    steps, held = rows_of(15, recipe=recipe)
    rows = [row for step in steps for row in step]
    assert held and set(held).isdisjoint(rows)
    missing = EVERYTHING - set(rows)  # of all windows; those of the first are validated with
    assert set(held) < missing and 4 <= len(missing) <= 16
    result = run(recipe=recipe, max_steps=9)
    assert result.eval_loss is not None


def test_exclusion_reaches_every_window_and_says_what_it_finds(rows_of, tmp_path, capsys):
    listed = [f"{shard}:{shard}/{picture:04d}" for shard in range(SHARDS) for picture in (1, 3)]
    (tmp_path / "ids.txt").write_text("\n".join(listed))
    steps, _ = rows_of(9, recipe=RECIPE.with_(exclude=[str(tmp_path / "ids.txt")]))
    rows = Counter(row for step in steps[:4] for row in step)
    kept = {row for row in EVERYTHING if row[2] not in "13"}
    assert set(rows) <= kept and {row for step in steps for row in step} == kept
    assert "4 of the 12 ids in" in "".join(capsys.readouterr())


def test_a_bad_picture_is_called_by_its_shard(run, memory, draw):
    memory.pipe("/cc/3.tar", tar(draw, 3, broken=2))
    result = run(recipe=RECIPE.with_(max_bad_share=0.5))
    (bad,) = result.bad_pictures
    assert bad.name.startswith("memory://cc/3.tar@") and bad.name in bad.reason


def test_bad_rows_of_all_windows_are_listed_once(run, memory, tmp_path):
    for number in range(3):
        lines = [{"question": "色", "answer": f"赤{number}"}, {"question": "色"}]
        memory.pipe(f"/q/{number}.jsonl", "\n".join(map(json.dumps, lines)).encode())
    recipe = RECIPE.with_(on_bad_row="skip", max_bad_share=0.6, window_shards=1, pictures_per_step=1, lora=2, epochs=1)
    run(data={"path": "memory://q/*.jsonl", "stream": True}, recipe=recipe, max_steps=2)
    run(data={"path": "memory://q/*.jsonl", "stream": True}, recipe=recipe, max_steps=3)
    lines = [json.loads(line) for line in (tmp_path / "run" / "bad_rows.jsonl").read_text().splitlines()]
    assert [line["window"] for line in lines] == list(range(len(lines))) and len(lines) >= 3
    with pytest.raises(ValueError, match="answer"):
        run("strict", data={"path": "memory://q/*.jsonl", "stream": True}, recipe=recipe.with_(on_bad_row="raise"))


def test_a_lost_shard_is_said_and_what_was_lost_stays_lost(run, memory, draw, tmp_path, capfd):
    memory.rm("/cc/2.tar")
    with pytest.raises(OSError, match=r"cc/2.tar cannot be fetched: it is not there.*on_bad_row"):
        run("strict")
    recipe = RECIPE.with_(on_bad_row="skip")
    run(recipe=recipe, max_steps=7)
    assert "".join(capfd.readouterr()).count("cc/2.tar cannot be fetched") == 1
    memory.pipe("/cc/2.tar", tar(draw, 2))
    assert run(recipe=recipe, max_steps=8).steps == 8
    lost = [window.number for window in read_ledger(tmp_path / "run").values() if window.lost]
    assert len(lost) == 1


def test_several_sources_keep_their_prompts(rows_of, memory, draw):
    for shard in range(3):
        memory.pipe(f"/vg/{shard}.tar", tar(draw, 6 + shard))
    sources = [SOURCE, {"path": "memory://vg/*.tar", "stream": True, "name": "other"}]
    steps, _ = rows_of(12, data=sources, recipe=RECIPE.with_(window_shards=1))
    everything = EVERYTHING | {f"赤{shard}{picture}" for shard in (6, 7, 8) for picture in range(PICTURES)}
    assert Counter([row for step in steps for row in step][:45]) == Counter(everything)


def test_recipes_by_the_size_of_the_data_take_what_the_run_shows(run, capsys):
    result = run(recipe="auto", max_steps=3, pictures_per_step=4)
    assert result.steps == 3
    assert "3 steps of 4, each picture 1 x" in "".join(capsys.readouterr())


def test_a_dry_run_leaves_nothing(make_model, processor, memory, tmp_path):
    plan = dry_run(make_model(), SOURCE, RECIPE, processor=processor, output=tmp_path / "run", progress=False)
    assert plan["rows"] == 4 and plan["steps"] == 16 and not (tmp_path / "run").exists()


def test_a_few_pictures_of_a_stream_are_learnt_by_heart(run):
    assert len(run(overfit=2, max_steps=2).answers) == 2


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ([SOURCE, "elsewhere.jsonl"], {}, "elsewhere.jsonl has no `stream: true`"),
        ({**SOURCE, "weight": 2.0}, {}, "streams and has a weight"),
        (SOURCE, {"steps_per_epoch": None}, "say how long to train, by --max-steps"),
        (SOURCE, {"cache": "features"}, "A feature cache is for pictures that are seen again"),
        ({**SOURCE, "path": "memory://cc"}, {}, r"names no file: .*memory://cc/\*\*\.parquet"),
        ({**SOURCE, "path": "memory://cc/*.zip"}, {}, "matches no file"),
        ({**SOURCE, "path": "memory://cc/{0..9}.tar"}, {}, "cannot be fetched: it is not there"),
    ],
)
def test_what_cannot_be_streamed_is_refused_before_anything_is_learnt(run, data, options, message):
    with pytest.raises((ValueError, OSError), match=message):
        run(data=data, **options)


def test_another_listing_is_another_run(run):
    run(max_steps=2)
    with pytest.raises(ValueError, match="shards of each source was .6. and is .5."):
        run(data={**SOURCE, "path": "memory://cc/{0..4}.tar"}, max_steps=3)
    with pytest.raises(ValueError, match="window_shards was 2 and is 3"):
        run(recipe=RECIPE.with_(window_shards=3), max_steps=3)
    assert run(max_steps=3).steps == 3


def test_no_more_is_fetched_than_a_run_needs(run, memory, monkeypatch, tmp_path):
    get = MemoryFileSystem.get_file

    def noted(self, rpath, lpath, **options):
        append(tmp_path / "seen.jsonl", [rpath])
        get(self, rpath, lpath, **options)

    monkeypatch.setattr(MemoryFileSystem, "get_file", noted)
    run(max_steps=3)
    assert len((tmp_path / "seen.jsonl").read_text().splitlines()) == 4  # three steps are in two windows


def test_no_process_is_forked_from_one_that_fetches(run, monkeypatch):
    """A fork keeps the locks of threads that it does not have."""
    threads, start = [], multiprocessing.process.BaseProcess.start

    def noted(self):
        threads.append({thread.name for thread in threading.enumerate()})
        start(self)

    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", noted)
    run(recipe=RECIPE.with_(validation=0.2), workers=1)
    assert len(threads) > 3 and not any(name.startswith("stream") for names in threads for name in names)


def test_a_server_that_does_not_answer_does_not_hold_a_run_that_fails(run, monkeypatch, tmp_path):
    get, own = MemoryFileSystem.get_file, os.getpid()

    def stuck(self, rpath, lpath, **options):
        if os.getpid() != own:  # what is fetched ahead
            append(tmp_path / "asked.jsonl", [rpath])
            time.sleep(900)
        get(self, rpath, lpath, **options)

    def fails(*arguments):
        while not (tmp_path / "asked.jsonl").exists():
            time.sleep(0.01)
        raise RuntimeError("a step failed")

    monkeypatch.setattr(fetch_process, "PATIENCE", 0.1)
    monkeypatch.setattr(MemoryFileSystem, "get_file", stuck)
    monkeypatch.setattr(engine.ProjectionTrainer, "training_step", fails)
    with pytest.raises(RuntimeError, match="a step failed"):
        run(max_steps=3, workers=0)


def test_a_run_whose_fetching_is_killed_says_so_and_goes_on_when_begun_again(run, monkeypatch):
    """As the kernel does where memory is short."""
    index = streaming.WindowRows.index

    def killed(self, number, lost, **options):
        if number == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return index(self, number, lost, **options)

    with monkeypatch.context() as patched:
        patched.setattr(streaming.WindowRows, "index", killed)
        with pytest.raises((OSError, RuntimeError), match="The process that fetches the stream was killed"):
            run(workers=0)
    assert run().steps == 16


def test_the_verbs_know_streams(memory, draw, tmp_path, monkeypatch, capsys):
    from jminigpt4 import cli

    def verb(*words: object) -> str:
        monkeypatch.setattr(sys, "argv", ["jminigpt4", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        shown = capsys.readouterr()
        return shown.out + shown.err if end.value.code == 0 else f"{end.value.code}: {shown.err}"

    shown = verb("data", "captions=memory://cc/{0..5}.tar", "--stream")
    assert shown.startswith("captions, 0.tar (1 of 6 shards): 5 rows about 5 pictures") and "赤02" in shown
    settings = [f"--set={each}" for each in ("pictures_per_step=2", "window_shards=2")]
    command = ["train", DEMO, "memory://cc/{0..5}.tar", "--stream", "--output", tmp_path / "run", *settings]
    assert "say how long to train, by --max-steps N" in verb(*command)
    assert "1 steps, loss" in verb(*command, "--max-steps", 1)
    assert len(read_ledger(tmp_path / "run")) == 1
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("steps_per_epoch: 1\nepochs: 1\ndata: [{path: 'memory://cc/{0..5}.tar', stream: true}]\n")
    shown = verb("features", DEMO, tmp_path / "cache", "--recipe", recipe)
    assert shown.startswith("2: ") and "is a stream, and what is looked at again has to be here" in shown
