"""llm-jp-eval-mm: answers in its `prediction.jsonl` layout, and a checkpoint of this package as one of its models.

Its `eval-mm evaluate` (and `examples/sample.py` of older versions) scores answers that lie in
`RESULT/TASK/MODEL/prediction.jsonl`; a line for every item of the task, in the task's order.
"""

import importlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ...checkpoint import finished_file
from ...data.pictures import MemoryPicture
from ..benchmarks import Request
from ..items import Item, ask
from ..predictions import Prediction


def _base_class() -> Any:
    """`BaseVLM`, from where the installed version keeps it; older ones do in their `examples/`."""
    for module in ("eval_mm.models.base_vlm", "base_vlm"):
        try:
            return importlib.import_module(module).BaseVLM
        except ImportError:
            continue
    return object  # the framework asks for the methods, not for the class


def export_predictions(
    folder: Path, request: Request, items: Sequence[Item], predictions: Sequence[Prediction], model: str
) -> Path:
    """Writes `FOLDER/TASK/MODEL/prediction.jsonl` and returns its path.

    Raises:
        ValueError: llm-jp-eval-mm has no such task, or it asks all questions and `request` only the first ones.
    """
    task = request.benchmark.task
    if task is None:
        raise ValueError(f"llm-jp-eval-mm has no task for {request.name}.")
    if request.name == "ja-vg-vqa-500" and request.protocol != "llm-jp":
        raise ValueError("llm-jp-eval-mm asks all questions: export --benchmark ja-vg-vqa-500:llm-jp.")
    name = Path(model).name if Path(model).exists() else model
    path = folder / task / name / "prediction.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with finished_file(path) as unfinished, open(unfinished, "w", encoding="utf-8") as file:
        for item, prediction in zip(items, predictions, strict=True):
            answer = item.references[0] if item.references else item.details.get("gpt4_answer", "")
            line = {"question_id": item.id, "text": prediction.answer, "answer": answer, "input_text": item.question}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    return path


class VLM(_base_class()):
    """A checkpoint of this package as llm-jp-eval-mm knows models: put `jminigpt4.evaluate.bridges.llm_jp.VLM` into
    its table of models, under the folder or Hub id of the checkpoint.

    Args:
        model_id: A folder, or `user/name` on the Hub.
    """

    def __init__(self, model_id: str):
        from ...inference.loading import load_checkpoint

        self.model_id = model_id
        self.model, self.processor = load_checkpoint(model_id)

    def generate(self, images: list[Image.Image] | Image.Image | None, text: str, gen_kwargs: Any = None) -> str:
        """The answer to `text` about `images`, which come before it."""
        return self.batch_generate([images], [text], gen_kwargs)[0]

    def batch_generate(
        self,
        images_list: Sequence[list[Image.Image] | Image.Image | None],
        text_list: Sequence[str],
        gen_kwargs: Any = None,
    ) -> list[str]:
        """The answers to many questions; equal picture objects are encoded once.

        Args:
            images_list: Pictures of each question.
            text_list: The questions; marks `<image>` in them are dropped.
            gen_kwargs: The framework's `GenerationConfig`: `max_new_tokens`, `do_sample`, `temperature`, `top_p`,
                `num_beams`.
        """
        from ..generation import Answerer, Generation

        known = ("max_new_tokens", "do_sample", "temperature", "top_p", "num_beams")
        given = {name: getattr(gen_kwargs, name) for name in known if getattr(gen_kwargs, name, None) is not None}
        if not given.get("do_sample"):
            given.pop("temperature", None)
            given.pop("top_p", None)
        items = [_item(str(place), *pair) for place, pair in enumerate(zip(images_list, text_list, strict=True))]
        answerer = Answerer(self.model, self.processor, Generation(**given), items)
        answers = {each.id: each.answer for batch in answerer.answers() for each in batch}
        return [answers[item.id] for item in items]


def _item(name: str, images: list[Image.Image] | Image.Image | None, text: str) -> Item:
    pictures = [images] if isinstance(images, Image.Image) else list(images or [])
    given = tuple(MemoryPicture(f"{id(picture):x}", _png(picture)) for picture in pictures)
    return Item(name, ask(text.replace("<image>", ""), len(given)), given, (), tuple(each.name for each in given))


def _png(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()
