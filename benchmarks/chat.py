"""A conversation about one picture: this package's session, the original's manner and `pipeline`, side by side.

    python benchmarks/chat.py --quick     random models of 1.4 and of 57 million parameters: a minute
    python benchmarks/chat.py             the same, more repeats
    python benchmarks/chat.py --model D   a checkpoint folder besides (its answers are read, not forced to a length)

Three ways to ask the same five questions with the same weights in float32, taking turns in one process:

- `ours`: `ChatSession`, which keeps query features and KV cache and reads the new tokens only;
- `original`: the manner of MiniGPT-4's `Chat`: the picture's features are kept, every turn reads the whole dialogue;
- `pipeline`: `pipeline("image-text-to-text")` on the whole list of messages: the picture is encoded every turn too,
  and what was said is tokenised anew (random models speak text that takes fewer tokens then, so it reads less).

Times are CPU seconds of the process until the first token of a turn, the least of the repeats. The last line is JSON:
`prefill_ratio` is the original's time over ours at turn 5 of the 57-million model, `equal_tokens` whether all answers
of `ours` are, greedily and token for token, those of `original`.
"""

import argparse
import copy
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from small_models import small_config
from transformers import pipeline

from jminigpt4 import JMiniGPT4ForConditionalGeneration, JMiniGPT4ImageProcessor, JMiniGPT4Processor
from jminigpt4.chat import ChatSession
from jminigpt4.convert.formats import chat_template_for, prompt_format
from jminigpt4.convert.tokenizer import prepare_tokenizer
from jminigpt4.inference.loading import be_quiet, load_checkpoint

ROOT = Path(__file__).resolve().parent.parent
QUESTIONS = (
    "この絵には何が写っていますか?くわしく教えてください。",
    "それは何色ですか?ほかの色もありますか?",
    "どんなところで見られるものですか?",
    "同じ仲間には何がありますか?いくつか教えてください。",
    "子どもに説明するように言ってください。",
)
ANSWER_TOKENS = 80


def make_model(size: str) -> tuple[JMiniGPT4ForConditionalGeneration, JMiniGPT4Processor]:
    """Random weights, seeded: `small` has a language model of 1.4 million, `medium` one of 57."""
    hidden, layers, heads, width = {"small": (192, 3, 3, 64), "medium": (768, 8, 12, 256)}[size]
    tokenizer, image_token_id = prepare_tokenizer(ROOT / "tests" / "reference" / "tokenizer", vocab_size=512)
    torch.manual_seed(0)
    config = small_config(
        vision=(width, 4, 4),
        qformer=(width, 4, 4),
        language=(hidden, layers, heads),
        image_token_id=image_token_id,
        vocab_size=513,
        max_position_embeddings=1024,
    )
    model = JMiniGPT4ForConditionalGeneration(config).eval()
    model.generation_config.update(eos_token_id=None, pad_token_id=0, do_sample=False, max_new_tokens=ANSWER_TOKENS)
    chosen = prompt_format("rinna-4b")
    processor = JMiniGPT4Processor(
        JMiniGPT4ImageProcessor(), tokenizer, chat_template=chat_template_for(chosen, tokenizer)
    )
    return model, processor


def make_picture() -> Image.Image:
    rows = torch.arange(256, dtype=torch.float32)
    pixels = torch.stack([rows[:, None] + 0 * rows, 0 * rows[:, None] + rows, (rows[:, None] + rows) / 2], -1)
    return Image.fromarray(pixels.to(torch.uint8).numpy())


