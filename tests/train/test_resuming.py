"""What a run may go on from, and that two never train in one folder."""

import json
import multiprocessing
import os
import signal
import socket

import pytest
import torch

from jminigpt4.checkpoint import LOCK, locked_folder, read_projection
from jminigpt4.train import engine
from jminigpt4.train.engine import train
from jminigpt4.train.metrics import read_metrics
from jminigpt4.train.recipe import Recipe
from jminigpt4.train.resuming import MAY_CHANGE

RECIPE = Recipe(
    learning_rate=1e-2,
    min_learning_rate=1e-3,
    warmup_steps=1,
    steps_per_epoch=None,
    epochs=1,
    pictures_per_step=2,
    pack_tokens=64,
    log_steps=1,
    save_steps=1,
)


@pytest.fixture
def run(make_model, processor, captions, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "draw_learning_curve", lambda metrics, picture: None)

    def go(name: str = "run", data=captions, recipe=RECIPE, **options):
        return train(make_model(), data, tmp_path / name, recipe, processor=processor, progress=False, **options)

    return go


def test_another_run_does_not_go_on_from_a_checkpoint(run, captions, tmp_path):
    run(max_steps=1)
    original = captions.read_text()
    changes = [
        ({"learning_rate": 1.0}, "learning_rate was 0.01 and is 1.0"),
        ({"loss": "answer_mean"}, 'loss was "token_mean" and is "answer_mean"'),
        ({"lora": 2}, "lora was 0 and is 2"),
        ({"betas": [0.9, 0.99]}, r"betas was \[0.9, 0.999\] and is \[0.9, 0.99\]"),
        ({"prompts": "japanese"}, 'prompts was "none"'),
        ({"cache": tmp_path / "cache"}, "cache was false and is true"),
    ]
    for options, message in changes:
        with pytest.raises(ValueError, match=f"checkpoint-1 belongs to another run: {message}"):
            run(max_steps=2, **options)
    captions.write_text(original.replace("犬", "猫", 1))
    with pytest.raises(ValueError, match="belongs to another run: rows of source 1 was"):
        run(max_steps=2)
    captions.write_text(original)
    assert run(max_steps=2).steps == 2


def test_a_run_of_the_older_order_does_not_go_on(run, tmp_path):
    """Its order had no kind; a run in the new one would repeat and leave out pictures without a word."""
    run(max_steps=1)
    path = tmp_path / "run/checkpoint-1/run.json"
    stored = json.loads(path.read_text())
    stored["order"].pop("kind")
    path.write_text(json.dumps(stored))
    with pytest.raises(ValueError, match="checkpoint-1 is of a version that drew the order of samples in another way"):
        run(max_steps=2)


def test_what_may_change_changes(run, captions, tmp_path):
    run(max_steps=1)
    moved = captions.rename(captions.with_name("moved.jsonl"))
    changed = {"epochs": 2, "pack_tokens": 32, "save_steps": 2, "log_steps": 2, "keep_checkpoints": 3}
    changed |= {"dtype": "float32", "share_prefix": False, "max_bad_share": 0.5, "on_bad_picture": "raise"}
    assert changed.keys() <= MAY_CHANGE.keys() <= Recipe.model_fields.keys()
    assert run(data=moved, max_steps=3, **changed).steps == 3


FILES = ["optimizer.pt", "rng_state.pth", "run.json", "trainer_state.json"]


@pytest.mark.parametrize("missing", [*FILES, "scheduler.pt"])
def test_a_checkpoint_that_is_not_whole_is_an_error(run, tmp_path, missing):
    run(max_steps=1)
    (tmp_path / "run/checkpoint-1" / missing).unlink()
    with pytest.raises(ValueError, match="checkpoint-1 has no .*it is not whole"):
        run(max_steps=2)


@pytest.mark.parametrize("damaged", [*FILES, "projection.safetensors"])
def test_a_damaged_checkpoint_is_an_error(run, tmp_path, damaged):
    run(max_steps=1)
    path = tmp_path / "run/checkpoint-1" / damaged
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match="checkpoint-1"):
        run(max_steps=2)


