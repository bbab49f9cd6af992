"""Stage 5: what the finished model says about pictures by artists that no stage has seen.

`python examine.py WORK` asks every model of the recipe the same questions (`questions.py`) and writes a file for each
into WORK/answers/; `report.py` makes the tables and the pictures of them. `--run run-1` asks one of them.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from align import SEEDS, load, query_features, with_projection
from drawings import listed_concepts, read_drawings
from questions import EXAMS, Asked, asked
from scenes import read_views
from scoring import eating_said
from tqdm import tqdm
from wordings import UNKNOWN

from jminigpt4 import JMiniGPT4ForConditionalGeneration, JMiniGPT4Processor
from jminigpt4.checkpoint import finished_file

BATCH = 128
LONGEST = 48  # tokens of an answer
CONTROL_EXAMS = ("name", "kind", "colour", "edible", "description")  # what the table's other rows are asked


@dataclass
class Said:
    """Answers of one model in one exam: `answers[i][t]` to turn t of conversation i, and how sure it was of each.

    `sure` is the probability of the whole greedy answer to the last turn; `unknown` that of the first token of
    「すみません、それは分かりません。」 in its place.
    """

    answers: list[list[str]]
    sure: list[float]
    unknown: list[float]


class Speaker:
    """A model with its processor, asked greedily in batches."""

    def __init__(self, model: JMiniGPT4ForConditionalGeneration, processor: JMiniGPT4Processor):
        self.model, self.processor = model, processor
        self.unknown = processor.tokenizer(UNKNOWN, add_special_tokens=False)["input_ids"][0]

    def hold(self, conversations: Sequence[Asked], features: dict[int, torch.Tensor]) -> Said:
        """Holds conversations about pictures, given as view -> query features `(queries, size)`."""
        said = Said([[] for _ in conversations], [0.0] * len(conversations), [0.0] * len(conversations))
        for turn in range(max((len(each.questions) for each in conversations), default=0)):
            due = [i for i, each in enumerate(conversations) if turn < len(each.questions)]
            prompts = {i: self._prompt(conversations[i], said.answers[i], turn) for i in due}
            due.sort(key=lambda i: len(prompts[i]))  # so that little is padded
            for start in range(0, len(due), BATCH):
                part = due[start : start + BATCH]
                pictures = torch.stack([features[conversations[i].view] for i in part])
                for i, (text, sure, unknown) in zip(
                    part, self._say([prompts[i] for i in part], pictures), strict=True
                ):
                    said.answers[i].append(text)
                    said.sure[i], said.unknown[i] = round(sure, 6), round(unknown, 6)
        return said

    def _prompt(self, conversation: Asked, answers: list[str], turn: int) -> list[int]:
        messages: list[dict[str, Any]] = []
        for number, question in enumerate(conversation.questions[: turn + 1]):
            picture = [{"type": "image"}] if number == 0 else []
            messages.append({"role": "user", "content": [*picture, {"type": "text", "text": question}]})
            if number < turn:
                messages.append({"role": "assistant", "content": answers[number]})
        return self.processor.encode_segments(messages, add_generation_prompt=True)["input_ids"]

    @torch.no_grad()
    def _say(self, prompts: list[list[int]], pictures: torch.Tensor) -> list[tuple[str, float, float]]:
        length, pad = max(map(len, prompts)), self.processor.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (length - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        made = self.model.generate(
            input_ids=ids, attention_mask=mask, query_features=pictures, max_new_tokens=LONGEST, do_sample=False,
            return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
        answers = made.sequences[:, length:]
        shares = torch.stack(made.logits, dim=1).float().softmax(-1)
        chosen = shares.gather(2, answers[..., None])[..., 0]
        chosen = torch.where(answers == pad, torch.ones(()), chosen).prod(1)
        texts = self.processor.batch_decode(answers, skip_special_tokens=True)
        said = [self.processor.trim_answer(text) for text in texts]
        return list(zip(said, chosen.tolist(), shares[:, 0, self.unknown].tolist(), strict=True))


class Examination:
    """The pictures of the unseen artists with what is asked about them."""

    def __init__(self, work: Path):
        self.work = work
        self.drawings, self.views = read_drawings(work / "drawings.jsonl"), read_views(work / "eyes" / "views.jsonl")
        self.concepts = {c.name: c for c in listed_concepts()}
        self.asked = {exam: asked(exam, self.views, self.drawings, self.concepts) for exam in EXAMS}

    def features(self, model: JMiniGPT4ForConditionalGeneration, eyes: str) -> dict[int, torch.Tensor]:
        """Query features of all pictures that are asked about, by view."""
        views = sorted({each.view for conversations in self.asked.values() for each in conversations})
        return dict(zip(views, encode(model, self.work / eyes, self._rows(views, eyes)), strict=True))

    def _rows(self, views: list[int], eyes: str) -> list[int]:
        """The rows of views in the maps of some eyes; those with random weights have seen fewer training pictures."""
        if eyes == "eyes":
            return views
        theirs = [row for row, view in enumerate(read_views(self.work / eyes / "views.jsonl")) if not view.training]
        ours = [number for number, view in enumerate(self.views) if not view.training]
        return [dict(zip(ours, theirs, strict=True))[view] for view in views]


@torch.no_grad()
def encode(model: JMiniGPT4ForConditionalGeneration, eyes: Path, rows: list[int]) -> torch.Tensor:
    """Query features of the pictures in some rows of a folder's feature maps."""
    maps = np.load(eyes / "maps.npy", mmap_mode="r")
    parts = [torch.from_numpy(maps[rows[i : i + BATCH]]).float() for i in range(0, len(rows), BATCH)]
    return torch.cat([query_features(model, part) for part in parts])


