"""Stage 5: what the finished model says about drawings by artists that no stage has seen.

`python examine.py WORK` asks every model of the recipe the same questions about all drawings of the three unseen
artists and writes WORK/answers.json; `report.py` makes the table and the pictures of it.
"""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from align import MUON, SEEDS, load, query_features, with_projection
from corpus import Scene, caption, colour_answer, edible_answer
from drawings import ARTISTS, Concept, Drawing, read_concepts, read_drawings, stated_names
from sacrebleu.metrics import CHRF
from tqdm import tqdm
from vision import TRAINING

from jminigpt4 import JMiniGPT4ForConditionalGeneration, JMiniGPT4Processor

UNSEEN = tuple(a.name for a in ARTISTS if a.role != "train")
QUESTIONS = {
    "name": "何が写ってる?",
    "kind": "何の仲間?",
    "colour": "何色?",
    "edible": "食べられる?",
    "description": "説明して",
}


def reference(question: str, drawing: Drawing, concept: Concept) -> str | None:
    """The true answer, or `None` where a question is not asked (the colour of a drawing of many colours)."""
    scene = Scene(concept, drawing.colour)
    if question == "colour":
        return colour_answer(scene) if drawing.colour else None
    return {
        "name": f"{concept.name}が写っています。",
        "kind": f"{concept.kind}の仲間です。",
        "edible": edible_answer(concept),
        "description": f"これは{caption(scene)}{concept.kind}の仲間です。",
    }[question]


@torch.no_grad()
def answers(
    model: JMiniGPT4ForConditionalGeneration, processor: JMiniGPT4Processor, features: torch.Tensor, question: str
) -> list[str]:
    """Greedy answers to one question about many pictures, from their query features `(n, queries, size)`."""
    content = [{"type": "image"}, {"type": "text", "text": question}]
    messages = [{"role": "user", "content": content}]
    ids = torch.tensor([processor.encode_segments(messages, add_generation_prompt=True)["input_ids"]])
    said = []
    for part in features.split(256):
        prompts = ids.expand(len(part), -1)
        out = model.generate(
            input_ids=prompts, attention_mask=torch.ones_like(prompts), query_features=part, max_new_tokens=24,
            do_sample=False,
        )  # fmt: skip
        texts = processor.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
        said += [processor.trim_answer(text) for text in texts]
    return said


class Examination:
    """The unseen artists' drawings with their feature maps and true answers."""

    def __init__(self, work: Path):
        drawings = read_drawings(work / "drawings.jsonl")
        self.concepts = {c.name: c for c in read_concepts()}
        stated = set(stated_names(drawings))
        asked = [d.concept in stated or d.held_out != "-" for d in drawings]
        self.work, self.places = work, [i for i, d in enumerate(drawings) if d.artist in UNSEEN and asked[i]]
        self.drawings = [drawings[i] for i in self.places]
        self.seen = [i for i, d in enumerate(drawings) if d.artist in TRAINING and d.concept in stated]
        self.seen_drawings = [drawings[i] for i in self.seen]

    def maps(self, folder: str = "features") -> np.ndarray:
        return np.load(self.work / folder / "0.npy", mmap_mode="r")

    def truth(self, question: str) -> list[str | None]:
        return [reference(question, d, self.concepts[d.concept]) for d in self.drawings]


@torch.no_grad()
def encode(model: JMiniGPT4ForConditionalGeneration, maps: np.ndarray, places: list[int]) -> torch.Tensor:
    """Query features of the pictures at `places`."""
    parts = [torch.from_numpy(maps[places[i : i + 256]].copy()).float() for i in range(0, len(places), 256)]
    return torch.cat([query_features(model, part) for part in parts])


def nearest_class_mean(examination: Examination) -> dict[str, list[str]]:
    """No language model: the concept whose mean pooled feature over the training artists is nearest."""
    maps = examination.maps()
    pooled = torch.from_numpy(np.stack([maps[i].astype(np.float32).mean(0) for i in range(len(maps))]))
    pooled = torch.nn.functional.normalize(pooled, dim=1)
    names = sorted({d.concept for d in examination.seen_drawings})
    index = torch.tensor([names.index(d.concept) for d in examination.seen_drawings])
    means = torch.zeros(len(names), pooled.shape[1]).index_add_(0, index, pooled[examination.seen])
    means = torch.nn.functional.normalize(means, dim=1)
    guesses = [names[i] for i in (pooled[examination.places] @ means.T).argmax(1)]
    said = {}
    for key in ("name", "kind", "edible", "description"):
        pairs = [(Drawing(g, "", "", "", ""), examination.concepts[g]) for g in guesses]
        said[key] = [reference(key, drawing, concept) or "" for drawing, concept in pairs]
    return said


