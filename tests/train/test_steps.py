"""Steps prepared ahead by worker processes: the same steps, decoded in time and elsewhere, by what can be spared."""

import multiprocessing
import os
import pickle
import time

import pytest
import torch

from jminigpt4.checkpoint import read_projection
from jminigpt4.train import engine
from jminigpt4.train.engine import _prepare, train
from jminigpt4.train.features import PictureEncoder
from jminigpt4.train.metrics import read_metrics
from jminigpt4.train.recipe import Recipe
from jminigpt4.train.workers import MOST_WORKERS, TASKS_AHEAD, spare_workers

RECIPE = Recipe(
    learning_rate=1e-2, min_learning_rate=1e-3, warmup_steps=2, steps_per_epoch=6, epochs=2, pictures_per_step=3,
    pack_tokens=64, log_steps=2,
)  # fmt: skip


def weights(folder) -> torch.Tensor:
    weight, bias, _ = read_projection(folder)
    return torch.cat([weight.flatten(), bias])


@pytest.fixture
def run(make_model, processor, captions, tmp_path, monkeypatch):
    """`run(name, **changes)`: a training of a fresh tiny model in folder `name`, without its drawing."""
    monkeypatch.setattr(engine, "draw_learning_curve", lambda metrics, picture: None)

    def go(name: str = "run", **options):
        return train(make_model(), captions, tmp_path / name, RECIPE, processor=processor, progress=False, **options)

    return go


@pytest.fixture
def decoded(tmp_path, monkeypatch):
    """`decoded()`: process and picture of every decoding so far, in whatever process it was."""
    log, decode = tmp_path / "decoded", PictureEncoder.pixel_values

    def noted(self, content, name, seeds):
        with log.open("a") as file:
            file.write(f"{os.getpid()} {name}\n")
        return decode(self, content, name, seeds)

    monkeypatch.setattr(PictureEncoder, "pixel_values", noted)
    return lambda: [tuple(line.split(" ", 1)) for line in log.read_text().splitlines()] if log.exists() else []


@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_learnt_does_not_depend_on_workers(run, captions, workers):
    (captions.parent / "0.png").write_bytes(b"broken")
    alone, helped = (
        run(f"{count}", workers=count, validation=0.3, augmentation=True, max_bad_share=0.5) for count in (0, workers)
    )
    assert torch.equal(weights(alone.output), weights(helped.output))
    assert alone.bad_pictures == helped.bad_pictures and alone.bad_pictures
    logs = [[line.get("loss", line.get("eval_loss")) for line in read_metrics(each.output / "metrics.jsonl")]
            for each in (alone, helped)]  # fmt: skip
    assert logs[0] == logs[1] and len(logs[0]) > 6


def test_a_run_goes_on_with_another_number_of_workers_and_reads_no_step_again(run, decoded, monkeypatch):
    whole = run("whole", save_steps=2, workers=0)
    step = engine.ProjectionTrainer.training_step

    def dying(self, *arguments):
        if self.state.global_step == 6:
            raise KeyboardInterrupt
        return step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(engine.ProjectionTrainer, "training_step", dying)
        with pytest.raises(KeyboardInterrupt):
            run("parts", save_steps=2, workers=0)
    before = len(decoded())
    parts = run("parts", save_steps=2, workers=2)
    assert torch.equal(weights(parts.output), weights(whole.output))
    assert len(decoded()) - before <= 3 + 6 * 3  # the packing's proof and six steps of three pictures


def test_the_next_steps_are_decoded_while_one_is_learnt_from(run, decoded, monkeypatch):
    step, ahead = engine.ProjectionTrainer.training_step, []

    def waiting(self, *arguments):
        if not ahead:
            until = time.monotonic() + 60
            wanted = 3 * (1 + TASKS_AHEAD)
            while self.args.dataloader_num_workers and in_workers() < wanted and time.monotonic() < until:
                time.sleep(0.01)
            ahead.append(in_workers())
        return step(self, *arguments)

    def in_workers() -> int:
        return sum(process != str(os.getpid()) for process, _ in decoded())

    monkeypatch.setattr(engine.ProjectionTrainer, "training_step", waiting)
    run(workers=1)
    assert ahead[0] >= 3 * (1 + TASKS_AHEAD)


@pytest.mark.parametrize("cached", [False, True])
def test_steps_go_to_another_process_without_model_and_features(make_model, processor, captions, tmp_path, cached):
    prepared = _prepare(
        make_model(), captions, RECIPE, processor, cache=tmp_path / "features" if cached else None, progress=False
    )
    sent = pickle.dumps(prepared.steps)
    # A worker of a start method that does not fork; its tensors arrive through shared memory.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        there = pool.apply(_step, (sent, 4))
    here = prepared.steps[4]
    assert there == [pack.input_ids.tolist() for pack in here.packs] != []
    assert len(sent) < 200_000 < sum(each.nbytes for each in prepared.model.state_dict().values())
    assert (b"FeatureStore" in sent) == cached


def _step(sent: bytes, index: int) -> list[list[int]]:
    return [pack.input_ids.tolist() for pack in pickle.loads(sent)[index].packs]


@pytest.mark.parametrize(
    ("device", "processes", "cores", "start", "expected"),
    [
        ("cpu", 1, 16, "fork", 1),
        ("cuda", 1, 16, "fork", MOST_WORKERS),
        ("cuda", 4, 16, "fork", 3),
        ("cuda", 1, 4, "fork", 3),
        ("cpu", 1, 1, "fork", 0),
        ("cpu", 2, 2, "fork", 0),
        ("cpu", 4, 2, "fork", 0),
        ("cuda", 1, 16, "spawn", 0),
    ],
)
def test_as_many_workers_as_can_be_spared(monkeypatch, device, processes, cores, start, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)), raising=False)
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda allow_none: start)
    assert spare_workers(torch.device(device), processes) == expected


def test_steps_come_without_shared_memory(run, monkeypatch):
    """Which may be full: then a tensor of a worker is lost, and training waits for ever."""

    def full(*arguments):
        raise RuntimeError("unable to write to file: no space left on device")

    for storage in (torch.UntypedStorage, torch.TypedStorage):
        monkeypatch.setattr(storage, "_share_fd_cpu_", full, raising=False)
        monkeypatch.setattr(storage, "_share_filename_cpu_", full, raising=False)
    assert run(workers=1, max_steps=2).steps == 2


def test_training_takes_what_can_be_spared_unless_told(run, decoded, monkeypatch):
    monkeypatch.setattr(engine, "spare_workers", lambda *arguments: 1)
    run("told", workers=0, max_steps=2)
    assert {process for process, _ in decoded()} == {str(os.getpid())}
    run("untold", max_steps=2)
    assert len({process for process, _ in decoded()}) > 1
