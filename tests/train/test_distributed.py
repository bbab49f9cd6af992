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
import traceback
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

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
    """What the language model of this process is given: sequences and tokens while it learns, tokens of validation,
    and how often it answers."""

    def __init__(self, model):
        self.model, self.counts = model, {"sequences": 0, "tokens": 0, "validated": 0, "answered": 0}
        model.model.language_model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module, arguments, named):
        length = named["inputs_embeds"].shape[1]
        callers = {frame.name for frame in traceback.extract_stack()}
        # What is compared before the first step has a gradient as well, in eval mode.
        if self.model.training and named["inputs_embeds"].requires_grad:
            self.counts["sequences"] += 1
            self.counts["tokens"] += length
        elif "evaluate" in callers:
            self.counts["validated"] += length
        elif "answers" in callers:
            self.counts["answered"] += 1


RUNS = {
    # Packs of several rows, unequal in number, and a last step that is shorter than the number of processes.
    "packs": {"validation": 0.2, "sample_steps": 3},
    # One row a sequence, so that sequences are rows.
    "rows": {"pack_tokens": 1, "pictures_per_step": 8, "epochs": 1},
    # Fewer pictures in a step than processes: some have nothing.
    "one": {"pictures_per_step": 1, "max_steps": 3, "epochs": 1},
    "cached": {"cache": "features", "cache_dtype": "float32", "augmentation": True, "views": 2},
    # Five pictures for validation, three to learn from.
    "validated": {"validation": 0.5, "max_steps": 1, "epochs": 1},
    # A shard is two pictures, and a step reaches over two or three windows of one.
    "streamed": {"window_shards": 1, "steps_per_epoch": 3},
    "spread": {"shard_language": True, "sample_steps": 3, "validation": 0.2},
}


def in_shards(captions: Path) -> dict:
    """The same data as a stream of four shards."""
    lines = captions.read_text(encoding="utf-8").splitlines(keepends=True)
    for shard in range(4):
        content = "".join(lines[6 * shard : 6 * shard + 6])
        (captions.parent / f"shard-{shard}.jsonl").write_text(content, encoding="utf-8")
    return {"path": str(captions.parent / "shard-{0..3}.jsonl"), "stream": True, "name": "captions"}


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
        data = data or (in_shards(self.captions) if name == "streamed" else self.captions)
        result = engine.train(model, data, output, RECIPE, processor=self.processor, progress=False, **options)
        self.note(world, output.name, counter.counts)
        return result

    def note(self, world: int, name: str, value):
        rank = os.environ.get("RANK", "0")
        (self.folder / f"{name}-{world}-{rank}.json").write_text(json.dumps(value))

    def noted(self, world: int, name: str) -> list:
        return [json.loads((self.folder / f"{name}-{world}-{rank}.json").read_text()) for rank in range(world)]

    def counted(self, world: int, name: str, what: str) -> list[int]:
        return [each[what] for each in self.noted(world, f"{name}-{world}")]


