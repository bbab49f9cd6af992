"""Training: CPU time to the article's loss, over three seeds in two settings.

    python benchmarks/train_learning.py --quick     the drawings, one seed, one rate: a minute
    python benchmarks/train_learning.py             both settings, three seeds: six minutes of CPU time
    python benchmarks/train_learning.py --settings scenes

The article's way is (picture, text) rows in random order, image encoder, Q-Former and language model computed for
each, padded, and AdamW. The validation loss at the end of its training is the goal; its rate is the best of three with
seed 0. Ours trains pictures with all their rows in packs, from a feature cache that it pays for, with Muon, and a
schedule of half the steps. Ratios are the article's CPU time and steps over ours when ours first has that
loss; validation is counted for neither. Only the projection learns; steps of both hold equally many rows.

The article's training runs here on stored query features; what its encoder would cost is added: the number of steps
times the median of encoding the pictures of some.

scenes      a small language model, taught the wording beforehand, and a random encoder that looks at drawings of
            scenes; looking is as large a share of a row as at true scale
drawings    the checkpoint of `demo/` with a fresh projection; emoji of nine artists (drawings.webp, drawings.tsv),
            asked for name and kind; held out are drawings that no step shows. Here looking is most of a row

The last line is JSON: `time_ratio` and `steps_ratio` of each setting, median, least and most over the seeds; 0 where
the loss was never reached.
"""

import argparse
import itertools
import json
import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from transformers import Blip2QFormerConfig, Blip2VisionConfig, GPTNeoXConfig

from jminigpt4 import JMiniGPT4Config, JMiniGPT4ForConditionalGeneration, JMiniGPT4Processor
from jminigpt4.train.loss import PackLoss
from jminigpt4.train.optimizers import OPTIMIZERS
from jminigpt4.train.packing import IGNORED, EncodedGroup, EncodedRow, Packer
from jminigpt4.train.recipe import Recipe

HERE = Path(__file__).parent

BOS, EOS, IMAGE, QUERIES = 2, 3, 95, 16
BEFORE, AFTER = [BOS, 10, 11, 12, 13, 14, 15], list(range(16, 29))
# Words of a scene: colour, shape, place, ground.
WORDS = [list(range(30, 38)), list(range(38, 44)), list(range(44, 48)), list(range(48, 56))]
# Captions: a number is the scene's word of that kind, negative ones are words of the sentence.
CAPTIONS = [(0, -60, 1), (2, -61, 0, -60, 1, -62), (3, -63, 1), (0, -64, 3, -63), (1, -65, 2, -61, -66)]
COLOURS = [0xFF0000, 0x0000FF, 0x00A000, 0xFFFF00, 0x000000, 0xFFFFFF, 0xFF00FF, 0x00FFFF]
GROUNDS = [0x282828, 0xDCDCDC, 0x5A3C14, 0x145A3C, 0x3C145A, 0xC8965A, 0x5AC896, 0x965AC8]
SIZE = 112

Scene = tuple[int, ...]


def make_model() -> JMiniGPT4ForConditionalGeneration:
    """Costs in about the real proportion: looking at a picture takes a quarter of an article's row."""
    torch.manual_seed(0)
    vision = Blip2VisionConfig(
        hidden_size=128, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4, image_size=SIZE,
        patch_size=14, initializer_range=0.1,
    )  # fmt: skip
    qformer = Blip2QFormerConfig(
        hidden_size=96, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4, encoder_hidden_size=128,
        initializer_range=0.2,
    )  # fmt: skip
    text = GPTNeoXConfig(
        vocab_size=96, hidden_size=128, num_hidden_layers=4, num_attention_heads=4, intermediate_size=512,
        max_position_embeddings=128, use_parallel_residual=False, bos_token_id=BOS, eos_token_id=EOS, pad_token_id=0,
    )  # fmt: skip
    config = JMiniGPT4Config(
        vision_config=vision, qformer_config=qformer, text_config=text, num_query_tokens=QUERIES,
        image_token_id=IMAGE, initializer_range=1.0,
    )  # fmt: skip
    return JMiniGPT4ForConditionalGeneration(config)


def caption(scene: Scene, template: tuple[int, ...]) -> list[int]:
    return [*(WORDS[part][scene[part]] if part >= 0 else -part for part in template), EOS]


def row(scene: Scene, template: tuple[int, ...], picture: list[int]) -> EncodedRow:
    prompt, answer = [*BEFORE, *picture, *AFTER], caption(scene, template)
    return EncodedRow(prompt + answer, [IGNORED] * len(prompt) + answer)