def most_frequent(examination: Examination) -> dict[str, Said]:
    """The commonest true answer to each question, whatever the picture: what can be had by guessing."""
    said = {}
    for exam in CONTROL_EXAMS:
        truth = [each.truth[-1] or "" for each in examination.asked[exam]]
        common = _most_frequent(truth, ENDINGS.get(exam, str))
        said[exam] = Said([[common]] * len(truth), [1.0] * len(truth), [0.0] * len(truth))
    return said


# What counts of an answer that begins with a name.
ENDINGS: dict[str, Callable[[str], str | None]] = {
    "kind": lambda answer: answer.rpartition("は")[2],
    "edible": eating_said,
}


def _most_frequent(answers: list[str], ending: Callable[[str], str | None]) -> str:
    """An answer whose ending is the commonest one."""
    endings = [ending(answer) for answer in answers]
    return answers[endings.index(Counter(endings).most_common(1)[0][0])]


@dataclass(frozen=True)
class Candidate:
    """A row of the table: a checkpoint, the run its projection comes from, the eyes, and what it is asked."""

    folder: str
    run: str = ""
    eyes: str = "eyes"
    exams: tuple[str, ...] = CONTROL_EXAMS

    @property
    def name(self) -> str:
        """What its run, or else its folder, is called: `run-1`, `everything`."""
        return self.run or self.folder

    def is_there(self, work: Path) -> bool:
        return (work / self.run / "projection.safetensors").exists() if self.run else (work / self.folder).exists()

    def speaker(self, work: Path) -> Speaker:
        model, processor = load(work / self.folder, seed=None if self.folder == "everything" else 0)
        return Speaker(with_projection(model, work / self.run) if self.run else model, processor)

    def answers(self, work: Path, examination: Examination) -> dict[str, Said]:
        speaker = self.speaker(work)
        features = examination.features(speaker.model, self.eyes)
        exams = tqdm(self.exams, desc=self.name)
        return {exam: speaker.hold(examination.asked[exam], features) for exam in exams}


CANDIDATES = {
    **{
        f"trained projection, seed {seed}": Candidate("assembled", f"run-{seed}", exams=tuple(EXAMS)) for seed in SEEDS
    },
    "untrained projection": Candidate("assembled"),
    "random vision, trained projection": Candidate("assembled-random", "run-random-0", "eyes-random"),
    "everything fine-tuned": Candidate("everything"),
    "another language model: Llama-like": Candidate("assembled-llama", "run-llama-0"),
    "another language model: GPT-2-like": Candidate("assembled-gpt2", "run-gpt2-0"),
}


MOST_FREQUENT = "most frequent answer"


def examine(
    work: Annotated[Path, typer.Argument(help="folder for everything the recipe makes")],
    run: Annotated[str, typer.Option(help="only the model with the projection of this run, or of this folder")] = "",
) -> None:
    """Ask all models that are there; answers that are there already are kept."""
    (folder := work / "answers").mkdir(exist_ok=True)
    examination = Examination(work)
    for candidate in CANDIDATES.values():
        path = folder / f"{candidate.name}.json"
        if run in ("", candidate.name) and candidate.is_there(work) and not path.exists():
            _write(path, candidate.answers(work, examination))
    if not run:
        _write(folder / f"{MOST_FREQUENT}.json", most_frequent(examination))


def _write(path: Path, said: dict[str, Said]) -> None:
    with finished_file(path) as part:
        part.write_text(json.dumps({exam: vars(each) for exam, each in said.items()}, ensure_ascii=False), "utf-8")


def read_answers(work: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Row of the table -> exam -> the fields of [`Said`], in the table's order."""
    files = {row: candidate.name for row, candidate in CANDIDATES.items()} | {MOST_FREQUENT: MOST_FREQUENT}
    paths = {row: work / "answers" / f"{name}.json" for row, name in files.items()}
    return {row: json.loads(path.read_text(encoding="utf-8")) for row, path in paths.items() if path.exists()}


if __name__ == "__main__":
    typer.run(examine)
