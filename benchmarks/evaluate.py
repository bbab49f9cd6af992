"""Evaluation: items per second against a plain loop over the questions, on the same model and pictures.

    python benchmarks/evaluate.py --quick       a language model of 65 million parameters, at most a minute
    python benchmarks/evaluate.py               the same, more pictures and repeats
    python benchmarks/evaluate.py --questions 1 one question a picture, as captions are

The plain loop takes each question by itself: processor with the picture, `generate`, decode. This package answers the
same items in batches, with query features once a picture and its prefix once for all its questions. Both speak
greedily, and their answers are compared. Times are CPU seconds of the process, medians over the repeats in turn. The
last line is JSON: `ratio` is items per second of this package over those of the plain loop.
"""

import argparse
import io
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from small_models import FIFTIETH, small_config
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from jminigpt4 import JMiniGPT4ForConditionalGeneration, JMiniGPT4ImageProcessor, JMiniGPT4Processor
from jminigpt4.convert.formats import chat_template_for, prompt_format
from jminigpt4.data.pictures import FilePicture
from jminigpt4.evaluate.generation import Answerer, Generation
from jminigpt4.evaluate.items import Item, ask

QUESTIONS = (
    "これは何の写真ですか?",
    "何色ですか?",
    "人は何人いますか?",
    "天気はどうですか?",
    "どこで撮影されましたか?",
    "男の子は何をしていますか?",
    "いつ撮影されましたか?",
    "背景には何がありますか?",
)
ANSWER_TOKENS = 8  # Visual Genome's answers are a few words


def make_processor() -> JMiniGPT4Processor:
    """The article's prompt format around a tokenizer of one token a character, which needs no file."""
    special = ["[PAD]", "<unk>", "<s>", "</s>", "<ImageHere>"]
    characters = sorted(set("".join(QUESTIONS)) | set("ユーザー: システム<IMG></IMG><NL>"))
    vocabulary = {token: number for number, token in enumerate([*special, *characters])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<ImageHere>"]})
    chosen = prompt_format("article-3.6b")
    template = chat_template_for(chosen, tokenizer)
    return JMiniGPT4Processor(JMiniGPT4ImageProcessor(), tokenizer, 32, chat_template=template)


def make_model(processor: JMiniGPT4Processor) -> JMiniGPT4ForConditionalGeneration:
    """EVA ViT-g, Q-Former and rinna's 3.6b in their proportions at a fiftieth of the size, with random weights."""
    config = small_config(**FIFTIETH, image_token_id=processor.image_token_id)
    torch.manual_seed(0)
    model = JMiniGPT4ForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id = None  # every answer has the same length in both ways
    model.generation_config.pad_token_id = 0
    return model


def make_items(folder: Path, pictures: int, questions: int) -> list[Item]:
    """`questions` questions on each of `pictures` pictures of COCO's size."""
    items = []
    for number in range(pictures):
        pixels = np.random.default_rng(number).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        path = folder / f"{number}.jpg"
        Image.fromarray(pixels).resize((640, 480)).save(path)
        picture = FilePicture(str(path))
        for place, question in enumerate(QUESTIONS[:questions]):
            items.append(Item(f"{number}.{place}", ask(question), (picture,), (), (f"made:{number}",)))
    return items


@torch.no_grad()
def plain_loop(
    model: JMiniGPT4ForConditionalGeneration, processor: JMiniGPT4Processor, items: list[Item]
) -> list[str]:
    answers = []
    for item in items:
        image = Image.open(io.BytesIO(item.pictures[0].read()))
        content = [{"type": "image", "image": image}, {"type": "text", "text": item.question}]
        messages: list[Any] = [{"role": "user", "content": content}]
        inputs: Any = processor.apply_chat_template(
            messages,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        output = model.generate(**inputs, max_new_tokens=ANSWER_TOKENS, do_sample=False)
        answers.append(processor.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    return answers


def batched(model: JMiniGPT4ForConditionalGeneration, processor: JMiniGPT4Processor, items: list[Item]) -> list[str]:
    answerer = Answerer(model, processor, Generation(max_new_tokens=ANSWER_TOKENS), items)
    answers = {each.id: each.answer for batch in answerer.answers() for each in batch}
    return [answers[item.id] for item in items]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--questions", type=int, default=8, choices=range(1, 9))
    arguments = parser.parse_args()
    pictures, repeats = (2, 3) if arguments.quick else (8, 5)
    processor = make_processor()
    model = make_model(processor)
    seconds: dict[str, list[float]] = {"plain loop": [], "this package": []}
    with tempfile.TemporaryDirectory() as folder:
        items = make_items(Path(folder), pictures, arguments.questions)
        ways = {"plain loop": plain_loop, "this package": batched}
        said = {name: way(model, processor, items[:2]) for name, way in ways.items()}  # warm up
        for _ in range(repeats):
            for name, way in ways.items():
                start = time.process_time()
                said[name] = way(model, processor, items)
                seconds[name].append(time.process_time() - start)
    rates = {name: len(items) / statistics.median(times) for name, times in seconds.items()}
    same = sum(a.strip() == b for a, b in zip(said["plain loop"], said["this package"], strict=True))
    for name, rate in rates.items():
        print(f"{name:14s} {rate:8.2f} items a CPU second")
    print(f"{same} of {len(items)} answers are equal")
    result = {
        "benchmark": "evaluate",
        "questions_per_picture": arguments.questions,
        "items": len(items),
        "equal": same,
    }
    result |= {"ratio": round(rates["this package"] / rates["plain loop"], 2)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
