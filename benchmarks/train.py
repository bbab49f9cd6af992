"""Training: the article's recipe, Hugging Face's BLIP-2 and this package, side by side on the same rows.

    python benchmarks/train.py --quick          a language model of 65 million parameters, at most a minute
    python benchmarks/train.py                  the same, more repeats, eight questions a picture as well
    python benchmarks/train.py --true-scale     EVA ViT-g and a language model of 3.6 billion, bfloat16: 12 GB, minutes
                                                (--pictures 1 --kinds captions: the figures of docs/training.md)
    python benchmarks/train.py --processes 2    also: `train` by two processes, CPU time of each against one alone
    python benchmarks/train.py --workers 1      no race: `train` with pictures decoded ahead by a worker, and without
    python benchmarks/train.py --count          no race: operations at both scales, counted without computing: seconds

One step is forward and backward with only the projection learning. All contenders share one set of random weights and
take turns in one process; times are CPU seconds of the process, medians over the repeats. `operations` is the same
ratio of the floating point operations that torch counts, which no busy machine can blur. The last line is JSON:
`ratio` is the article's time over ours, `gradient_relative_error` ours against the article's, `processes` the CPU
time, rows and tokens of each process. With `--workers` it is `wall_ratio` and `cpu_ratio`, without workers over with
them: the time of a step, and the CPU time that the process which learns spends on it.
"""

import argparse
import itertools
import json
import math
import multiprocessing
import os
import random
import socket
import statistics
import tempfile
import time
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from small_models import FIFTIETH, small_config
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
)
from transformers.initialization import no_init_weights

from jminigpt4 import (
    DEMO,
    JMiniGPT4Config,
    JMiniGPT4ForConditionalGeneration,
    JMiniGPT4ImageProcessor,
    JMiniGPT4Processor,
)
from jminigpt4.train import Recipe, train
from jminigpt4.train.loss import PackLoss
from jminigpt4.train.operations import encoder_operations, language_operations
from jminigpt4.train.optimizers import orthogonalized
from jminigpt4.train.packing import IGNORED, EncodedGroup, EncodedRow, Packer

BOS, EOS, FIRST_WORD = 2, 3, 10
# Tokens of the article's prompt before and after the picture: "<s>ユーザー: <IMG>" and "</IMG><NL>システム: ".
BEFORE, AFTER = 7, 13
# Attention looks at a whole pack: two pictures with five captions lie together, those with eight questions alone.
PACK_TOKENS = 256


def make_config(true_scale: bool) -> JMiniGPT4Config:
    """EVA ViT-g, Q-Former and rinna's 3.6b, or the same proportions at a fiftieth of the size."""
    return JMiniGPT4Config() if true_scale else small_config(**FIFTIETH)