def test_bad_pictures_survive_a_resume(run, captions, tmp_path, monkeypatch):
    """The run ends with the whole list, though its second life met none of the first one's bad pictures."""
    for number in range(8):
        (captions.parent / f"{number}.png").write_bytes(b"broken" if number in (0, 4) else _png(captions, number))
    whole = run("whole", max_bad_share=0.5)
    names = [bad.name for bad in whole.bad_pictures]
    assert len(names) == 2
    step = engine.ProjectionTrainer.training_step

    def dying(self, *arguments):
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return step(self, *arguments)

    monkeypatch.setattr(engine.ProjectionTrainer, "training_step", dying)
    with pytest.raises(KeyboardInterrupt):
        run(max_bad_share=0.5)
    monkeypatch.setattr(engine.ProjectionTrainer, "training_step", step)
    assert [bad.name for bad in run(max_bad_share=0.5).bad_pictures] == names
    listed = (tmp_path / "run/bad_pictures.jsonl").read_text()
    assert listed == (tmp_path / "whole/bad_pictures.jsonl").read_text() and listed.count("\n") == 2


def _png(captions, number: int) -> bytes:
    return (captions.parent / f"{number}.png").read_bytes()


def test_a_short_run_reports_its_loss(run):
    result = run(max_steps=3, log_steps=10)
    (line,) = [line for line in read_metrics(result.output / "metrics.jsonl") if "loss" in line]
    each = [line["loss"] for line in read_metrics(run("each", max_steps=3).output / "metrics.jsonl") if "loss" in line]
    assert line["step"] == 3 and result.loss == line["loss"] == pytest.approx(sum(each) / 3)


def test_what_cannot_go_well_is_said_before_the_first_step(run, captions, capsys, tmp_path):
    with pytest.raises(ImportError, match="Nothing can be reported to 'tensorbord'"):
        run(report_to="tensorbord")
    assert not (tmp_path / "run").exists()
    run(max_steps=2, warmup_steps=2000, warmup_learning_rate=1e-6)
    said = capsys.readouterr().out
    assert "the 2 steps of this run end before the 2,000 of the warm-up: the learning rate gets to 6e-06" in said


def test_rows_longer_than_the_window_are_left_out_and_counted(run, captions, capsys):
    rows = [json.loads(line) for line in captions.read_text().splitlines()]
    run("short", max_steps=1)
    assert "left out" not in capsys.readouterr().out
    long = rows[5] | {"caption": "犬" * 3000}
    captions.write_text("".join(json.dumps(row) + "\n" for row in [*rows[:5], long, *rows[6:]]))
    assert run("long", max_steps=1).steps == 1
    assert "1 rows are left out, longer than the model's window of" in capsys.readouterr().out
    assert run("cut", max_steps=1, max_answer_tokens=4).steps == 1
    assert "left out" not in capsys.readouterr().out
    captions.write_text(json.dumps(long))
    with pytest.raises(ValueError, match="Every row of captions is longer than the model's window"):
        run("none")


def in_another_process(function) -> int:
    child = multiprocessing.get_context("fork").Process(target=function)
    child.start()
    child.join()  # with a time it would wait for the child's own children as well
    return child.exitcode


def test_one_process_to_a_folder(run, tmp_path):
    with locked_folder(tmp_path / "run"):
        holder = f"process {os.getpid()} on {socket.gethostname()}"
        with pytest.raises(BlockingIOError, match=f"run is in use by {holder}: wait until it ends"):
            run(max_steps=1)
        assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK]
    assert not any((tmp_path / "run").iterdir())


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path):
    def die():
        with locked_folder(tmp_path):
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_another_process(die) == -signal.SIGKILL
    assert (tmp_path / LOCK).exists()
    with locked_folder(tmp_path):
        assert (tmp_path / LOCK).read_text().startswith(f"process {os.getpid()} on ")
    assert not (tmp_path / LOCK).exists()


def test_a_worker_does_not_hold_the_lock_of_its_dead_parent(tmp_path):
    context = multiprocessing.get_context("fork")
    gone, worker = context.Event(), context.Value("q", 0)

    def parent():
        with locked_folder(tmp_path):
            child = os.fork()
            if child == 0:
                gone.wait(60)
                os._exit(0)
            worker.value = child
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_another_process(parent) == -signal.SIGKILL
    try:
        os.kill(worker.value, 0)  # it lives
        with locked_folder(tmp_path):
            pass
    finally:
        gone.set()


@pytest.mark.parametrize("size", [700, 2500, 4000])
def test_a_full_disk_leaves_nothing_that_looks_finished(run, tmp_path, full_disk, size):
    """A recipe, an optimiser's state, or weights find no room; with room the same command ends as if nothing was."""
    whole = run("whole")
    with full_disk(size), pytest.raises(OSError) as raised:
        run()
    assert str(tmp_path / "run") in str(raised.value) and "\n" not in str(raised.value)
    assert not any((tmp_path / "run").glob("*.safetensors")) and not any((tmp_path / "run").glob(".*"))
    again = run()
    (left, _, _), (right, _, _) = read_projection(whole.output), read_projection(again.output)
    assert torch.equal(left, right)