def most_frequent(examination: Examination) -> dict[str, list[str]]:
    """The commonest true answer of the training drawings, whatever the picture."""
    said = {}
    for key in QUESTIONS:
        true = [reference(key, d, examination.concepts[d.concept]) for d in examination.seen_drawings]
        (common, _), *_ = Counter(t for t in true if t).most_common(1)
        said[key] = [common] * len(examination.drawings)
    return said


@dataclass(frozen=True)
class Candidate:
    """A row of the table: a checkpoint, the run its projection comes from, and the feature maps it looks at."""

    folder: str
    run: str = ""
    maps: str = "features"

    def is_there(self, work: Path) -> bool:
        return (work / self.run / "projection.safetensors").exists() if self.run else (work / self.folder).exists()

    def answers(self, work: Path, examination: "Examination") -> dict[str, list[str]]:
        model, processor = load(work / self.folder, seed=None if self.folder == "everything" else 0)
        if self.run:
            with_projection(model, work / self.run)
        features = encode(model, examination.maps(self.maps), examination.places)
        return {
            key: answers(model, processor, features, question)
            for key, question in tqdm(QUESTIONS.items(), desc=self.run or self.folder)
        }


WITH_MUON = f"trained projection, Muon, {MUON.steps_per_epoch} steps"
CANDIDATES = {
    **{f"trained projection, seed {seed}": Candidate("assembled", f"run-{seed}") for seed in SEEDS},
    **{f"{WITH_MUON}, seed {seed}": Candidate("assembled", f"run-muon-{seed}") for seed in SEEDS},
    "untrained projection": Candidate("assembled"),
    "random vision, trained projection": Candidate("assembled-random", "run-random-0", "features-random"),
    "everything fine-tuned": Candidate("everything"),
    "another language model: Llama-like": Candidate("assembled-llama", "run-llama-0"),
    "another language model: GPT-2-like": Candidate("assembled-gpt2", "run-gpt2-0"),
}
CONTROLS = {"nearest class mean": nearest_class_mean, "most frequent answer": most_frequent}


def score(said: dict[str, list[str]], examination: Examination, chosen: np.ndarray) -> dict[str, tuple[float, int]]:
    """Question -> (share of exactly right answers, number of drawings); `edible` is the mean over its three answers,
    `description` is chrF (0-100), both to be read against the most frequent answer's row."""
    result = {}
    for key, given in said.items():
        pairs = [(g, t) for g, t, c in zip(given, examination.truth(key), chosen, strict=True) if c and t]
        if not pairs:
            continue
        if key == "description":
            chrf = CHRF().corpus_score([g for g, _ in pairs], [[t for _, t in pairs]]).score
            result[key] = (chrf, len(pairs))
        elif key == "edible":
            of = {t: [g == t for g, true in pairs if true == t] for t in {t for _, t in pairs}}
            result[key] = (float(np.mean([np.mean(hits) for hits in of.values()])), len(pairs))
        else:
            result[key] = (float(np.mean([g == t for g, t in pairs])), len(pairs))
    return result


def examine(
    work: Annotated[Path, typer.Argument(help="folder for everything the recipe makes")],
    only: Annotated[str, typer.Option("--only", help="rows whose name begins so")] = "",
) -> None:
    """Ask all models that are there; rows that are in answers.json already are kept."""
    path = work / "answers.json"
    said = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    examination = Examination(work)
    for row, candidate in CANDIDATES.items():
        if row not in said and row.startswith(only) and candidate.is_there(work):
            said[row] = candidate.answers(work, examination)
            _write(path, said)
    for row, control in CONTROLS.items():
        if row.startswith(only):
            said[row] = control(examination)
    _write(path, said)


def _write(path: Path, said: dict[str, dict[str, list[str]]]) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(said, ensure_ascii=False), encoding="utf-8")
    part.rename(path)


if __name__ == "__main__":
    typer.run(examine)