def cpu_seconds(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


class Dialogue:
    """Five turns with one model, and the three ways to the first token of each."""

    def __init__(self, model: JMiniGPT4ForConditionalGeneration, processor: JMiniGPT4Processor):
        self.model = model
        self.processor = processor
        self.picture = make_picture()
        self.session = ChatSession(model, processor)
        self.ask: Any = pipeline("image-text-to-text", model=model, processor=processor)
        self.features = self._encode()

    @torch.no_grad()
    def _encode(self) -> torch.Tensor:
        pixel_values = self.processor.image_processor(images=[self.picture], return_tensors="pt").pixel_values
        return self.model.get_query_features(pixel_values)

    def original(self, token_ids: list[int], max_new_tokens: int) -> list[int]:
        """The whole dialogue read anew, with the picture's features kept."""
        ids = torch.tensor([token_ids])
        new = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            query_features=self.features,
            max_new_tokens=max_new_tokens,
            do_sample=False,
        )
        return new[0, len(token_ids) :].tolist()

    def turn(self, number: int, repeats: int) -> dict[str, Any]:
        """Times one turn in the three ways, then takes it for good."""
        question, pictures = QUESTIONS[number], [self.picture] if number == 0 else []
        before = self.session.token_ids()
        times: dict[str, list[float]] = {"ours": [], "original": [], "pipeline": []}
        for _ in range(repeats):
            # A question that was asked and taken back would find its own prompt in the cache.
            session = copy.copy(self.session)
            session._cache, session.turns = copy.deepcopy(self.session._cache), list(self.session.turns)
            session._query_features = dict(self.session._query_features)
            times["ours"].append(cpu_seconds(lambda s=session: s.ask(question, pictures, max_new_tokens=1)))
            token_ids = before + session.turns[-1].prompt_ids
            times["original"].append(cpu_seconds(lambda ids=token_ids: self.original(ids, 1)))
            messages = [*self.session.messages(), *session.turns[-1].messages()[:1]]
            options = {"max_new_tokens": 1, "do_sample": False, "return_full_text": False}
            times["pipeline"].append(cpu_seconds(lambda m=messages, o=options: self.ask(text=m, **o)))
        self.session.ask(question, pictures)
        turn = self.session.turns[-1]
        said = turn.answer_ids or []
        equal = self.original(before + turn.prompt_ids, ANSWER_TOKENS)[: len(said)] == said
        return {
            "prompt_tokens": len(before) + len(turn.prompt_ids),
            "new_tokens": len(turn.prompt_ids),
            "prefilled_tokens": turn.prefilled_tokens,
            "equal": equal,
            **{f"{way}_seconds": min(seconds) for way, seconds in times.items()},
        }


def race(name: str, dialogue: Dialogue, repeats: int) -> list[dict[str, Any]]:
    parameters = sum(each.numel() for each in dialogue.model.model.language_model.parameters())
    print(f"\n{name}: language model of {parameters / 1e6:.1f} million parameters, float32, one thread")
    print("turn  tokens  new  prefilled   ours s  original s  pipeline s   original/ours  pipeline/ours")
    turns = []
    for number in range(len(QUESTIONS)):
        turn = dialogue.turn(number, repeats)
        ours, original, piped = (turn[f"{way}_seconds"] for way in ("ours", "original", "pipeline"))
        print(
            f"{number + 1:4}{turn['prompt_tokens']:8}{turn['new_tokens']:5}{turn['prefilled_tokens']:11}"
            f"{ours:9.4f}{original:12.4f}{piped:12.4f}{original / ours:16.2f}{piped / ours:15.2f}"
        )
        turns.append(turn)
    return turns


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few repeats: at most a minute")
    parser.add_argument("--model", help="a checkpoint folder to race besides")
    parser.add_argument("--repeats", type=int, help="timed rounds of each turn")
    options = parser.parse_args()
    torch.set_num_threads(1)
    be_quiet()
    repeats = options.repeats or (3 if options.quick else 9)
    dialogues = {size: Dialogue(*make_model(size)) for size in ("small", "medium")}
    if options.model:
        dialogues[options.model] = Dialogue(*load_checkpoint(options.model, "cpu", "float32"))
    races = {name: race(name, dialogue, repeats) for name, dialogue in dialogues.items()}
    last = {name: turns[-1] for name, turns in races.items()}
    print(
        json.dumps(
            {
                "equal_tokens": all(turn["equal"] for turns in races.values() for turn in turns),
                "prefill_ratio": last["medium"]["original_seconds"] / last["medium"]["ours_seconds"],
                "prefill_ratio_pipeline": last["medium"]["pipeline_seconds"] / last["medium"]["ours_seconds"],
                "prefill_ratio_small": last["small"]["original_seconds"] / last["small"]["ours_seconds"],
                "prompt_tokens": last["medium"]["prompt_tokens"],
                "prefilled_tokens": last["medium"]["prefilled_tokens"],
            }
        )
    )


if __name__ == "__main__":
    main()
