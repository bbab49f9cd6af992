"""Decoding on one CPU thread: the routes of `jminigpt4 chat`, against plain bfloat16 and against the memory.

    python benchmarks/decode.py --quick        one layer of rinna's 3.6b and its head, random weights: about a minute
    python benchmarks/decode.py                twelve layers, 1.3 billion weights
    python benchmarks/decode.py --layers 36 --routes gguf_q8_0     all of 3.6b: some 12 GB of memory, and of disk
    python benchmarks/decode.py --answers D    besides, what each route costs in answers: checkpoint D and its samples

A token needs every weight of layers and head once, so it cannot be decoded faster than memory gives them: the limit is
their bytes over the best read speed measured in this run. Every route takes turns with plain bfloat16 (`eager`);
times are CPU milliseconds of the process per token, the least of the rounds. The last line is JSON: for each route
`ratio`, plain bfloat16's time over its own, and `of_limit`, the limit over its time. The routes of llama.cpp need
`pip install -e '.[gguf,llama]'` and are left out without.
"""

import argparse
import importlib.util
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from small_models import small_config

from jminigpt4 import DEMO, JMiniGPT4ForConditionalGeneration, JMiniGPT4Processor
from jminigpt4.chat import ChatSession
from jminigpt4.configuration_jminigpt4 import JAPANESE_GPT_NEOX_3_6B
from jminigpt4.convert.gguf import write_gguf
from jminigpt4.inference.llama_cpp import LlamaCppForConditionalGeneration
from jminigpt4.inference.loading import be_quiet, load_checkpoint
from jminigpt4.modeling_jminigpt4 import CACHE_NAME


class Route(NamedTuple):
    """A way to decode: arguments of `load_checkpoint`, and the bytes of a weight in the layers and in the head."""

    options: dict[str, Any]
    layer_bytes: float
    head_bytes: float
    gguf: str | None = None  # dtype of the file to be written first


ROUTES = {
    "eager": Route({"dtype": "bfloat16"}, 2, 2),
    "float32": Route({"dtype": "float32"}, 4, 4),
    "int8": Route({"quantize": "int8"}, 1, 1),
    "8bit": Route({"dtype": "bfloat16", "quantize": "8bit"}, 1, 2),
    "nf4": Route({"dtype": "bfloat16", "quantize": "nf4"}, 0.5 + 4 / 64, 2),
    "gguf_bf16": Route({}, 2, 2, "bfloat16"),
    "gguf_q8_0": Route({}, 34 / 32, 34 / 32, "q8_0"),
}
PROMPT_TOKENS, FEW, MANY = 64, 2, 18
QUESTIONS = ("何が写っていますか?", "何色ですか?", "何の仲間ですか?", "食べられますか?", "この絵を説明してください。")


def write_random(folder: Path, layers: int):
    """Some layers of rinna/japanese-gpt-neox-3.6b and its head, behind the smallest encoder there can be."""
    rinnas: dict[str, Any] = {**JAPANESE_GPT_NEOX_3_6B, "num_hidden_layers": layers}
    processor = JMiniGPT4Processor.from_pretrained(DEMO)  # not needed here, but a checkpoint has one that fits
    shared = {name: getattr(processor, name) for name in ("image_token_id", "num_query_tokens")}
    config = small_config((32, 1, 2), (32, 1, 2), (32, 1, 2), image_size=28, **shared, **rinnas)
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = JMiniGPT4ForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(default)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def load(
    model: str | Path, route: Route, folder: Path
) -> tuple[JMiniGPT4ForConditionalGeneration, JMiniGPT4Processor]:
    """Model and processor; a GGUF file is written into `folder`."""
    options = dict(route.options)
    if route.gguf:
        options["gguf"] = folder / f"{route.gguf}.gguf"
        write_gguf(model, options["gguf"], route.gguf, progress=False)
    return load_checkpoint(model, "cpu", **options)


def load_random(folder: Path, route: Route) -> JMiniGPT4ForConditionalGeneration:
    model, _ = load(folder, route, folder)
    model.generation_config.update(eos_token_id=None, pad_token_id=0, do_sample=False)
    return model


def decoder(model: JMiniGPT4ForConditionalGeneration, batch: int = 1, **options: Any) -> Callable[[int], None]:
    """What generates a number of tokens behind `batch` prompts; `options` are those of `generate`."""
    ids = torch.arange(100, 100 + PROMPT_TOKENS, device=model.device).expand(batch, -1)

    def decode(tokens: int):
        own_cache = isinstance(model, LlamaCppForConditionalGeneration)
        cache: dict[str, Any] = {CACHE_NAME: model.new_cache(256)} if own_cache else {}
        model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, **cache, **options)

    return decode