def pictures_in(pixels) -> int:
    """Without the zeros that fill up the last batch of a cache."""
    return int(pixels.flatten(1).any(1).sum())


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
        PictureEncoder.encode = lambda self, pixels: encoded.append(pictures_in(pixels)) or encode(self, pixels)
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
            runs.go(world, "streamed", f"streamed-resumed-{world}")

    for world in (2, 3):
        Group(1, lambda world=world: runs.go(1, "packs", f"resumed-{world}", max_steps=2)).join()
        Group(1, lambda world=world: runs.go(1, "streamed", f"streamed-resumed-{world}", max_steps=4)).join()
        Group(world, all_runs).join()
    Group(1, all_runs).join()

    for world in (2, 3):
        for name in (
            "packs",
            "rows",
            "one",
            "cached",
            "validated",
            "streamed",
            "bad",
            *(["spread"] if world == 2 else []),
        ):
            whole = "packs" if name == "spread" else name
            one, several = tmp_path / f"{whole}-1", tmp_path / f"{name}-{world}"
            assert torch.allclose(weights(several), weights(one), atol=2e-6), name
            for number in ("loss", "eval_loss", "supervised_tokens_per_row"):
                ours, expected = dict(logged(several, number)), dict(logged(one, number))
                assert ours == pytest.approx(expected, rel=1e-5), (name, number)
        for name, whole in (("resumed", "packs-1"), ("streamed-resumed", "streamed-1")):
            assert torch.allclose(weights(tmp_path / f"{name}-{world}"), weights(tmp_path / whole), atol=2e-6)
        ledgers = [(tmp_path / name / "stream.jsonl").read_text() for name in
                   ("streamed-1", f"streamed-{world}", f"streamed-resumed-{world}")]  # fmt: skip
        assert ledgers[0] == ledgers[1] == ledgers[2] and ledgers[0].count("\n") == 15
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
    # Nobody validates for nothing, and one process alone answers.
    (alone,), validated = (runs.counted(each, "validated", "validated") for each in (1, world))
    assert all(validated) and sum(validated) < 1.3 * alone and max(validated) < 0.8 * alone
    answered = runs.counted(world, "packs", "answered")
    assert answered == [*runs.counted(1, "packs", "answered"), *[0] * (world - 1)] and answered[0]
    # Half of the steps are left to those who go on, and of these each does its share.
    resumed, whole = (runs.counted(world, name, "tokens") for name in ("resumed", "packs"))
    assert all(resumed) and sum(resumed) < 0.7 * sum(whole)
    views = 2 * PICTURES
    assert sum(runs.noted(world, "encoded-cached")) == views == sum(runs.noted(1, "encoded-cached"))
    assert max(runs.noted(world, "encoded-cached")) == 2 * -(-PICTURES // world)
    if world == 2:  # idle passes, with which both come to the same number, are empty pictures
        spread, idle = runs.counted(2, "spread", "tokens"), runs.counted(2, "spread", "sequences")
        assert idle[0] == idle[1] and sum(packs) <= sum(spread) < 1.3 * sum(packs)
    for name in ("packs", "rows", "one", "cached", "streamed", "resumed"):
        assert_metered(runs, world, name)
    dry = runs.noted(world, "dry")
    assert [each["rows"] for each in dry] == [ROWS] * world and len({each["loss"] for each in dry}) == 1


def assert_metered(runs: Runs, world: int, name: str):
    """The log counts what the language models were given, and its shares are means over the processes."""
    output = runs.folder / f"{name}-{world}"
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    whole = [line for line in lines if "train_runtime" in line][-1]
    shares = [value for key, value in whole.items() if key.startswith("time/")]
    assert len(shares) == 5 and sum(shares) == pytest.approx(1) and min(shares) >= 0
    assert whole["packing_efficiency"] == 1.0 and whole["row_tokens_per_token"] > 1.0 and whole["mfu"] > 0
    tokens = sum(runs.counted(world, name, "tokens"))
    seconds = tokens / whole["tokens_per_second"]
    assert seconds == pytest.approx(whole["train_runtime"], rel=0.5)
    if name == "rows":
        alone = [json.loads(line) for line in (runs.folder / "rows-1" / "metrics.jsonl").read_text().splitlines()]
        assert whole["total_flos"] == alone[-1]["total_flos"] > 0


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


PARTS = {
    "everything": {"learn": ["projection", "qformer", "vision", "language"], "validation": 0.2, "sample_steps": 3},
    # The second process has no picture, and there is no projection in what is exchanged.
    "alone": {"learn": ["qformer"], "pictures_per_step": 1, "max_steps": 3, "epochs": 1},
    "spread": {"learn": ["projection", "qformer"], "shard_language": True},
}


def test_two_processes_teach_every_part_what_one_does():
    in_a_fresh_process("test_parts_in_a_fresh_process")


@fresh_process
def test_parts_in_a_fresh_process(make_model, processor, captions, tmp_path, monkeypatch):
    """Dropout is drawn by each process for itself, so there is none here."""
    monkeypatch.setattr(engine, "draw_learning_curve", lambda metrics, picture: None)

    def model():
        made = make_model("llama")
        for layer in made.modules():
            if isinstance(layer, torch.nn.Dropout):
                layer.p = 0.0
            if hasattr(layer, "attention_dropout") and not isinstance(layer.attention_dropout, torch.nn.Module):
                layer.attention_dropout = 0.0
        return made

    def all_runs():
        world = distributed.init_processes().num_processes
        for name, options in PARTS.items():
            options = {**options, "shard_language": world > 1} if name == "spread" else options
            output = tmp_path / f"{name}-{world}"
            engine.train(model(), captions, output, RECIPE, processor=processor, progress=False, **options)

    for world in (1, 2):
        Group(world, all_runs).join()
    for name in PARTS:
        folders = [tmp_path / f"{name}-{world}" for world in (1, 2)]
        for number in ("loss", "eval_loss", "grad_norm"):
            ours, expected = (dict(logged(folder, number)) for folder in folders)
            assert ours == pytest.approx(expected, rel=1e-4), (name, number)
        one, two = (load_file(folder / "trained_parts.safetensors") for folder in folders)
        assert one.keys() == two.keys()
        # AdamW makes whole steps of what is only rounding, such as the gradient of a key's bias.
        far = sum(int(((one[key] - two[key]).abs() > 1e-5).sum()) for key in one)
        assert far < 0.02 * sum(tensor.numel() for tensor in one.values()), name


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
    """`features` and `train` by two processes, by gloo as there is no GPU here (`--multi_gpu` is how accelerate is
    told to start several processes without MPI): each does its share, and what is printed is printed once."""
    make_model().save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    (tmp_path / "verbs.py").write_text(VERBS)
    # One row a sequence, so that sequences are rows; the second step is shorter than the first.
    settings = ["augmentation=false", "steps_per_epoch=null", "epochs=1", "pictures_per_step=5", "pack_tokens=1"]
    # Without samples, for which the first process alone would encode pictures.
    settings += ["warmup_steps=1", "max_grad_norm=0.01", "log_steps=1", "sample_steps=null"]
    options = [part for setting in settings for part in ("--set", setting)]
    verbs = [
        ["features", tmp_path / "model", tmp_path / "cache", captions, *options],
        ["train", tmp_path / "model", captions, "--cache", tmp_path / "cache", "--output", tmp_path / "run", *options],
    ]
    command = [sys.executable, "-m", *launcher, tmp_path / "verbs.py", tmp_path]
    command += [json.dumps([list(map(str, verb)) for verb in verbs])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        list(map(str, command)), env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = [line for line in done.stdout.splitlines() if not line.startswith(("Time: ", "Use: "))]
    assert said[0] == f"8 pictures in {tmp_path / 'cache'}; 0 bad"
    assert said[1].startswith("8 pictures: 2 steps of 5, ") and said[2].startswith("2 steps, loss ")
    assert len(said) == 3 and len(done.stdout.splitlines()) == 5
    assert len(list((tmp_path / "cache").glob("block-*.safetensors"))) == 2
    counted = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert [each["rows"] for each in counted] == [
        15,
        9,
    ]  # of five pictures and then three, the first and third are 0's
    assert [each["encoded"] for each in counted] == [4, 4]
    assert all(each["tokens"] > 5 * each["rows"] for each in counted)
    rates = dict(logged(tmp_path / "run", "tokens_per_second"))
    assert set(rates) >= {1, 2}


VERBS = """
import json
import os
import sys
from pathlib import Path

from jminigpt4 import cli
from jminigpt4.train.features import PictureEncoder
from jminigpt4.train.trainer import ProjectionTrainer

counts = {"rows": 0, "tokens": 0, "encoded": 0}
training_step, encode = ProjectionTrainer.training_step, PictureEncoder.encode


def count(module, given, named):
    counts["rows"] += 1
    counts["tokens"] += named["inputs_embeds"].shape[1]


def counting(self, *given):
    handle = self.pack_loss.model.model.language_model.register_forward_pre_hook(count, with_kwargs=True)
    loss = training_step(self, *given)
    handle.remove()
    return loss


def encoding(self, pixels):
    counts["encoded"] += int(pixels.flatten(1).any(1).sum())  # a cache's last batch is filled up with zeros
    return encode(self, pixels)


ProjectionTrainer.training_step, PictureEncoder.encode = counting, encoding
for verb in json.loads(sys.argv[2]):
    cli.app(verb, standalone_mode=False)
Path(sys.argv[1], f"{os.environ['RANK']}.json").write_text(json.dumps(counts))
"""


@pytest.mark.parametrize("data", ["file", "stream"])
def test_killed_at_any_moment_ends_bit_equal(data):
    in_a_fresh_process(f"test_killed_in_a_fresh_process[{data}]")


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
        self.own = os.getpid()  # what it forks ends with it
        sys.addaudithook(self._watch)
        self.run(self.output)

    def _watch(self, event: str, arguments: tuple):
        # Between two such operations nothing on the disk changes but the content of a file that is being written.
        if arguments and str(arguments[0]).startswith(str(self.output)):
            with self.operations.get_lock():  # a stream's windows are made by another process
                self.operations.value += 1
                if self.operations.value == self.last:
                    os.kill(self.own, signal.SIGKILL)


@fresh_process
@pytest.mark.parametrize("data", ["file", "stream"])
def test_killed_in_a_fresh_process(data, make_model, processor, captions, tmp_path, monkeypatch):
    """Moments lie anywhere: while a run starts, between steps, and while a checkpoint is written or removed."""
    monkeypatch.setattr(engine, "draw_learning_curve", lambda metrics, picture: None)
    steps = 4 * KILLS + 4
    recipe = RECIPE.with_(epochs=steps, keep_checkpoints=1, window_shards=2)
    source = in_shards(captions) if data == "stream" else captions

    def run(output: Path):
        engine.train(make_model(), source, output, recipe, processor=processor, progress=False, max_steps=steps)

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
    assert not [*(tmp_path / "killed").glob(".*"), *(tmp_path / "killed").glob("stream-*")]
    if data == "stream":
        assert (tmp_path / "killed" / "stream.jsonl").read_text() == (tmp_path / "whole" / "stream.jsonl").read_text()
