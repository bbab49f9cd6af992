"""vLLM against a loop of `generate`, on a CPU, with the environment of `tests/serving/environment.py`.

    JMINIGPT4_VLLM=FOLDER python benchmarks/serving.py --quick          the demo, 32 new tokens an answer
    JMINIGPT4_VLLM=FOLDER python benchmarks/serving.py --model MODEL    another checkpoint, 128 new tokens

The same pictures and questions, greedily in float32, in the same environment: one after the other with `generate`,
before and after vLLM, and through vLLM's OpenAI-compatible interface 1, 4 and 16 at once. No answer ends early. Tokens
of answers per second of wall time, pictures and prompts included; starting either is left out. The last line is JSON.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image, ImageDraw

from jminigpt4 import DEMO

SERVING = Path(__file__).resolve().parent.parent / "tests" / "serving"
CONCURRENT = (1, 4, 16)


def make_prompts(folder: Path) -> list[dict]:
    prompts = []
    for number in range(max(CONCURRENT)):
        picture = Image.new("RGB", (96, 96), "white")
        ImageDraw.Draw(picture).ellipse(
            (5 + number, 10, 60 + 2 * number, 80), fill=(15 * number, 90, 255 - 15 * number)
        )
        path = folder / f"{number}.png"
        picture.save(path)
        prompts.append({"pictures": [str(path)], "text": "何が写っていますか?くわしく教えてください。"})
    return prompts


def loop_of_generate(python: Path, model: Path, prompts: list[dict], tokens: int, folder: Path) -> float:
    """Seconds of one answer after the other."""
    file = folder / "prompts.json"
    file.write_text(json.dumps(prompts), encoding="utf-8")
    command = [str(python), str(SERVING / "greedy.py"), str(model), str(file), str(tokens), str(tokens)]
    answers = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    assert all(len(each["answer_ids"]) == tokens for each in answers)
    return sum(each["seconds"] for each in answers)


def through_vllm(client, prompts: list[dict], at_once: int, tokens: int) -> float:
    """Seconds of all prompts, so many at once."""

    def ask(prompt: dict) -> int:
        return len(client.ask(prompt["pictures"], prompt["text"], max_tokens=tokens, min_tokens=tokens)[1])

    with ThreadPoolExecutor(at_once) as pool:
        start = time.perf_counter()
        assert set(pool.map(ask, prompts)) == {tokens}
        return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="32 new tokens an answer instead of 128")
    parser.add_argument("--model", type=Path, default=DEMO, help="a checkpoint folder; the demo by default")
    options = parser.parse_args()
    if not os.environ.get("JMINIGPT4_VLLM"):
        sys.exit("Set JMINIGPT4_VLLM to an environment made by `python tests/serving/environment.py FOLDER`.")
    sys.path.insert(0, str(SERVING))
    vllm_server = importlib.import_module("vllm_server").vllm_server
    python = Path(os.environ["JMINIGPT4_VLLM"]) / "bin" / "python"
    tokens = 32 if options.quick else 128
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prompts = make_prompts(folder)
        seconds = {"generate": loop_of_generate(python, options.model, prompts, tokens, folder)}
        with vllm_server(python, str(options.model), folder / "log") as client:
            through_vllm(client, prompts[:1], 1, tokens)  # warms up
            for at_once in CONCURRENT:
                # Another text each time: the engine would find its prompts in the prefix cache.
                asked = [{**prompt, "text": f"{at_once}: {prompt['text']}"} for prompt in prompts]
                seconds[f"vllm_{at_once}"] = through_vllm(client, asked, at_once, tokens)
        seconds["generate"] += loop_of_generate(python, options.model, prompts, tokens, folder)
        seconds["generate"] /= 2
    results = {way: len(prompts) * tokens / spent for way, spent in seconds.items()}
    for way, speed in results.items():
        print(f"{way:10}{speed:9.1f} tokens/s")
    print(json.dumps({"tokens_per_second": results, "ratio": results["vllm_16"] / results["generate"]}))


if __name__ == "__main__":
    main()
