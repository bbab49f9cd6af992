"""Several gloo processes learn what one learns and share its work; a killed run ends where a whole one ends."""

import json
import multiprocessing
import multiprocessing.connection
import os
import random
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from jminigpt4.checkpoint import read_projection
from jminigpt4.data import first_look
from jminigpt4.train import distributed, engine
from jminigpt4.train.features import PictureEncoder
from jminigpt4.train.recipe import Recipe
from jminigpt4.train.trainer import newest_checkpoint

# `KILLS=50 pytest tests/train/test_distributed.py -k killed` takes half a minute on a quiet core.
KILLS = int(os.environ.get("KILLS", "8"))
PICTURES, ROWS = 8, 24
# AdamW takes no notice of a gradient's scale, clipping does: far below the gradient's norm, it always clips.
RECIPE = Recipe(
    learning_rate=1e-2,
    min_learning_rate=1e-3,
    warmup_steps=2,
    steps_per_epoch=None,
    epochs=2,
    pictures_per_step=5,
    pack_tokens=40,
    max_grad_norm=0.01,
    log_steps=1,
    save_steps=1,
    keep_checkpoints=9,
)
fresh_process = pytest.mark.skipif("FRESH_PROCESS" not in os.environ, reason="run by a test in a process of its own")


def in_a_fresh_process(name: str):
    """Runs one test of this file: autograd cannot be used in a fork of a process that has used it."""
    child = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", f"{__file__}::{name}"],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "FRESH_PROCESS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert child.returncode == 0, child.stdout[-6000:]
    assert "1 passed" in child.stdout


def weights(folder) -> torch.Tensor:
    weight, bias, _ = read_projection(folder)
    return torch.cat([weight.flatten(), bias])


def logged(folder: Path, name: str) -> list[tuple[int, float]]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line[name]) for line in lines if name in line]


class Group:
    """`world` forked processes that find in the environment what torchrun would put there.

    Args:
        world: Their number.
        run: Called in each.
    """

    def __init__(self, world: int, run):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            self.port = free.getsockname()[1]
        self.world, self.run = world, run
        context = multiprocessing.get_context("fork")
        self.processes = [context.Process(target=self._member, args=(rank,)) for rank in range(world)]
        for process in self.processes:
            process.start()

    def _member(self, rank: int):
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(self.world),
            "LOCAL_WORLD_SIZE": str(self.world),
            "MASTER_ADDR": "localhost",
            "MASTER_PORT": str(self.port),
            "CUDA_VISIBLE_DEVICES": "",
        }
        self.run()

    def join(self):
        """Waits for all; one that fails takes the others down, as torchrun does."""
        waiting = {process.sentinel: process for process in self.processes}
        while waiting:
            for sentinel in multiprocessing.connection.wait(list(waiting), timeout=300) or pytest.fail("no end"):
                if waiting.pop(sentinel).exitcode:
                    for process in self.processes:
                        process.kill()
                    pytest.fail("a process failed")


class Counter:
    """What the language model of this process is given while it learns: sequences and tokens."""

    def __init__(self, model):
        self.model, self.sequences, self.tokens = model, 0, 0
        model.model.language_model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module, arguments, named):
        # What is compared before the first step has a gradient as well, in eval mode.
        if self.model.training and named["inputs_embeds"].requires_grad:
            self.sequences += 1
            self.tokens += named["inputs_embeds"].shape[1]


RUNS = {
    # Packs of several rows, unequal in number, and a last step that is shorter than the number of processes.
    "packs": {"validation": 0.2, "sample_steps": 3},
    # One row a sequence, so that sequences are rows.
    "rows": {"pack_tokens": 1, "pictures_per_step": 8, "epochs": 1},
    # Fewer pictures in a step than processes: some have nothing.
    "one": {"pictures_per_step": 1, "max_steps": 3, "epochs": 1},
    "cached": {"cache": "features", "cache_dtype": "float32", "augmentation": True, "views": 2},
    "spread": {"shard_language": True, "sample_steps": 3, "validation": 0.2},
}


class Runs:
    """The runs of `RUNS`, by one process or by several, and what each process counted."""

    def __init__(self, make_model, processor, captions: Path, folder: Path):
        self.make_model, self.processor, self.captions, self.folder = make_model, processor, captions, folder

    def go(self, world: int, name: str, output: str | None = None, data: Path | None = None, **changes):
        output = self.folder / (output or f"{name}-{world}")
        model = self.make_model()
        counter = Counter(model)
        options = {**RUNS.get(name, {}), **changes}
        if options.get("cache"):
            options["cache"] = self.folder / f"{options['cache']}-{world}"
        result = engine.train(
            model, data or self.captions, output, RECIPE, processor=self.processor, progress=False, **options
        )
        self.note(world, output.name, {"sequences": counter.sequences, "tokens": counter.tokens})
        return result

    def note(self, world: int, name: str, value):
        rank = os.environ.get("RANK", "0")
        (self.folder / f"{name}-{world}-{rank}.json").write_text(json.dumps(value))

    def noted(self, world: int, name: str) -> list:
        return [json.loads((self.folder / f"{name}-{world}-{rank}.json").read_text()) for rank in range(world)]

    def counted(self, world: int, name: str, what: str) -> list[int]:
        return [each[what] for each in self.noted(world, f"{name}-{world}")]


