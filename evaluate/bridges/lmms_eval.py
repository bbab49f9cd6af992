"""lmms-eval: a checkpoint of this package as one of its models, and JMMMU as one of its tasks.

    lmms-eval --model jminigpt4 --model_args pretrained=DIR --tasks jmmmu_jminigpt4 --include_path TASKS --batch_size 1

`TASKS` is the folder that [`write_tasks`] makes; the model is found by the entry point of this package.
"""

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmms_eval.api.model import lmms

from .llm_jp import VLM

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest

TASKS = Path(__file__).parent / "lmms_eval_tasks"
JMMMU_FILES = "hf://datasets/JMMMU/JMMMU/*/test-*.parquet"


class JMiniGPT4(lmms):
    """A checkpoint of this package as lmms-eval knows models.

    Args:
        pretrained: A checkpoint folder, or `user/name` on the Hub.
        batch_size: Accepted as lmms-eval gives it; the framework's requests are answered all at once.
    """

    def __init__(self, pretrained: str, batch_size: int | str = 1, **kwargs: Any):
        super().__init__()
        self._model = VLM(pretrained)

    def generate_until(self, requests: list) -> list[str]:
        """The answers to lmms-eval's requests, in their order; those with the same settings go together."""
        answers: list[str] = [""] * len(requests)
        groups: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(place)
        for places in groups.values():
            texts, pictures = [], []
            for place in places:
                text, options, doc_to_visual, doc_id, task, split = requests[place].args
                texts.append(text)
                pictures.append(doc_to_visual(self.task_dict[task][split][doc_id]))
            generated = self._model.batch_generate(pictures, texts, _Options(options))
            for place, answer in zip(places, generated, strict=True):
                answers[place] = answer
        return answers

    def loglikelihood(self, requests: list) -> list[tuple[float, bool]]:
        """Not offered: JMMMU and the other Japanese tasks are generated."""
        raise NotImplementedError("jminigpt4 answers lmms-eval's tasks of type generate_until only.")

    def generate_until_multi_round(self, requests: list) -> list[str]:
        """Not offered: JMMMU and the other Japanese tasks are single questions."""
        raise NotImplementedError("jminigpt4 answers lmms-eval's tasks of type generate_until only.")


class _Options:
    """lmms-eval's generation settings, a mapping, with attributes as llm-jp-eval-mm's have them."""

    def __init__(self, options: dict[str, Any]):
        self.__dict__.update(options)


def manifest() -> "ModelManifest":
    """What the entry point group `lmms_eval.models` gives to lmms-eval."""
    # Not above: importing lmms-eval's models is what looks for this function, here and in other packages.
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="jminigpt4", simple_class_path=f"{__name__}.JMiniGPT4")


def write_tasks(folder: str | os.PathLike, data: str | os.PathLike | None = None) -> Path:
    """Makes a folder for `--include_path`, and returns it.

    Args:
        folder: Where; it must not exist.
        data: Local copy of JMMMU, a folder with a folder of Parquet a subject; the Hub's files by default.

    Raises:
        FileExistsError: The folder exists.
    """
    shutil.copytree(TASKS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    task = Path(folder) / "jmmmu_jminigpt4.yaml"
    if data is not None:
        text = task.read_text(encoding="utf-8")
        task.write_text(text.replace(JMMMU_FILES, f"{Path(data).resolve()}/*/test*.parquet"), encoding="utf-8")
    return Path(folder)