def make_model(config: JMiniGPT4Config, dtype: torch.dtype, device: str = "cpu") -> JMiniGPT4ForConditionalGeneration:
    """Random weights of the usual 0.02, made in their dtype; one block of a million numbers over and over: drawing
    billions takes longer than the race."""
    torch.set_default_dtype(dtype)
    with no_init_weights(), torch.device(device):
        model = JMiniGPT4ForConditionalGeneration(config)
    torch.set_default_dtype(torch.float32)
    # Of a generator of its own: what a model draws while it is made is drawn on its device.
    block = torch.randn(1_000_003, generator=torch.Generator().manual_seed(0)).mul_(0.02).to(device, dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim < 2:
                parameter.fill_("norm" in name and name.endswith("weight"))
            else:
                for part in parameter.view(-1).split(len(block)):
                    part.copy_(block[: len(part)])
    model.freeze()
    model.model.language_projection.float()
    return model.train()


class Float32Projection(torch.nn.Module):
    """A float32 projection in a model of another dtype, which Hugging Face's BLIP-2 does not cast for."""

    def __init__(self, layer: torch.nn.Linear):
        super().__init__()
        self.layer = layer

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.layer(features.float()).to(features.dtype)


def as_blip2(model: JMiniGPT4ForConditionalGeneration) -> Blip2ForConditionalGeneration:
    """Hugging Face's BLIP-2 around the same modules and weights."""
    ours = model.config
    config = Blip2Config(
        vision_config=ours.vision_config.to_dict(),
        qformer_config=ours.qformer_config.to_dict(),
        text_config=ours.text_config.to_dict(),
        num_query_tokens=ours.num_query_tokens,
        image_token_index=ours.image_token_id,
    )
    with torch.device("meta"):
        blip2: Any = Blip2ForConditionalGeneration(config)
    core = model.model
    blip2.vision_model, blip2.qformer, blip2.query_tokens = core.vision_model, core.qformer, core.query_tokens
    blip2.language_projection = Float32Projection(core.language_projection)
    blip2.language_model.gpt_neox = core.language_model
    blip2.language_model.lm_head = model.lm_head
    return blip2


def make_rows(kind: str, pictures: int, config: JMiniGPT4Config, seed: int) -> list[EncodedGroup]:
    """Rows of the article's format with lengths as STAIR's captions (5 a picture) or Visual Genome's answers (8)."""
    generator = random.Random(seed)
    words = config.text_config.vocab_size

    def some(least: int, most: int) -> list[int]:
        return [generator.randrange(FIRST_WORD, words) for _ in range(generator.randint(least, most))]

    before, after = [BOS, *some(BEFORE - 1, BEFORE - 1)], some(AFTER, AFTER)
    image = [config.image_token_id] * config.num_query_tokens
    groups = []
    for picture in range(pictures):
        rows = []
        for _ in range(5 if kind == "captions" else 8):
            question = some(6, 14) if kind == "questions" else []
            answer = [*(some(8, 20) if kind == "captions" else some(1, 6)), EOS]
            prompt = before + image + after[:4] + question + after[4:]
            rows.append(EncodedRow(prompt + answer, [IGNORED] * len(prompt) + answer))
        groups.append(EncodedGroup(tuple(rows), (picture,)))
    return groups


def padded(groups: list[EncodedGroup]) -> dict[str, torch.Tensor]:
    """The article's batch: one padded row per text, the picture again for each."""
    rows = [(row, group.pictures[0]) for group in groups for row in group.rows]
    length = max(len(row.input_ids) for row, _ in rows)
    batch = {
        "input_ids": [row.input_ids + [0] * (length - len(row.input_ids)) for row, _ in rows],
        "attention_mask": [[1] * len(row.input_ids) + [0] * (length - len(row.input_ids)) for row, _ in rows],
        "labels": [row.labels + [IGNORED] * (length - len(row.labels)) for row, _ in rows],
        "pictures": [picture for _, picture in rows],
    }
    return {name: torch.tensor(values) for name, values in batch.items()}


class Contenders:
    """The ways to take one step on the same rows; each returns the mean loss over supervised tokens."""

    def __init__(
        self, model: JMiniGPT4ForConditionalGeneration, groups: list[EncodedGroup], pack_tokens: int = PACK_TOKENS
    ):
        config = model.config
        size = config.vision_config.image_size
        self.model, self.blip2, self.loss = model, as_blip2(model), PackLoss(model)
        place = (model.device, model.model.vision_model.dtype)
        self.pixels = torch.randn(len(groups), 3, size, size, generator=torch.Generator().manual_seed(1)).to(*place)
        self.batch = {name: tensor.to(model.device) for name, tensor in padded(groups).items()}
        prefix = tuple(groups[0].rows[0].input_ids[:BEFORE])
        packs = Packer(config.image_token_id, config.num_query_tokens, pack_tokens, prefix).pack(groups)
        self.packs = [pack.to(model.device) for pack in packs]
        self.targets = sum(len(pack.targets) for pack in self.packs)
        with torch.no_grad():
            self.features = model.get_query_features(self.pixels)
            self.loss(self.packs[0], self.features)  # makes the constant prefix's keys and values, once for a run
        self.rows = len(self.batch["input_ids"])

    def _plain(self, model: torch.nn.Module) -> torch.Tensor:
        batch = dict(self.batch)
        loss = model(pixel_values=self.pixels[batch.pop("pictures")], **batch).loss
        loss.backward()
        return loss.detach()

    def article(self) -> torch.Tensor:
        """ViT, Q-Former and language model for every row, logits everywhere."""
        return self._plain(self.model)

    def hf_blip2(self) -> torch.Tensor:
        """The same by Hugging Face's Blip2ForConditionalGeneration around GPT-NeoX."""
        return self._plain(self.blip2)

    def _packed(self, features: torch.Tensor) -> torch.Tensor:
        total = torch.zeros((), device=features.device)
        for pack in self.packs:
            loss = self.loss(pack, features).sum() / self.targets
            loss.backward()
            total += loss.detach()
        return total

    def ours(self) -> torch.Tensor:
        """Cached query features, shared prefix, constant prefix as keys and values, logits at targets."""
        return self._packed(self.features)

    def ours_no_cache(self) -> torch.Tensor:
        """The same with every picture encoded once, as random crops need it."""
        with torch.no_grad():
            features = self.model.get_query_features(self.pixels)
        return self._packed(features)

    def gradient(self, step: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, int, int]:
        """Loss and projection gradient of a step, the most bytes that it held besides weights and inputs, and its
        floating point operations, counted by torch."""
        self.model.zero_grad(set_to_none=True)
        known = [*self.model.parameters(), *self.model.buffers(), self.pixels, self.features]
        with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as operations, LiveBytes(known) as live:
            loss = step()
        layer: Any = self.model.model.language_projection
        gradient = torch.cat([layer.weight.grad.flatten(), layer.bias.grad]).double()
        self.model.zero_grad(set_to_none=True)
        return loss, gradient, live.peak, operations.get_total_flops()


def attention_operations(query: torch.Size, key: torch.Size, *rest: Any, **options: Any) -> int:
    """Two products of matrices, `(batch, heads, length, size)`."""
    return 4 * math.prod(query) * key[-2]


def attention_backward_operations(gradient: torch.Size, query: torch.Size, key: torch.Size, *rest, **options) -> int:
    """Five of them."""
    return 10 * math.prod(query) * key[-2]


# How CPUs compute attention, which torch's counter of operations does not know by itself.
CPU_ATTENTION: dict[Any, Callable] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_operations,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward_operations,
}


