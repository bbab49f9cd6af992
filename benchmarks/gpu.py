"""One GPU at true size, random weights: the training race, decoding against the memory, encoding pictures.

    make gpu                       the same with the checks of tests/gpu, and writes docs/gpu.md and docs/gpu.json
    python benchmarks/gpu.py       the figures alone: minutes on one card of 80 GB
    python benchmarks/gpu.py --device cpu --tiny       what it would do, on nothing

Every time is wall time between two synchronisations, after rounds that warm up. MFU is over the peak that the card
reaches in a product of matrices here (`jminigpt4.train.operations`); what decoding is held against is the best speed
at which the card reads its memory here. The last line is JSON.
"""

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from decode import FEW, Route, bytes_per_second, decoder, milliseconds, weight_bytes
from small_models import small_config
from transformers import CompileConfig

from jminigpt4 import JMiniGPT4Config, JMiniGPT4ForConditionalGeneration
from jminigpt4.train.operations import count_operations, measured_peak
from train import Contenders, make_model, make_rows, race

CONTENDERS = ["article", "hf_blip2", "ours", "ours_no_cache"]


@dataclass(frozen=True)
class Words:
    """What the page says in a language around its figures."""

    head: str
    not_run: str
    measured: str
    training: str
    packs: str
    decoding: str
    encoding: str
    checks: str


ENGLISH = Words(
    head="""English | [日本語](gpu_ja.md)

# On a GPU

`make gpu` checks on the device what tests check on CPUs (`tests/gpu`), measures at true size with random weights
(`benchmarks/gpu.py`), and writes this page and gpu.json beside it: at most 8 minutes are meant for one card of 80 GB.
Nothing is downloaded. Every time is wall time between two synchronisations. Code that was written for CUDA and ran on
CPUs only says so where it stands.

""",
    not_run="**Not run.** There was no GPU yet: `make gpu` fills this page in.\n",
    measured="{device}, torch {torch}, {dtype}, language model of {billions:.2f} billion parameters; "
    "{peak:.1f} TFLOP/s and {memory:.2f} TB/s measured; {held:.1f} GB held at most.\n",
    training="| training step | seconds | speed | rows/s | MFU | rows per GB | gradient, relative |",
    packs="| twice the pictures, by `pack_tokens` | packs | seconds | the article's way | speed |",
    decoding="| decoding | tokens/s | of what the memory allows |",
    encoding="Encoding: {pictures_per_second:.0f} pictures/s, MFU {mfu:.0%}.",
    checks="| checked against float32 on the CPU | relative difference |",
)
JAPANESE = Words(
    head="""[English](gpu.md) | 日本語

# GPU での確認と測定

`make gpu` は、CPU でのテストと同じことを GPU で確かめ（`tests/gpu`）、実物の大きさのモデルを乱数の重みで測定し\
（`benchmarks/gpu.py`）、このページと、隣の gpu.json を書き出します。80 GB のカード一枚で、長くても8分で終わるように\
作りました。何もダウンロードしません。時間はすべて、同期から同期までの実時間です。CUDA 用に書いて CPU でしか実行して\
いないコードについては、それぞれの場所にそう書いてあります。

""",
    not_run="**まだ実行していません。** GPU がなかったためです。`make gpu` がこのページを埋めます。\n",
    measured="{device}、torch {torch}、{dtype}、言語モデルは {billions:.2f}B パラメータ。"
    "実測の性能は {peak:.1f} TFLOP/s と {memory:.2f} TB/s、メモリは最大 {held:.1f} GB。\n",
    training="| 学習のステップ | 秒 | 速さ | 行/秒 | MFU | GB あたりの行数 | 勾配の相対誤差 |",
    packs="| 画像を倍にして、`pack_tokens` ごとに | パック | 秒 | 記事のやり方 | 速さ |",
    decoding="| 生成 | トークン/秒 | メモリの限界に対して |",
    encoding="特徴量の計算：毎秒 {pictures_per_second:.0f} 枚、MFU {mfu:.0%}。",
    checks="| CPU の float32 と比べたもの | 相対誤差 |",
)


@dataclass(frozen=True)
class Scale:
    """Sizes of everything that is measured.

    Args:
        config: Makes the model's configuration.
        dtype: Of weights and computing.
        pictures, pack_tokens: Of a training step.
        pack_sizes: `pack_tokens` that are tried beside it.
        rounds: How often everything is timed.
        tokens: Most tokens that are decoded.
        batches: Prompts that are decoded at a time.
        encoded: Pictures that are encoded at a time.
        numbers: float32 that are read to measure the memory.
    """

    config: Callable[[], JMiniGPT4Config]
    dtype: torch.dtype
    pictures: int
    pack_tokens: int
    pack_sizes: tuple[int, ...]
    rounds: int
    tokens: int
    batches: tuple[int, ...]
    encoded: int
    numbers: int