def milliseconds(
    decode: Callable[[int], None], clock: Callable[[], float] = time.process_time, many: int = MANY
) -> float:
    """Time of one more token by a clock that tells seconds, the prompt and all that is paid once left out."""
    times = []
    for tokens in (FEW, many):
        start = clock()
        decode(tokens)
        times.append(clock() - start)
    return (times[1] - times[0]) / (many - FEW) * 1000


def bytes_per_second(
    device: str = "cpu", numbers: int = 100_000_000, clock: Callable[[], float] = time.process_time
) -> float:
    """The best speed at which one thread, or a GPU, reads so many float32 from memory, of four ways to read them."""
    data = torch.ones(numbers, device=device)
    integers = data.view(torch.int32)
    reductions = (data.sum, data.amax, lambda: torch.dot(data, data), integers.amax)
    best = 0.0
    for reduce in reductions * 3:
        start = clock()
        reduce()
        best = max(best, data.numel() * 4 / (clock() - start))
    return best


def weight_bytes(model: JMiniGPT4ForConditionalGeneration, route: Route) -> float:
    text = model.config.text_config
    layers = 12 * text.hidden_size**2 * text.num_hidden_layers
    head = text.hidden_size * text.vocab_size
    return layers * route.layer_bytes + head * route.head_bytes


def race(folder: Path, routes: list[str], rounds: int) -> dict[str, dict[str, float]]:
    base = load_random(folder, ROUTES["eager"])
    eager = decoder(base)
    eager(FEW)
    speed = bytes_per_second()
    print(f"memory gives one thread {speed / 1e9:.1f} GB/s")
    print(f"{'':10}{'ms/token':>10}{'limit ms':>10}{'of limit':>10}{'eager/this':>12}")
    results = {}
    for route in routes:
        model = base if route == "eager" else load_random(folder, ROUTES[route])
        decode = decoder(model)
        decode(MANY)  # warms up
        pairs = [(milliseconds(eager), milliseconds(decode)) for _ in range(rounds)]
        reference, own = (min(column) for column in zip(*pairs, strict=True))
        speed = max(speed, bytes_per_second())
        limit = weight_bytes(model, ROUTES[route]) / speed * 1000
        results[route] = {"ms_per_token": own, "ratio": reference / own, "of_limit": limit / own}
        print(f"{route:10}{own:10.1f}{limit:10.1f}{limit / own:10.2f}{reference / own:12.2f}")
        del model, decode
    return results


def same_answers(folder: str, routes: list[str]) -> dict[str, float]:
    """Share of answers about the samples of a checkpoint that are, to the letter, those of float32."""
    samples = [Image.open(file) for file in sorted((Path(folder) / "samples").glob("*.png"))]
    answers: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for route in dict.fromkeys(("float32", *routes)):
            chosen = ROUTES[route]
            if chosen.options.get("quantize") in (
                "8bit",
                "nf4",
            ):  # all else in float32, so that only the quantisation is counted
                chosen = chosen._replace(options={**chosen.options, "dtype": "float32"})
            session = ChatSession(*load(folder, chosen, Path(temporary)))
            answers[route] = []
            for sample in samples:
                for question in QUESTIONS:
                    answers[route].append(session.ask(question, [sample], do_sample=False))
                    session.undo()
    expected = answers["float32"]
    shares = {
        route: sum(one == other for one, other in zip(own, expected, strict=True)) / len(expected)
        for route, own in answers.items()
    }
    print(f"\nsame answer as float32, {len(expected)} questions about {len(samples)} samples of {folder}:")
    for route, share in shares.items():
        print(f"{route:10}{share:8.0%}")
    return shares


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one layer, two rounds: about a minute")
    parser.add_argument("--layers", type=int, help="layers of rinna's shape")
    parser.add_argument("--routes", nargs="+", choices=ROUTES, metavar="ROUTE", help=f"of {', '.join(ROUTES)}")
    parser.add_argument("--answers", metavar="MODEL", help="checkpoint whose answers are compared")
    options = parser.parse_args()
    torch.set_num_threads(1)
    be_quiet()
    routes = list(dict.fromkeys(options.routes or ROUTES))
    if missing := [name for name in ("gguf", "llama_cpp") if importlib.util.find_spec(name) is None]:
        print(f"without {' and '.join(missing)}: the routes of llama.cpp are left out")
        routes = [route for route in routes if not ROUTES[route].gguf]
    layers = options.layers or (1 if options.quick else 12)
    with tempfile.TemporaryDirectory() as folder:
        write_random(Path(folder), layers)
        print(f"{layers} layers of rinna/japanese-gpt-neox-3.6b and its head")
        results = race(Path(folder), routes, rounds=2 if options.quick else 3)
    summary = {"layers": layers, "routes": results}
    if options.answers:
        summary["same_answers"] = same_answers(options.answers, routes)
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