def count_operations(config: JMiniGPT4Config, kind: str, pictures: int) -> dict[str, float]:
    """The article's operations over ours, our 1e12 operations a picture in the language model and in the encoder, and
    Muon's on the projection as a share of ours, counted on tensors without content. Left out: the projection, and
    attention to the seven constant tokens before the picture."""
    with torch.device("meta"):
        model = JMiniGPT4ForConditionalGeneration(config)
    model.freeze()
    groups = make_rows(kind, pictures, config, seed=0)
    prefix = tuple(groups[0].rows[0].input_ids[:BEFORE])
    packs = Packer(config.image_token_id, config.num_query_tokens, PACK_TOKENS, prefix).pack(groups)
    rows, length = padded(groups)["input_ids"].shape
    size = (config.vision_config.image_size,) * 2
    article = encoder_operations(model, rows, size) + language_operations(model, rows, length)
    ours = sum(language_operations(model, 1, len(pack.input_ids), pack.supervised.unique().tolist()) for pack in packs)
    encoder = encoder_operations(model, pictures, size)
    weight = model.model.language_projection.weight
    with FlopCounterMode(display=False) as newton_schulz:
        orthogonalized(torch.empty_like(weight))
    return {
        "operations_ratio": article / ours,
        "operations_ratio_no_cache": article / (ours + encoder),
        "tera_operations_a_picture": ours / pictures / 1e12,
        "encoder_tera_operations_a_picture": encoder / pictures / 1e12,
        "muon_share": newton_schulz.get_total_flops() / ours,
    }


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that are made while it is active; `peak` is the most alive at one time.

    Args:
        known: Tensors that were there before, which do not count.
    """

    def __init__(self, known: Iterable[torch.Tensor]):
        super().__init__()
        self.live = self.peak = 0
        self._known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self._counted: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage):
        key, size = storage.data_ptr(), storage.nbytes()
        if not size or key in self._known or key in self._counted:
            return
        self._counted.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int):
        self._counted.discard(key)
        self.live -= size


def race(
    contenders: Contenders, names: list[str], repeats: int, clock: Callable[[], float] = time.process_time
) -> dict[str, dict[str, float]]:
    """All contenders in turn, `repeats` times, after one round that counts memory; its times count only when there are
    no repeats. The first of `names` is what the others are compared with. `clock` tells seconds."""
    steps = {name: getattr(contenders, name) for name in names}
    expected_loss, expected = None, None
    results: dict[str, dict[str, float]] = {}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for name, step in steps.items():
        start = clock()
        loss, gradient, peak, operations = contenders.gradient(step)
        if not repeats:
            seconds[name].append(clock() - start)
        expected_loss, expected = (loss, gradient) if expected is None else (expected_loss, expected)
        results[name] = {
            "loss": loss.item(),
            "loss_relative_error": abs(loss - expected_loss).item() / expected_loss.item(),
            "gradient_relative_error": ((gradient - expected).norm() / expected.norm()).item(),
            "activation_gb": peak / 1e9,
            "operations": operations,
        }
    for _ in range(repeats):
        for name, step in steps.items():
            start = clock()
            step()
            seconds[name].append(clock() - start)
    for name in names:
        results[name]["seconds"] = statistics.median(seconds[name])
        ratios = [first / own for first, own in zip(seconds[names[0]], seconds[name], strict=True)]
        results[name] |= {"ratio": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
        results[name]["operations_ratio"] = results[names[0]]["operations"] / results[name]["operations"]
    return results


def train_share(folder: Path, steps: int, results: Any, environment: dict[str, str]):
    """Trains as one process of those in `environment`, and puts its CPU seconds, rows and tokens into `results`. No
    cache: pictures are encoded as they come, so that all work of a step is there to be shared."""
    os.environ |= environment
    torch.set_num_threads(1)
    demo: Any = JMiniGPT4Processor.from_pretrained(DEMO)
    image_processor = JMiniGPT4ImageProcessor(size={"height": 224, "width": 224})
    processor = JMiniGPT4Processor(
        image_processor, demo.tokenizer, num_query_tokens=32, chat_template=demo.chat_template
    )
    config: Any = make_config(true_scale=False)
    config.text_config.vocab_size, config.image_token_id = len(demo.tokenizer), processor.image_token_id
    model = make_model(config, torch.float32)
    counted = {"rows": 0, "tokens": 0}
    encoded: list[float] = []
    learnt: list[float] = []

    def count(module: Any, arguments: tuple, named: dict[str, Any]):
        if named["inputs_embeds"].requires_grad:
            counted["rows"] += 1  # `pack_tokens=1`: a sequence is a row
            counted["tokens"] += named["inputs_embeds"].shape[1]

    model.model.language_model.register_forward_pre_hook(count, with_kwargs=True)
    model.model.vision_model.register_forward_pre_hook(lambda *given: encoded.append(time.process_time()))
    weight: Any = model.model.language_projection.weight
    weight.register_post_accumulate_grad_hook(lambda *given: learnt.append(time.process_time()))
    recipe = Recipe(pictures_per_step=8, steps_per_epoch=steps, epochs=1, pack_tokens=1, warmup_steps=1)
    output = folder / f"run-{environment['WORLD_SIZE']}"
    train(model, folder / "captions.jsonl", output, recipe, processor=processor, progress=False, workers=0)
    # The first pictures are encoded to look at the loss before anything is learnt.
    results.put((int(environment["RANK"]), {"cpu_seconds": learnt[-1] - encoded[1], **counted}))


def share(world: int, steps: int) -> list[dict[str, float]]:
    """CPU seconds, rows and tokens of each of `world` processes: `steps` steps of 8 pictures, 3 captions each."""
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as name, socket.socket() as free:
        folder = Path(name)
        generator = np.random.default_rng(0)
        lines = []
        for picture in range(8):
            pixels = generator.integers(0, 255, (224, 224, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{picture}.png")
            lines += [
                {"image": f"{picture}.png", "caption": f"赤い車が{picture}台停まっています{row}"} for row in range(3)
            ]
        (folder / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
        free.close()
        results = context.Queue()
        processes = []
        for rank in range(world):
            environment = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
            environment |= {"LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
            environment |= {"CUDA_VISIBLE_DEVICES": ""}
            processes.append(context.Process(target=train_share, args=(folder, steps, results, environment)))
            processes[-1].start()
        measured = dict(results.get(timeout=3600) for _ in processes)
        for process in processes:
            process.join()
    return [measured[rank] for rank in range(world)]


def compare_processes(world: int, steps: int) -> dict[str, Any]:
    """What each of several processes spends on the same steps, as a share of what one spends alone."""
    (alone,) = share(1, steps)
    together = share(world, steps)
    shares = [each["cpu_seconds"] / alone["cpu_seconds"] for each in together]
    print(f"one process: {alone['cpu_seconds']:.2f} CPU s, {alone['rows']} rows, {alone['tokens']} tokens")
    for rank, (each, part) in enumerate(zip(together, shares, strict=True)):
        print(
            f"process {rank} of {world}: {each['cpu_seconds']:.2f} CPU s ({part:.2f}), {each['rows']} rows, "
            f"{each['tokens']} tokens"
        )
    return {"alone": alone, "each": together, "cpu_shares": shares}


def compare_workers(workers: int, repeats: int) -> dict[str, list[float]]:
    """A step of `train` on the checkpoint of `demo/`, without a cache, alone and with workers that decode ahead, in
    turn: median, least and most of wall and CPU seconds without over with them. A step is 4 photographs of 2
    megapixels with 5 captions each: decoding them takes about as long as learning from them."""
    model = JMiniGPT4ForConditionalGeneration.from_pretrained(DEMO, dtype=torch.float32)
    processor: Any = JMiniGPT4Processor.from_pretrained(DEMO)
    ratios: dict[str, list[float]] = {"wall": [], "cpu": []}
    with tempfile.TemporaryDirectory() as name:
        rows = write_photographs(Path(name), 4)
        for repeat in range(repeats):
            counts = (0, workers) if repeat % 2 else (workers, 0)
            spent = {each: seconds_of_step(model, processor, rows, each) for each in counts}
            for kind, alone, helped in zip(ratios, spent[0], spent[workers], strict=True):
                ratios[kind].append(alone / helped)
            print(
                f"repeat {repeat + 1}: wall {spent[0][0]:.3f} s a step, with workers {spent[workers][0]:.3f}; CPU of "
                f"the process that learns {spent[0][1]:.3f}, with workers {spent[workers][1]:.3f}",
                flush=True,
            )
    return {f"{kind}_ratio": [statistics.median(each), min(each), max(each)] for kind, each in ratios.items()}


def write_photographs(folder: Path, count: int) -> Path:
    """JPEG files of 1600 x 1200 with the detail of photographs, and five captions each."""
    generator, lines = np.random.default_rng(0), []
    for number in range(count):
        coarse = generator.integers(0, 255, (300, 400, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((1600, 1200), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg")
        lines += [{"image": f"{number}.jpg", "caption": f"赤い車が{number}台停まっています{row}"} for row in range(5)]
    (folder / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder / "captions.jsonl"


def seconds_of_step(model: Any, processor: Any, rows: Path, workers: int, steps: int = 8) -> tuple[float, float]:
    """Median wall seconds and CPU seconds of this process from one step's gradient to the next one's. The first steps
    are left out: they meet what was decoded while the run began."""
    learnt: list[tuple[float, float]] = []
    weight: Any = model.model.language_projection.weight
    recipe = Recipe(pictures_per_step=4, steps_per_epoch=steps, epochs=1, warmup_steps=1)
    hook = weight.register_post_accumulate_grad_hook(
        lambda *given: learnt.append((time.perf_counter(), time.process_time()))
    )
    with tempfile.TemporaryDirectory() as output:
        train(model, rows, output, recipe, processor=processor, progress=False, workers=workers)
    hook.remove()
    pairs = list(itertools.pairwise(learnt))[3:]
    wall, cpu = (statistics.median(after[kind] - before[kind] for before, after in pairs) for kind in (0, 1))
    return wall, cpu


def report(kind: str, results: dict[str, dict[str, float]], contenders: Contenders):
    largest = max(sum(len(pack.input_ids) for pack in contenders.packs), 1)
    print(f"\n{kind}: {contenders.rows} rows, {contenders.batch['input_ids'].numel()} tokens padded, {largest} packed")
    print(f"{'':14}{'CPU s':>8}{'ratio':>7}{'spread':>13}{'operations':>12}{'rows/GB':>9}{'loss':>10}{'gradient':>10}")
    for name, result in results.items():
        rows = contenders.rows if "ours" not in name else contenders.rows / len(contenders.packs)
        result["rows_per_gb"] = rows / result["activation_gb"]
        print(
            f"{name:14}{result['seconds']:8.2f}{result['ratio']:7.2f}"
            f"{result['least']:8.2f}-{result['most']:4.2f}{result['operations_ratio']:12.2f}"
            f"{result['rows_per_gb']:9.1f}{result['loss_relative_error']:10.1e}{result['gradient_relative_error']:10.1e}"
        )


def count(kinds: list[str], pictures: int):
    summary: dict[str, dict] = {}
    for scale, kind in itertools.product(("reduced", "true"), kinds):
        ratios = count_operations(make_config(scale == "true"), kind, pictures)
        print(f"{scale} scale, {kind}: " + ", ".join(f"{name} {ratio:.3g}" for name, ratio in ratios.items()))
        summary.setdefault(scale, {})[kind] = ratios
    print(json.dumps(summary))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="captions only, few repeats: at most a minute")
    parser.add_argument("--true-scale", action="store_true", help="EVA ViT-g and 3.6 billion parameters in bfloat16")
    parser.add_argument("--pictures", type=int, default=2, help="pictures in a step")
    parser.add_argument("--repeats", type=int, help="timed rounds; 0: the round that counts memory is timed")
    parser.add_argument("--kinds", nargs="+", choices=["captions", "questions"], help="what to race on")
    parser.add_argument("--processes", type=int, help="also train with so many processes, each against one alone")
    parser.add_argument("--workers", type=int, help="no race: steps with so many workers that decode ahead, and alone")
    parser.add_argument("--count", action="store_true", help="count operations at both scales and compute nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.count:
        return count(options.kinds or ["captions", "questions"], options.pictures)
    if options.workers:
        return print(json.dumps(compare_workers(options.workers, 3 if options.quick else 7)))
    # Before all else: autograd cannot be used in a fork of a process that has used it.
    shared = compare_processes(options.processes, 2 if options.quick else 5) if options.processes else None
    usual = 3 if options.quick else 0 if options.true_scale else 7
    repeats = usual if options.repeats is None else options.repeats
    config = make_config(options.true_scale)
    dtype = torch.bfloat16 if options.true_scale else torch.float32
    model = make_model(config, dtype)
    parameters = sum(each.numel() for each in model.model.language_model.parameters())
    print(f"language model: {parameters / 1e6:.0f} million parameters, {str(dtype).removeprefix('torch.')}")
    names = ["article", "hf_blip2", "ours", "ours_no_cache"]
    summary = {"language_model_parameters": parameters, "dtype": str(dtype).removeprefix("torch.")}
    for kind in options.kinds or (["captions"] if options.quick else ["captions", "questions"]):
        contenders = Contenders(model, make_rows(kind, options.pictures, config, seed=0))
        results = race(contenders, names, repeats)
        report(kind, results, contenders)
        summary[kind] = {
            "ratio": results["ours"]["ratio"],
            "ratio_spread": [results["ours"]["least"], results["ours"]["most"]],
            "ratio_no_cache": results["ours_no_cache"]["ratio"],
            "ratio_no_cache_spread": [results["ours_no_cache"]["least"], results["ours_no_cache"]["most"]],
            "operations_ratio": results["ours"]["operations_ratio"],
            "operations_ratio_no_cache": results["ours_no_cache"]["operations_ratio"],
            "ratio_to_hf_blip2": results["hf_blip2"]["seconds"] / results["ours"]["seconds"],
            "gradient_relative_error": results["ours"]["gradient_relative_error"],
            "rows_per_gb_ratio": results["ours"]["rows_per_gb"] / results["article"]["rows_per_gb"],
        }
    kinds = [summary[kind] for kind in ("captions", "questions") if kind in summary]
    summary["ratio"] = math.prod(each["ratio"] for each in kinds) ** (1 / len(kinds))
    summary["gradient_relative_error"] = max(each["gradient_relative_error"] for each in kinds)
    if shared:
        summary["processes"] = shared
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