TRUE = Scale(
    config=JMiniGPT4Config,
    dtype=torch.bfloat16,
    pictures=8,
    pack_tokens=1024,
    pack_sizes=(1024, 2048, 4096, 8192),
    rounds=5,
    tokens=130,
    batches=(1, 16),
    encoded=64,
    numbers=10**9,
)
TINY = Scale(
    config=lambda: small_config((32, 1, 2), (32, 1, 2), (64, 2, 2), image_size=28),
    dtype=torch.float32,
    pictures=2,
    pack_tokens=256,
    pack_sizes=(256, 512),
    rounds=1,
    tokens=4,
    batches=(1, 2),
    encoded=2,
    numbers=10**5,
)


def clock_of(device: str) -> Callable[[], float]:
    """Seconds, once the device has done what it was asked for."""

    def clock() -> float:
        if device != "cpu":
            torch.accelerator.synchronize()
        return time.perf_counter()

    return clock


def training(model: JMiniGPT4ForConditionalGeneration, scale: Scale) -> dict[str, Any]:
    """The race of `benchmarks/train.py` on captions and on questions: speed, MFU, rows per GB of activations."""
    device = model.device.type
    peak = measured_peak(torch.device(device), scale.dtype)
    results: dict[str, Any] = {}
    for kind in ("captions", "questions"):
        rows = make_rows(kind, scale.pictures, model.config, seed=0)
        contenders = Contenders(model, rows, scale.pack_tokens)
        raced = race(contenders, CONTENDERS, scale.rounds, clock_of(device))
        for name, result in raced.items():
            held = contenders.rows if "ours" not in name else contenders.rows / len(contenders.packs)
            results[f"{kind}/{name}"] = {
                "seconds": result["seconds"],
                "ratio": result["ratio"],
                "ratio_spread": [result["least"], result["most"]],
                "rows_per_second": contenders.rows / result["seconds"],
                "mfu": result["operations"] / (result["seconds"] * peak),
                "rows_per_gb": held / result["activation_gb"],
                "gradient_relative_error": result["gradient_relative_error"],
            }
    return results


def packs(model: JMiniGPT4ForConditionalGeneration, scale: Scale) -> dict[str, Any]:
    """Our step against the article's by the size of packs: a GPU waits for Python between small ones."""
    results: dict[str, Any] = {}
    for kind, tokens in itertools.product(("captions", "questions"), scale.pack_sizes):
        contenders = Contenders(model, make_rows(kind, 2 * scale.pictures, model.config, seed=0), tokens)
        raced = race(contenders, ["article", "ours"], scale.rounds, clock_of(model.device.type))
        results[f"{kind}/{tokens}"] = {
            "packs": len(contenders.packs),
            "seconds": raced["ours"]["seconds"],
            "seconds_article": raced["article"]["seconds"],
        }
    return results


def decoding(model: JMiniGPT4ForConditionalGeneration, scale: Scale) -> dict[str, Any]:
    """Tokens a second by `generate`, plain and with a static cache whose step is compiled, against the memory."""
    model.eval()
    model.generation_config.update(eos_token_id=None, pad_token_id=0, do_sample=False)
    device = model.device.type
    clock = clock_of(device)
    bandwidth = max(bytes_per_second(device, scale.numbers, clock) for _ in range(2))
    size = scale.dtype.itemsize
    limit = weight_bytes(model, Route({}, size, size)) / bandwidth * 1000
    results: dict[str, Any] = {}
    for batch, (route, options) in itertools.product(scale.batches, routes(device).items()):
        decode = decoder(model, batch, **options)
        for tokens in (scale.tokens, FEW, scale.tokens):  # compiles, captures, runs
            decode(tokens)
        each = statistics.median(milliseconds(decode, clock, scale.tokens) for _ in range(scale.rounds))
        results[f"batch {batch}/{route}"] = {
            "tokens_per_second": 1000 * batch / each,
            "limit": 1000 * batch / limit,
            "of_limit": limit / each,
        }
    return results | {"memory_bytes_per_second": bandwidth}


