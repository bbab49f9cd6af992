"""Run by the environment of vLLM: `greedy.py MODEL PROMPTS.json TOKENS [AT_LEAST]` prints what `generate` says to each
prompt, in float32, as JSON: the ids of the prompt and of the answer, and the seconds that each took.

PROMPTS.json is a list of `{"pictures": [paths], "text": str}`; the first is asked once more beforehand, to warm up.
"""

import json
import sys
import time

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor


def main(folder: str, prompts: list[dict], max_new_tokens: int, min_new_tokens: int = 0):
    model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    answers = []
    for prompt in [prompts[0], *prompts]:
        start = time.perf_counter()
        content = [{"type": "image", "image": Image.open(path)} for path in prompt["pictures"]]
        content.append({"type": "text", "text": prompt["text"]})
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        length = inputs["input_ids"].shape[1]
        options = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "max_new_tokens": max_new_tokens}
        options |= {"min_new_tokens": min_new_tokens} if min_new_tokens else {}
        ids = model.generate(**inputs, **options)[0, length:].tolist()
        seconds = time.perf_counter() - start
        answers.append({"prompt_ids": inputs["input_ids"][0].tolist(), "answer_ids": ids, "seconds": seconds})
    print(json.dumps(answers[1:]))


if __name__ == "__main__":
    with open(sys.argv[2], encoding="utf-8") as file:
        main(sys.argv[1], json.load(file), *map(int, sys.argv[3:]))