def with_broken(captions: Path, folder: Path, count: int) -> Path:
    """The same data with `count` pictures that cannot be decoded, from number 3 on."""
    folder.mkdir()
    broken = {f"{number}.png" for number in range(3, 3 + count)}
    for path in captions.parent.iterdir():
        (folder / path.name).write_bytes(b"broken" if path.name in broken else path.read_bytes())
    return folder / captions.name


def test_several_processes_share_what_one_does():
    in_a_fresh_process("test_several_processes_in_a_fresh_process")


@fresh_process
def test_several_processes_in_a_fresh_process(make_model, processor, captions, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "draw_learning_curve", lambda metrics, picture: None)
    monkeypatch.setattr(first_look, "OPENED", 1)  # else what is broken would be found before processes share it
    runs = Runs(make_model, processor, captions, tmp_path)
    broken = with_broken(captions, tmp_path / "broken", 1)
    worse = with_broken(captions, tmp_path / "worse", 5)

    def all_runs():
        world = distributed.init_processes().num_processes
        encoded = []
        encode = PictureEncoder.encode
        PictureEncoder.encode = lambda self, pixels: encoded.append(len(pixels)) or encode(self, pixels)
        for name in RUNS:
            encoded.clear()
            if name != "spread" or world == 2:
                result = runs.go(world, name)
                runs.note(world, f"encoded-{name}", sum(encoded))
        if world == 2:
            layer = result.model.model.language_model.layers[0].attention.dense.weight
            assert layer.to_local().numel() * 2 == layer.numel()
        bad = runs.go(world, "bad", data=broken).bad_pictures
        runs.note(world, "bad", [each.name for each in bad])
        # All processes must stop, though one alone meets the picture, or none of them meets too many.
        with pytest.raises(ValueError, match="on_bad_picture is `raise`"):
            runs.go(world, "raise", data=broken, pictures_per_step=8, on_bad_picture="raise")
        for cache in (None, "worse-features"):
            with pytest.raises(ValueError, match="5 of 8 pictures cannot be read"):
                runs.go(world, "worse", data=worse, pictures_per_step=8, cache=cache)
        report = engine.dry_run(make_model(), captions, RECIPE, processor=processor, pictures_per_step=8)
        runs.note(world, "dry", report)
        if world > 1:  # what another number of processes began
            runs.go(world, "packs", f"resumed-{world}", epochs=2)

    for world in (2, 3):
        Group(1, lambda world=world: runs.go(1, "packs", f"resumed-{world}", max_steps=2)).join()
        Group(world, all_runs).join()
    Group(1, all_runs).join()

    for world in (2, 3):
        for name in ("packs", "rows", "one", "cached", "bad", *(["spread"] if world == 2 else [])):
            whole = "packs" if name == "spread" else name
            one, several = tmp_path / f"{whole}-1", tmp_path / f"{name}-{world}"
            assert torch.allclose(weights(several), weights(one), atol=2e-6), name
            for number in ("loss", "eval_loss", "supervised_tokens_per_row"):
                ours, expected = dict(logged(several, number)), dict(logged(one, number))
                assert ours == pytest.approx(expected, rel=1e-5), (name, number)
        assert torch.allclose(weights(tmp_path / f"resumed-{world}"), weights(tmp_path / "packs-1"), atol=2e-6)
        shared(runs, world)
        left_behind(runs, world)
    # Without the fault that clipping shows, the step of a clipped gradient is the same in length but for its scale.
    assert logged(tmp_path / "rows-1", "grad_norm")[0][1] > RECIPE.max_grad_norm
    norms = [logged(tmp_path / f"rows-{world}", "grad_norm")[0][1] for world in (1, 2, 3)]
    assert norms == pytest.approx([norms[0]] * 3, rel=1e-5)


