"""vLLM against a loop of `generate`, on a CPU, in the environment of `tests/serving/environment.py`.

    FOLDER/bin/python benchmarks/serving.py --quick          the demo, 32 new tokens an answer
    FOLDER/bin/python benchmarks/serving.py --model MODEL    another checkpoint, 128 new tokens

The same pictures and questions, greedily in float32, in the same environment: one after the other with `generate`,
before and after vLLM, and through vLLM's OpenAI-compatible interface 1, 4 and 16 at once. No answer ends early. Tokens
of answers per second of wall time, pictures and prompts included; starting either is left out. The last line is JSON.
"""

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from jminigpt4 import DEMO
from jminigpt4.inference.loading import load_checkpoint

SERVING = Path(__file__).resolve().parent.parent / "tests" / "serving"
CONCURRENT = (1, 4, 16)
QUESTION = "何が写っていますか?くわしく教えてください。"


def draw_pictures(folder: Path) -> list[Path]:
    paths = []
    for number in range(max(CONCURRENT)):
        picture = Image.new("RGB", (96, 96), "white")
        colour = (15 * number, 90, 255 - 15 * number)
        ImageDraw.Draw(picture).ellipse((5 + number, 10, 60 + 2 * number, 80), fill=colour)
        paths.append(folder / f"{number}.png")
        picture.save(paths[-1])
    return paths


class LoopOfGenerate:
    def __init__(self, model: Path):
        self._model, self._processor = load_checkpoint(model, device="cpu", dtype="float32")

    def seconds(self, pictures: list[Path], tokens: int) -> float:
        """Of one answer after the other."""
        self._answer(pictures[0], tokens)  # warms up
        start = time.perf_counter()
        for picture in pictures:
            self._answer(picture, tokens)
        return time.perf_counter() - start

    def _answer(self, picture: Path, tokens: int):
        content = [{"type": "image", "image": Image.open(picture)}, {"type": "text", "text": QUESTION}]
        options: Any = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
        messages: Any = [{"role": "user", "content": content}]
        inputs: Any = self._processor.apply_chat_template(messages, **options)
        length = inputs["input_ids"].shape[1]
        greedily: Any = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0}
        ids: Any = self._model.generate(**inputs, **greedily, min_new_tokens=tokens, max_new_tokens=tokens)
        assert ids.shape[1] == length + tokens


def through_vllm(client, pictures: list[Path], at_once: int, tokens: int) -> float:
    """Seconds of all pictures, so many at once."""
    # Another text each time: the engine would find its prompts in the prefix cache.
    question = f"{at_once}: {QUESTION}"
    options = {"max_tokens": tokens, "min_tokens": tokens, "temperature": 0, "repetition_penalty": 1.0}

    def ask(picture: Path) -> int:
        return len(client.ask([picture], question, **options)[1])

    with ThreadPoolExecutor(at_once) as pool:
        start = time.perf_counter()
        assert set(pool.map(ask, pictures)) == {tokens}
        return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="32 new tokens an answer instead of 128")
    parser.add_argument("--model", type=Path, default=DEMO, help="a checkpoint folder; the demo by default")
    options = parser.parse_args()
    if importlib.util.find_spec("vllm") is None:
        sys.exit("Run this in an environment made by `python tests/serving/environment.py FOLDER`.")
    sys.path.insert(0, str(SERVING))
    vllm_server = importlib.import_module("vllm_server").vllm_server
    tokens = 32 if options.quick else 128
    loop = LoopOfGenerate(options.model)
    with tempfile.TemporaryDirectory() as name:
        pictures = draw_pictures(Path(name))
        seconds = {"generate": loop.seconds(pictures, tokens)}
        with vllm_server(str(options.model), Path(name) / "log") as client:
            through_vllm(client, pictures[:1], 2, tokens)  # warms up
            for at_once in CONCURRENT:
                seconds[f"vllm_{at_once}"] = through_vllm(client, pictures, at_once, tokens)
        seconds["generate"] += loop.seconds(pictures, tokens)
        seconds["generate"] /= 2
    results = {way: len(pictures) * tokens / spent for way, spent in seconds.items()}
    for way, speed in results.items():
        print(f"{way:10}{speed:9.1f} tokens/s")
    print(json.dumps({"tokens_per_second": results, "ratio": results["vllm_16"] / results["generate"]}))


if __name__ == "__main__":
    main()