def padded(rows: list[EncodedRow]) -> dict[str, torch.Tensor]:
    length = max(len(each.input_ids) for each in rows)
    ids = [each.input_ids + [0] * (length - len(each.input_ids)) for each in rows]
    labels = [each.labels + [IGNORED] * (length - len(each.labels)) for each in rows]
    mask = [[1] * len(each.input_ids) + [0] * (length - len(each.input_ids)) for each in rows]
    return {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels), "attention_mask": torch.tensor(mask)}


def teach_language(model: JMiniGPT4ForConditionalGeneration, steps: int = 250) -> float:
    """The language model learns to say what the words in the picture's place say; returns its last loss."""
    generator = random.Random(0)
    parameters = [*model.model.language_model.parameters(), *model.lm_head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=3e-3)
    losses: list[float] = []
    for step in range(steps):
        rows = []
        for _ in range(32):
            scene = tuple(generator.randrange(len(kind)) for kind in WORDS)
            words = [WORDS[kind][value] for kind, value in enumerate(scene)]
            rows.append(row(scene, generator.choice(CAPTIONS), [generator.choice(words) for _ in range(QUERIES)]))
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, (step + 1) / 30, (steps - step) / steps * 1.5)
        loss = model(**padded(rows)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    return statistics.mean(losses[-10:])


def rgb(number: int) -> torch.Tensor:
    return torch.tensor([number >> 16, number >> 8 & 255, number & 255], dtype=torch.float32)


def draw(scene: Scene) -> torch.Tensor:
    """A drawing of a scene, `(3, size, size)`: a figure of its colour on its ground, at its place."""
    colour, shape, place, ground = scene
    picture = rgb(GROUNDS[ground])[:, None, None].repeat(1, SIZE, SIZE)
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    y, x = (y - (28, 84)[place // 2]) / 26, (x - (28, 84)[place % 2]) / 26
    r = (x**2 + y**2).sqrt()
    figure = [
        r < 1, (x.abs() < 0.9) & (y.abs() < 0.9), (y < 0.8) & (y > 2 * x.abs() - 1), (r < 1) & (r > 0.6),
        (x.abs() < 0.3) | ((y.abs() < 0.3) & (x.abs() < 1)), x.abs() + y.abs() < 1,
    ][shape] & (x.abs() < 1) & (y.abs() < 1)  # fmt: skip
    picture[:, figure] = rgb(COLOURS[colour])[:, None]
    return picture / 127.5 - 1


@dataclass
class Setting:
    """A model whose projection learns, and what it learns from.

    Args:
        model: Frozen but for the projection.
        pixels: `(pictures, 3, size, size)`; pictures to learn from, then those held out.
        groups: One group of rows per picture, in the same order.
        held: How many of them, the last, nobody learns from.
        image, queries: Id of the image token, and how many stand for a picture.
        pictures, rows: Pictures in a step of ours, rows in one of the article's.
        steps: The article's steps.
        rates: AdamW's, the best first.
        start: Draws a fresh projection.
    """

    model: JMiniGPT4ForConditionalGeneration
    pixels: torch.Tensor
    groups: list[EncodedGroup]
    held: int
    image: int
    queries: int
    pictures: int
    rows: int
    steps: int
    rates: tuple[float, ...]
    start: Callable[[], None]

    def __post_init__(self):
        self.loss = PackLoss(self.model)
        ids = self.groups[0].rows[0].input_ids
        self.packer = Packer(self.image, self.queries, 256, tuple(ids[: ids.index(self.image)]))
        began = time.process_time()
        with torch.no_grad():
            self.features = torch.cat([self.model.get_query_features(part) for part in self.pixels.split(60)])
        share = 1 - self.held / len(self.groups)
        self.cache_seconds = (time.process_time() - began) * share

    @torch.no_grad()
    def validation_loss(self) -> float:
        packs = self.packer.pack(self.groups[-self.held :])
        return torch.cat([self.loss(pack, self.features) for pack in packs]).mean().item()

    def backward(self, groups: list[EncodedGroup]) -> float:
        """Loss and gradient of a step, packed, from stored features."""
        packs, total = self.packer.pack(groups), 0.0
        targets = sum(len(pack.targets) for pack in packs)
        for pack in packs:
            loss = self.loss(pack, self.features).sum() / targets
            loss.backward()
            total += loss.item()
        return total

    def articles_backward(self, rows: list[EncodedGroup]) -> float:
        """The same for single rows the article's way: padded, every row with its picture."""
        features = self.features[[each.pictures[0] for each in rows]]
        loss = self.model(query_features=features, **padded([each.rows[0] for each in rows])).loss
        loss.backward()
        return loss.item()

    @torch.no_grad()
    def encoding_seconds(self, count: int, repeats: int) -> float:
        """CPU seconds of encoding so many pictures, the median of some trials."""
        seconds = []
        for number in range(repeats):
            began = time.process_time()
            self.model.get_query_features(self.pixels[number * count : (number + 1) * count])
            seconds.append(time.process_time() - began)
        return statistics.median(seconds)


def scenes() -> Setting:
    """600 scenes with five captions to learn from and 100 that nobody learns from."""
    model = make_model()
    print(f"scenes: loss of the language model on the words of the scene: {teach_language(model):.3f}")
    model.freeze()
    model.eval()
    every = list(itertools.product(*(range(len(kind)) for kind in WORDS)))
    random.Random(1).shuffle(every)
    image = [IMAGE] * QUERIES
    groups = [
        EncodedGroup(tuple(row(scene, template, image) for template in CAPTIONS), (number,))
        for number, scene in enumerate(every[:700])
    ]
    pixels = torch.stack([draw(scene) for scene in every[:700]])
    start = model.model.language_projection.reset_parameters
    return Setting(model, pixels, groups, 100, IMAGE, QUERIES, 4, 20, 300, (1e-2, 3e-3, 1e-3), start)


def drawings() -> Setting:
    """312 drawings of 38 things, five questions each; a quarter of them nobody learns from."""
    folder = HERE.parent / "demo"
    model = JMiniGPT4ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    processor = JMiniGPT4Processor.from_pretrained(folder)
    model.freeze()
    lines = (HERE / "drawings.tsv").read_text(encoding="utf-8").splitlines()[1:]
    sheet, size = Image.open(HERE / "drawings.webp"), 160
    across = sheet.width // size
    corners = [(number % across * size, number // across * size) for number in range(len(lines))]
    pictures = [sheet.crop((x, y, x + size, y + size)) for x, y in corners]
    pixels = processor.image_processor(images=pictures, return_tensors="pt")["pixel_values"]
    layer = model.model.language_projection

    def start():
        torch.nn.init.normal_(layer.weight, std=0.003)  # as large as the embeddings among which its output stands
        torch.nn.init.zeros_(layer.bias)

    groups = [_group(line, number, processor) for number, line in enumerate(lines)]
    image, queries = processor.image_token_id, processor.num_query_tokens
    return Setting(
        model, pixels, groups, len(lines) // 4, image, queries, 8, 40, 100, (1.5e-3, 5e-4, 5e-3), start
    )  # fmt: skip


def _group(line: str, number: int, processor: JMiniGPT4Processor) -> EncodedGroup:
    name, kind, _ = line.split("\t")
    rows = []
    for question, answer in (
        ("何が写っていますか?", f"{name}が写っています。"),
        ("これは何?", f"{name}です。"),
        ("何の仲間ですか?", f"{name}は{kind}の仲間です。"),
        ("何の絵ですか?", f"{name}の絵です。"),
        ("説明して", f"これは{name}の絵です。{name}は{kind}の仲間です。"),
    ):
        user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
        assistant = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
        encoded = processor.encode_segments([user, assistant])
        rows.append(EncodedRow(list(encoded["input_ids"]), list(encoded["labels"])))
    return EncodedGroup(tuple(rows), (number,))


def batches(groups: list[EncodedGroup], size: int, seed: int) -> Iterator[list[EncodedGroup]]:
    """Steps of so many groups, shuffled anew in every epoch."""
    generator, groups = random.Random(seed), list(groups)
    while True:
        generator.shuffle(groups)
        yield from (groups[start : start + size] for start in range(0, len(groups) - size + 1, size))


class Run:
    """A fresh projection and its optimiser; `step` trains one step and counts its CPU time."""

    def __init__(self, setting: Setting, recipe: Recipe, steps: int):
        torch.manual_seed(recipe.seed)
        setting.start()
        self.setting, self.count, self.seconds = setting, 0, 0.0
        self.rates = recipe.with_(epochs=1, warmup_steps=max(1, steps // 15), warmup_learning_rate=0.0).rates(steps)
        learning = list(setting.model.model.language_projection.parameters())
        self.optimizer = OPTIMIZERS[recipe.optimizer](learning, recipe)

    def step(self, groups: list[EncodedGroup], backward: Callable[[list[EncodedGroup]], float]) -> float:
        began = time.process_time()
        for group in self.optimizer.param_groups:
            group["lr"] = self.rates(self.count + 1)
        loss = backward(groups)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.seconds += time.process_time() - began
        self.count += 1
        return loss


def article(setting: Setting, rate: float, steps: int, seed: int) -> tuple[float, float]:
    """Validation loss at the end of the article's training, and CPU seconds without its encoder's."""
    recipe = Recipe(learning_rate=rate, min_learning_rate=rate / 50, seed=seed)
    run, order = Run(setting, recipe, steps), batches(single_rows(setting), setting.rows, seed)
    for _ in range(steps):
        run.step(next(order), setting.articles_backward)
    return setting.validation_loss(), run.seconds


def single_rows(setting: Setting) -> list[EncodedGroup]:
    learnt = setting.groups[: -setting.held]
    return [EncodedGroup((each,), group.pictures) for group in learnt for each in group.rows]


def ours(setting: Setting, goal: float, steps: int, seed: int) -> tuple[int, float, float]:
    """Steps and CPU seconds, feature cache included, until the validation loss is `goal`, and the loss then.

    Without end: 0 steps when the goal was never reached.
    """
    recipe = Recipe(optimizer="muon", learning_rate=0.04, min_learning_rate=8e-4, weight_decay=1.0, seed=seed)
    run, order = Run(setting, recipe, steps), batches(setting.groups[: -setting.held], setting.pictures, seed)
    while run.count < steps:
        run.step(next(order), setting.backward)
        if run.count % 4 == 0 or run.count == steps:
            loss = setting.validation_loss()
            if loss <= goal:
                return run.count, run.seconds + setting.cache_seconds, loss
    return 0, run.seconds + setting.cache_seconds, loss


def race(name: str, setting: Setting, seeds: tuple[int, ...], quick: bool) -> dict[str, list[float]]:
    """Time and steps of the article's way over ours, for each seed."""
    ratios: dict[str, list[float]] = {"time": [], "steps": []}
    steps, rates = setting.steps, setting.rates[: 1 if quick else None]
    for seed in seeds:
        ends = {rate: article(setting, rate, steps, seed) for rate in rates}
        goal, learning = min(ends.values())
        rates = tuple(rate for rate, end in ends.items() if end == (goal, learning))
        spent = learning + steps * setting.encoding_seconds(setting.rows, 3)
        count, seconds, loss = ours(setting, goal, steps // 2, seed)
        ratios["time"].append(round(spent / seconds, 2) if count else 0.0)
        ratios["steps"].append(round(steps / count, 2) if count else 0.0)
        listed = ", ".join(f"{rate:g}: {loss:.3f}" for rate, (loss, _) in ends.items())
        print(
            f"{name}, seed {seed}: article {steps} steps, {spent:.1f} s (encoder {1 - learning / spent:.0%}), loss by "
            f"rate {listed}; ours {count or 'not reached,'} steps, {seconds:.1f} s (cache "
            f"{setting.cache_seconds:.1f}), {loss:.3f}; time {ratios['time'][-1]}, steps {ratios['steps'][-1]}",
            flush=True,
        )
    return ratios


def print_cost_of_optimizers():
    """CPU time of a step of each optimiser on the projection of true scale, whatever the model behind it does."""
    layer = torch.nn.Linear(768, 2816)
    for parameter in layer.parameters():
        parameter.grad = torch.randn_like(parameter)
    for name, make in OPTIMIZERS.items():
        optimizer, seconds = make(list(layer.parameters()), Recipe()), []
        for _ in range(6):
            began = time.process_time()
            optimizer.step()
            seconds.append(time.process_time() - began)
        print(f"a step of {name} on 2816 x 768: {statistics.median(seconds) * 1000:.0f} ms of CPU time")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the drawings, one seed, one rate")
    makers: dict[str, Callable[[], Setting]] = {"scenes": scenes, "drawings": drawings}
    parser.add_argument("--settings", nargs="+", choices=list(makers), help="these settings only")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print_cost_of_optimizers()
    chosen = options.settings or (["drawings"] if options.quick else list(makers))
    seeds = (0,) if options.quick else (0, 1, 2)
    summary: dict[str, dict] = {"time_ratio": {}, "steps_ratio": {}}
    for name in chosen:
        for kind, values in race(name, makers[name](), seeds, options.quick).items():
            summary[f"{kind}_ratio"][name] = [statistics.median(values), min(values), max(values)]
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
