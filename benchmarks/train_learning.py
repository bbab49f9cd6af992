"""Training: validation loss at equal time, the article's random rows against packed pictures, over three seeds.

    python benchmarks/train_learning.py --quick     one seed, 8 seconds of CPU time each
    python benchmarks/train_learning.py             three seeds, 10 seconds each

A small language model first learns what is said about scenes whose words stand where a picture's tokens stand. Then
only the projection learns, from drawings of such scenes that a frozen random encoder has looked at. Both ways see the
same pictures and captions, five a picture, and stop after the same CPU time; ours pays for its feature cache out of
it. The last line is JSON: `ratio` is the article's mean validation loss over that of 4 pictures with 5 captions.
"""

import argparse
import itertools
import json
import random
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from transformers import Blip2QFormerConfig, Blip2VisionConfig, GPTNeoXConfig

from jminigpt4 import JMiniGPT4Config, JMiniGPT4ForConditionalGeneration
from jminigpt4.train.loss import PackLoss
from jminigpt4.train.packing import IGNORED, EncodedGroup, EncodedRow, Packer

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


class Data:
    """Scenes with their pictures: 600 to learn from and 100 that nobody learns from."""

    def __init__(self, model: JMiniGPT4ForConditionalGeneration):
        scenes = list(itertools.product(*(range(len(kind)) for kind in WORDS)))
        random.Random(1).shuffle(scenes)
        self.scenes, self.held = scenes[:600], scenes[600:700]
        self.pixels = torch.stack([draw(scene) for scene in self.scenes])
        with torch.no_grad():
            self.held_features = model.get_query_features(torch.stack([draw(scene) for scene in self.held]))

    def groups(self, scenes: list[Scene]) -> list[EncodedGroup]:
        image = [IMAGE] * QUERIES
        return [
            EncodedGroup(tuple(row(scene, template, image) for template in CAPTIONS), (number,))
            for number, scene in enumerate(scenes)
        ]


def article_steps(model: JMiniGPT4ForConditionalGeneration, data: Data, seed: int) -> Iterator[Callable]:
    """20 random (picture, caption) rows a step; picture and prompt are computed for each of them."""
    generator = random.Random(seed)
    pairs = [(number, template) for number in range(len(data.scenes)) for template in CAPTIONS]
    while True:
        generator.shuffle(pairs)
        for start in range(0, len(pairs) - 19, 20):
            chosen = pairs[start : start + 20]
            rows = [row(data.scenes[number], template, [IMAGE] * QUERIES) for number, template in chosen]
            pixels = data.pixels[[number for number, _ in chosen]]
            yield lambda rows=rows, pixels=pixels: model(pixel_values=pixels, **padded(rows)).loss


def packed_steps(model: JMiniGPT4ForConditionalGeneration, data: Data, seed: int, pictures: int) -> Iterator[Callable]:
    """`pictures` random pictures a step with all five captions of each; features computed once, here."""
    generator, loss = random.Random(seed), PackLoss(model)
    packer = Packer(IMAGE, QUERIES, 1024, tuple(BEFORE))
    with torch.no_grad():
        features = torch.cat([model.get_query_features(part) for part in data.pixels.split(100)])
    groups = data.groups(data.scenes)
    while True:
        generator.shuffle(groups)
        for start in range(0, len(groups) - pictures + 1, pictures):
            packs = packer.pack(groups[start : start + pictures])
            yield lambda packs=packs: torch.cat([loss(pack, features) for pack in packs]).mean()


def learn(model: JMiniGPT4ForConditionalGeneration, steps: Iterator[Callable], seconds: float, seed: int) -> int:
    """A fresh projection learns for `seconds` of CPU time; returns the number of steps."""
    torch.manual_seed(seed)
    layer = model.model.language_projection
    layer.reset_parameters()
    optimizer = torch.optim.AdamW(layer.parameters(), lr=3e-3)
    start, count = time.process_time(), 0
    while (spent := time.process_time() - start) < seconds:
        step = next(steps)
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, (count + 1) / 20, 1.2 * (1 - spent / seconds) + 0.02)
        step().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        count += 1
    return count


@torch.no_grad()
def validation_loss(model: JMiniGPT4ForConditionalGeneration, data: Data) -> float:
    packs = Packer(IMAGE, QUERIES, 1024, tuple(BEFORE)).pack(data.groups(data.held))
    loss = PackLoss(model)
    return torch.cat([loss(pack, data.held_features) for pack in packs]).mean().item()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, 8 seconds each")
    parser.add_argument("--seconds", type=float, help="CPU time of each training [10]")
    options = parser.parse_args()
    torch.set_num_threads(1)
    seconds, seeds = options.seconds or (8.0 if options.quick else 10.0), (0,) if options.quick else (0, 1, 2)
    model = make_model()
    print(f"loss of the language model on the words of the scene: {teach_language(model):.3f}")
    model.freeze()
    model.eval()
    data = Data(model)
    ways = {
        "article, 20 rows": lambda seed: article_steps(model, data, seed),
        "4 pictures x 5": lambda seed: packed_steps(model, data, seed, 4),
    }
    losses: dict[str, list[float]] = {name: [] for name in ways}
    for seed, (name, steps) in itertools.product(seeds, ways.items()):
        count = learn(model, steps(seed), seconds, seed)
        losses[name].append(validation_loss(model, data))
        print(f"seed {seed}, {name:18}{count:6} steps, validation loss {losses[name][-1]:.3f}")
    article, ours = (statistics.mean(each) for each in losses.values())
    summary = {"seconds": seconds, "validation_loss": losses, "ratio": article / ours}
    print(json.dumps(summary, ensure_ascii=False))


if __name__ == "__main__":
    main()