def shared(runs: Runs, world: int):
    """Each process did its share, and all together did what one does alone."""
    rows = [len(range(rank, PICTURES, world)) * ROWS // PICTURES for rank in range(world)]
    assert runs.counted(world, "rows", "sequences") == rows and sum(rows) == ROWS
    assert sum(runs.counted(world, "rows", "tokens")) == sum(runs.counted(1, "rows", "tokens"))
    assert max(runs.counted(world, "rows", "tokens")) < 0.7 * sum(runs.counted(1, "rows", "tokens"))
    assert runs.counted(world, "one", "sequences")[1:] == [0] * (world - 1)
    packs = runs.counted(world, "packs", "tokens")
    assert all(packs) and sum(packs) < 1.4 * sum(runs.counted(1, "packs", "tokens"))
    views = 2 * PICTURES
    assert sum(runs.noted(world, "encoded-cached")) == views == sum(runs.noted(1, "encoded-cached"))
    assert max(runs.noted(world, "encoded-cached")) == 2 * -(-PICTURES // world)
    dry = runs.noted(world, "dry")
    assert [each["rows"] for each in dry] == [ROWS] * world and len({each["loss"] for each in dry}) == 1


def left_behind(runs: Runs, world: int):
    """What is on the disk is there once, and knows of all processes."""
    names = [str(runs.folder / "broken" / "3.png")]
    assert runs.noted(world, "bad") == [names] * world
    (line,) = (runs.folder / f"bad-{world}" / "bad_pictures.jsonl").read_text().splitlines()
    assert json.loads(line)["picture"] == names[0]
    for name in ("packs", *(["spread"] if world == 2 else [])):
        output = runs.folder / f"{name}-{world}"
        samples = [json.loads(each) for each in (output / "samples.jsonl").read_text().splitlines()]
        alone = [json.loads(each) for each in (runs.folder / "packs-1" / "samples.jsonl").read_text().splitlines()]
        assert samples == alone and {each["step"] for each in samples} == {3, 4}
        states = {path.name for path in output.glob("checkpoint-4/rng_state*")}
        assert states == {f"rng_state_{rank}.pth" for rank in range(world)}
        assert [step for step, _ in logged(output, "loss")] == [1, 2, 3, 4]
        assert not list(output.glob(".*"))


def test_processes_outside_a_group_are_an_error(monkeypatch, make_model, processor, captions, tmp_path):
    distributed.init_processes()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="WORLD_SIZE is 2, but the process group has 1 member"):
        engine.train(make_model(), captions, tmp_path / "run", RECIPE, processor=processor)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "launcher",
    [
        ["torch.distributed.run", "--nproc_per_node", "2", "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"],
        [
            "accelerate.commands.launch",
            "--multi_gpu",
            "--num_processes",
            "2",
            "--main_process_port",
            "0",
        ],
    ],
    ids=["torchrun", "accelerate"],
)
def test_the_command_line_under_a_launcher(make_model, processor, captions, tmp_path, launcher):
    """`features` by two processes, by gloo as there is no GPU here (`--multi_gpu` is how accelerate is told to start
    several processes without MPI): what is printed is printed once."""
    make_model().save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    command = [sys.executable, "-m", *launcher, "-m", "jminigpt4.cli", "features", tmp_path / "model"]
    command += [tmp_path / "cache", captions]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        list(map(str, command)), env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == [f"8 pictures in {tmp_path / 'cache'}; 0 bad"]
    assert len(list((tmp_path / "cache").glob("features-*.safetensors"))) == 2


def test_killed_at_any_moment_ends_bit_equal():
    in_a_fresh_process("test_killed_in_a_fresh_process")


class Life:
    """A run in a process of its own, forked, so that nothing is imported again.

    Args:
        run: What to run, given the output folder.
        output: That folder.
        last: The operation on files in the output folder before which the process kills itself; `None`: none.
    """

    def __init__(self, run, output: Path, last: int | None = None):
        self.run, self.output, self.last = run, output, last
        context = multiprocessing.get_context("fork")
        self.operations = context.Value("q", 0)
        self.process = context.Process(target=self._live)
        self.process.start()
        self.process.join(300)

    def _live(self):
        sys.addaudithook(self._watch)
        self.run(self.output)

    def _watch(self, event: str, arguments: tuple):
        # Between two such operations nothing on the disk changes but the content of a file that is being written.
        if arguments and str(arguments[0]).startswith(str(self.output)):
            self.operations.value += 1
            if self.operations.value == self.last:
                os.kill(os.getpid(), signal.SIGKILL)


@fresh_process
def test_killed_in_a_fresh_process(make_model, processor, captions, tmp_path, monkeypatch):
    """Moments lie anywhere: while a run starts, between steps, and while a checkpoint is written or removed."""
    monkeypatch.setattr(engine, "draw_learning_curve", lambda metrics, picture: None)
    steps = 4 * KILLS + 4
    recipe = RECIPE.with_(epochs=steps, keep_checkpoints=1)

    def run(output: Path):
        engine.train(make_model(), captions, output, recipe, processor=processor, progress=False, max_steps=steps)

    whole = Life(run, tmp_path / "whole")
    assert whole.process.exitcode == 0
    four_steps = 4 * whole.operations.value // steps
    generator = random.Random(KILLS)
    for _ in range(KILLS):
        life = Life(run, tmp_path / "killed", generator.randint(1, four_steps))
        assert life.process.exitcode == -signal.SIGKILL, "the run was over before it could be killed"
    assert 1 < int(newest_checkpoint(tmp_path / "killed").name.partition("-")[2]) < steps
    assert Life(run, tmp_path / "killed").process.exitcode == 0
    assert torch.equal(weights(tmp_path / "killed"), weights(tmp_path / "whole"))
    losses = [logged(tmp_path / name, "loss") for name in ("killed", "whole")]
    assert losses[0] == losses[1] and len(losses[0]) == steps
    assert not list((tmp_path / "killed").glob(".*"))