def routes(device: str) -> dict[str, dict[str, Any]]:
    """Ways to decode, as options of `generate`."""
    compiled: dict[str, Any] = {"cache_implementation": "static"}
    if device == "cpu":  # where `generate` compiles only when it is told to; all but the compiler is the same
        compiled["compile_config"] = CompileConfig(backend="eager", mode="default")
        compiled["compile_config"]._compile_all_devices = True
    return {"plain": {}, "static cache, compiled": compiled}


def encoding(model: JMiniGPT4ForConditionalGeneration, scale: Scale) -> dict[str, float]:
    """Pictures a second through image encoder and Q-Former, and MFU."""
    device, size = model.device.type, model.config.vision_config.image_size
    pixels = torch.randn(scale.encoded, 3, size, size, device=device).to(scale.dtype)
    clock, times = clock_of(device), []
    with torch.no_grad():
        for _ in range(scale.rounds + 1):
            start = clock()
            model.get_query_features(pixels)
            times.append(clock() - start)
    seconds = statistics.median(times[1:])
    operations = scale.encoded * count_operations(model.config, (size, size)).picture
    peak = measured_peak(torch.device(device), scale.dtype)
    return {"pictures_per_second": scale.encoded / seconds, "mfu": operations / (seconds * peak)}


def measure(device: str, scale: Scale) -> dict[str, Any]:
    """All figures; the model is made once."""
    with_memory = device == "cuda"
    results: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if with_memory else device,
        "torch": torch.__version__,
        "dtype": str(scale.dtype).removeprefix("torch."),
        "peak_operations_per_second": measured_peak(torch.device(device), scale.dtype),
    }
    model = make_model(scale.config(), scale.dtype, device)
    results["language_model_parameters"] = sum(each.numel() for each in model.model.language_model.parameters())
    results["training"] = training(model, scale)
    results["packs"] = packs(model, scale)
    results["encoding"] = encoding(model, scale)
    results["decoding"] = decoding(model, scale)
    results["peak_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9 if with_memory else 0.0
    return results


def page(results: dict[str, Any], words: Words = ENGLISH) -> str:
    """`docs/gpu.md`, or `docs/gpu_ja.md`: the figures as a table, or that there are none yet."""
    if not results:
        return words.head + words.not_run
    measured = words.measured.format(
        device=results["device"],
        torch=results["torch"],
        dtype=results["dtype"],
        billions=results["language_model_parameters"] / 1e9,
        peak=results["peak_operations_per_second"] / 1e12,
        memory=results["decoding"]["memory_bytes_per_second"] / 1e12,
        held=results["peak_memory_gb"],
    )
    lines = [measured, words.training, "|---|---|---|---|---|---|---|"]
    for name, each in results["training"].items():
        lines.append(
            f"| {name} | {each['seconds']:.3f} | {each['ratio']:.2f} ({each['ratio_spread'][0]:.2f}-"
            f"{each['ratio_spread'][1]:.2f}) | {each['rows_per_second']:.0f} | {each['mfu']:.0%} | "
            f"{each['rows_per_gb']:.1f} | {each['gradient_relative_error']:.0e} |"
        )
    lines += ["", words.packs, "|---|---|---|---|---|"]
    for name, each in results["packs"].items():
        lines.append(
            f"| {name} | {each['packs']} | {each['seconds']:.3f} | {each['seconds_article']:.3f} | "
            f"{each['seconds_article'] / each['seconds']:.2f} |"
        )
    lines += ["", words.decoding, "|---|---|---|"]
    for name, each in results["decoding"].items():
        if isinstance(each, dict):
            lines.append(f"| {name} | {each['tokens_per_second']:.0f} | {each['of_limit']:.0%} |")
    lines += ["", words.encoding.format(**results["encoding"])]
    if checks := results.get("checks"):
        lines += ["", words.checks, "|---|---|"]
        lines += [f"| {name} | {value:.1e} |" for name, value in checks.items()]
    return words.head + "\n".join(lines) + "\n"


def write_page(results: dict[str, Any], folder: Path):
    """`gpu.md`, `gpu_ja.md` and `gpu.json`."""
    (folder / "gpu.md").write_text(page(results), encoding="utf-8")
    (folder / "gpu_ja.md").write_text(page(results, JAPANESE), encoding="utf-8")
    (folder / "gpu.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes at which a CPU is through in seconds")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("There is no CUDA device here; --device cpu --tiny shows what would be done.")
    results = measure(options.device, TINY if options.tiny else TRUE)
    print(page(results))
    print(json.dumps(results))


if __name__ == "__main__":
    main()
