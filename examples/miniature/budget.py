"""Where names are lost on the way from a picture to an answer, stage by stage.

`python budget.py WORK` -> WORK/budget.json and a table: how often the name, and the kind, of a plain drawing by each
unseen artist is told by the nearest class mean on the tower's maps, on the Q-Former's features and behind the trained
Linear, by linear maps that learn names alone, by the nearest word behind the Linear, and by the language model, with
「分かりません」 forbidden and as it is. A stage that loses much is the one to work on.

`python budget.py --readout FOLDER` needs no picture: it lays vectors at known cosines to names before a language model
and asks what it sees. Choose a language model by it before training anything on pictures.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import sentencepiece
import torch
import typer
from align import query_features
from blends import Dictionary, Words, at_cosine
from drawings import COLOURS, listed_concepts
from examine import BATCH, CANDIDATES, Examination, Speaker, encode, read_answers
from pretrain_language import EOS, PAD, Sequences
from queries import PARTS, QUERIES
from questions import NAME, name_answer
from scoring import Scores, mean_and_interval, scores_of, well_formed
from torch.nn.functional import cross_entropy, normalize
from tqdm import tqdm
from transformers import AutoModelForCausalLM, PreTrainedModel

ROW = "trained projection, seed 0"
AT_MOST = 12000  # training pictures, of which the class means are
KINDS = ("plain", "one")  # of training picture
ASKED_FOR = ("name", "kind")
TOWER, QFORMER, CLASSIFIER, TO_WORDS, LINEAR, WORD, NAMED, SAID = (
    "the tower's maps, nearest class mean",
    "nearest class mean of what the Linear sees",  # a row of the table, too
    "linear classifier of what the Linear sees",
    "linear map of it to the words, trained alone",
    "behind the Linear, nearest class mean",
    "behind the Linear, nearest word",
    "what the language model says, 分かりません forbidden",
    "what the language model says",
)
STEPS_ALONE, BATCH_ALONE, RATE_ALONE = 300, 2048, 0.02
COSINES, TRIES = (1.0, 0.6, 0.4, 0.3), 300
MARKED, TOLD_AT = 0.8, 40.0  # how much of its mark a place has, and its norm, in the middle of those of `blends.py`
PROBES, HELD_OUT = 1500, 300  # vectors by which the linear readout is estimated, and by which it is tried
Stages = dict[str, dict[str, dict[str, list[float]]]]
"""`stage -> artist -> "name" or "kind" -> [mean, low, high]`."""

# ---------------------------------------------------------------------------------------------------------------------
# from picture to answer


class Views:
    """Listed things: training pictures of one of them, and the unseen artists' plain ones that are asked about."""

    def __init__(self, work: Path):
        self.examination = Examination(work)
        self.concepts = list(self.examination.concepts.values())
        views, drawings = self.examination.views, self.examination.drawings
        numbers = {concept.name: number for number, concept in enumerate(self.concepts)}
        first = [drawings[view.drawings[0]] for view in views]
        self.names = np.array([numbers[drawing.concept] if drawing.listed else -1 for drawing in first])
        self.artists = np.array([drawing.artist for drawing in first])
        taught = np.flatnonzero([view.training and view.kind in KINDS for view in views])
        taught = taught[self.names[taught] >= 0]
        chosen = np.random.default_rng(0).choice(taught, min(AT_MOST, len(taught)), replace=False)
        self.taught = np.sort(chosen)
        self.asked = np.array([each.view for each in self.examination.asked["name"]])

    def cells(self, scores: dict[str, Scores]) -> dict[str, dict[str, list[float]]]:
        cells: dict[str, dict[str, list[float]]] = {}
        for artist in dict.fromkeys(self.artists[self.asked]):
            views = np.flatnonzero(self.artists == artist)
            of_artist = {measure: mean_and_interval([each.about(views)]) for measure, each in scores.items()}
            cells[str(artist)] = {m: [round(v, 4) for v in cell] for m, cell in of_artist.items() if cell}
        return cells

    def guessed(self, guesses: np.ndarray) -> dict[str, dict[str, list[float]]]:
        """Cells of guesses, numbers of concepts, about the asked pictures."""
        kinds, truth = np.array([concept.kind for concept in self.concepts]), self.names[self.asked]
        hits = {"name": guesses == truth, "kind": kinds[guesses] == kinds[truth]}
        nothing = np.zeros(len(truth), int)
        return self.cells({m: Scores(hit.astype(float), self.asked, nothing) for m, hit in hits.items()})


@torch.no_grad()
def features_of(model: Any, maps: np.ndarray, rows: np.ndarray) -> dict[str, torch.Tensor]:
    """Stage -> a vector of the thing in each picture; "tower", "qformer" and "linear"."""
    stages: dict[str, list[torch.Tensor]] = {"tower": [], "qformer": [], "linear": []}
    for start in tqdm(range(0, len(rows), BATCH), desc="features", mininterval=10):
        part = torch.from_numpy(maps[rows[start : start + BATCH]]).float()
        first = query_features(model, part)[:, PARTS["first"]].mean(1)
        stages["tower"].append(part.mean(1))
        stages["qformer"].append(first)
        stages["linear"].append(model.model.language_projection(first))
    return {stage: torch.cat(parts) for stage, parts in stages.items()}


def nearest_mean(taught: torch.Tensor, labels: np.ndarray, asked: torch.Tensor, standardised: bool) -> np.ndarray:
    """The class whose mean has the greatest cosine to each asked vector, after the taught ones' mean is taken off;
    `standardised`: divided by their deviation, channel by channel, as channels of a tower are of very unlike size."""
    scale = taught.std(0).clamp(min=1e-6) if standardised else torch.ones(())
    mean, numbers = taught.mean(0), torch.from_numpy(labels)
    taught, asked = normalize((taught - mean) / scale, dim=1), normalize((asked - mean) / scale, dim=1)
    sums = torch.zeros(int(numbers.max()) + 1, taught.shape[1]).index_add_(0, numbers, taught)
    return (asked @ normalize(sums, dim=1).T).argmax(1).numpy()


def read_linearly(taught: torch.Tensor, labels: np.ndarray, asked: torch.Tensor, words: torch.Tensor) -> np.ndarray:
    """What a linear map to `words` `(names, n)` says of each asked vector; with the identity for words it is a free
    classifier. It learns names alone and sees each picture some fifty times, which is what a Linear could learn of the
    names if it had nothing else to tell and no language model to go through."""
    torch.manual_seed(0)
    mean = taught.mean(0)
    scale, numbers = (taught - mean).norm(dim=1).mean(), torch.from_numpy(labels)
    taught, asked = (taught - mean) / scale, (asked - mean) / scale
    layer = torch.nn.Linear(taught.shape[1], words.shape[1])
    torch.nn.init.zeros_(layer.weight), torch.nn.init.zeros_(layer.bias)
    optimizer = torch.optim.AdamW(layer.parameters(), weight_decay=0.0)
    for step in range(STEPS_ALONE):
        optimizer.param_groups[0]["lr"] = RATE_ALONE * (1 - step / STEPS_ALONE)
        batch = torch.randint(0, len(taught), (BATCH_ALONE,))
        cross_entropy(layer(taught[batch]) @ words.T, numbers[batch]).backward()
        optimizer.step(), optimizer.zero_grad()
    with torch.no_grad():
        return (layer(asked) @ words.T).argmax(1).numpy()


def words_of(folder: Path, embedding: Any, concepts: Sequence) -> Words:
    """What the words of a language model's folder are as vectors."""
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))
    return Dictionary(pieces.encode, list(concepts), len(embedding.weight)).words(embedding)


def stages_of(work: Path) -> Stages:
    """The error budget of the projection of seed 0."""
    views, speaker = Views(work), CANDIDATES[ROW].speaker(work)
    model = speaker.model
    maps = np.load(work / "eyes" / "maps.npy", mmap_mode="r")
    taught, asked = (features_of(model, maps, rows) for rows in (views.taught, views.asked))
    labels = views.names[views.taught]
    names = words_of(work / "language", model.get_input_embeddings(), views.concepts).names[:-2]
    seen = (taught["qformer"], labels, asked["qformer"])
    behind = normalize(asked["linear"] - taught["linear"].mean(0), dim=1).numpy()
    guesses = {
        TOWER: nearest_mean(taught["tower"], labels, asked["tower"], standardised=True),
        QFORMER: nearest_mean(*seen, standardised=False),
        CLASSIFIER: read_linearly(*seen, words=torch.eye(len(names))),
        TO_WORDS: read_linearly(*seen, words=torch.from_numpy(names)),
        LINEAR: nearest_mean(taught["linear"], labels, asked["linear"], standardised=False),
        WORD: (behind @ names.T).argmax(1),
    }
    stages = {title: views.guessed(guess) for title, guess in guesses.items()}
    return stages | {NAMED: said(views, named(speaker, views)), SAID: said(views, read_answers(work)[ROW])}


def named(speaker: Speaker, views: Views) -> dict[str, dict[str, Any]]:
    """The answers where nothing is refused, from here on."""
    examination = views.examination
    speaker.model.generation_config.begin_suppress_tokens = [speaker.unknown]
    features = encode(speaker.model, examination.work / "eyes", views.asked.tolist())
    of_views = dict(zip(views.asked.tolist(), features, strict=True))
    return {exam: vars(speaker.hold(examination.asked[exam], of_views)) for exam in ASKED_FOR}


def said(views: Views, answers: dict[str, dict[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Names and kinds, each asked for, as the table has them."""
    examination, exams = views.examination, {exam: answers[exam] for exam in ASKED_FOR}
    scores = scores_of(exams, examination.asked, examination.concepts, well_formed(views.concepts))
    return views.cells({measure: scores[measure] for measure in ASKED_FOR})


# ---------------------------------------------------------------------------------------------------------------------
# the language model alone


class Reader:
    """A language model that is asked what it sees, with vectors of its own words in the places of a picture."""

    def __init__(self, folder: Path):
        self.concepts = listed_concepts()
        self.tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))
        self.model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.words = words_of(folder, self.model.get_input_embeddings(), self.concepts)
        prompt = Sequences(self.tokenizer, self.concepts, []).chat([([np.zeros(0)], NAME, "")])
        ((self.start, _),) = prompt.pictures
        self.prompt = torch.tensor(prompt.ids[:-1])  # without the end of the empty answer

    def shown(self, vectors: np.ndarray) -> torch.Tensor:
        """The prompt's embeddings where `vectors` `(n, width)` tell the only thing; all else is told clearly: one
        thing, of many colours, on white."""
        words = self.words
        told = {
            "second": words.names[-1], "first colour": words.colours[-1], "second colour": words.colours[-1],
            "ground": words.colours[COLOURS.index("白")], "count": words.counts[0],
            "arrangement": words.arrangements[0],
        }  # fmt: skip
        places = np.zeros((len(vectors), QUERIES, vectors.shape[1]), np.float32)
        for (part, where), mark in zip(PARTS.items(), words.marks, strict=True):
            places[:, where] = (told.get(part, vectors) + MARKED * mark).reshape(-1, 1, vectors.shape[1])
        embeddings = self.model.get_input_embeddings()(self.prompt).repeat(len(vectors), 1, 1)
        embeddings[:, self.start : self.start + QUERIES] = torch.from_numpy(places * TOLD_AT)
        return embeddings

    @torch.no_grad()
    def say(self, vectors: np.ndarray) -> list[str]:
        said = []
        for part in self._parts(vectors):
            made = self.model.generate(
                inputs_embeds=part, attention_mask=torch.ones(part.shape[:2], dtype=torch.long), max_new_tokens=16,
                do_sample=False, pad_token_id=PAD, eos_token_id=EOS,
            )  # fmt: skip
            said += [self.tokenizer.decode([t for t in ids if t not in (PAD, EOS)]) for ids in made.tolist()]
        return said

    @torch.no_grad()
    def states(self, vectors: np.ndarray) -> np.ndarray:
        """The final hidden states of which the first token of the answer is told."""
        body = getattr(self.model, self.model.base_model_prefix)
        return torch.cat([body(inputs_embeds=p).last_hidden_state[:, -1] for p in self._parts(vectors)]).numpy()

    def _parts(self, vectors: np.ndarray) -> Iterator[torch.Tensor]:
        for start in range(0, len(vectors), BATCH):
            yield self.shown(vectors[start : start + BATCH])


def rank(singular_values: np.ndarray) -> float:
    """Participation ratio: how many equal singular values would be as much."""
    return float(singular_values.sum() ** 2 / (singular_values**2).sum())


def linear_readout(reader: Reader, rng: np.random.Generator) -> dict[str, float]:
    """The linear map from a name vector to the state of which the answer begins, fitted to random unit vectors: its
    effective rank, that of the names themselves, and the share of the state's variance that the map explains."""
    names = reader.words.names[:-2]
    vectors = rng.standard_normal((PROBES + HELD_OUT, names.shape[1])).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    states = reader.states(vectors)
    mean = states[:PROBES].mean(0)
    # A constant beside the vectors would be as well; the mean of random directions is nearly nothing.
    matrix = np.linalg.lstsq(vectors[:PROBES], states[:PROBES] - mean, rcond=None)[0]
    rest, left = states[PROBES:] - mean, states[PROBES:] - mean - vectors[PROBES:] @ matrix
    return {
        "rank": rank(np.linalg.svd(matrix, compute_uv=False)),
        "rank of the names": rank(np.linalg.svd(names - names.mean(0), compute_uv=False)),
        "explained": float(1 - (left**2).sum() / (rest**2).sum()),
    }


def readout(folder: Path) -> dict[str, Any]:
    """What a language model reads of names alone: `said`, cosine -> how often the name is said; `nearest`, how often
    it is the nearest one at all; and [`linear_readout`]."""
    reader, rng = Reader(folder), np.random.default_rng(3)
    names, result = reader.words.names[:-2], {"nearest": {}, "said": {}}
    for cosine in COSINES:
        meant = rng.integers(len(names), size=TRIES)
        vectors = np.stack([at_cosine(names[number], cosine, rng) for number in meant])
        truth = [name_answer(reader.concepts[number].name) for number in meant]
        result["nearest"][str(cosine)] = float(((vectors @ names.T).argmax(1) == meant).mean())
        hits = [said == true for said, true in zip(reader.say(vectors), truth, strict=True)]
        result["said"][str(cosine)] = float(np.mean(hits))
    return result | linear_readout(reader, rng)


# ---------------------------------------------------------------------------------------------------------------------


def print_stages(stages: Stages) -> None:
    artists = list(next(iter(stages.values())))
    print(f"{'name, kind: per cent':44}", *(f"{artist:>14}" for artist in artists))
    for title, cells in stages.items():
        shares = [", ".join(f"{100 * cells[a][q][0]:.1f}" for q in ("name", "kind")) for a in artists]
        print(f"{title:44}", *(f"{share:>14}" for share in shares))


def print_readout(result: dict[str, Any]) -> None:
    for cosine, share in result["said"].items():
        print(f"at cosine {cosine}: said {100 * share:.1f} %, nearest {100 * result['nearest'][cosine]:.1f} %")
    print(
        f"linear readout: effective rank {result['rank']:.0f}, names need {result['rank of the names']:.0f}; "
        f"it explains {100 * result['explained']:.0f} % of the state"
    )


def budget(
    work: Annotated[Path | None, typer.Argument(help="folder for everything the recipe makes")] = None,
    folder: Annotated[
        Path | None, typer.Option("--readout", help="only try this language model, by its folder")
    ] = None,
) -> None:
    """Tell what each stage loses."""
    torch.manual_seed(0)
    if folder:
        print_readout(readout(folder))
        return
    if not work:
        raise typer.BadParameter("give the folder that the recipe works in, or --readout FOLDER")
    stages, alone = stages_of(work), readout(work / "language")
    print_stages(stages)
    print_readout(alone)
    text = json.dumps({"stages": stages, "readout": alone}, ensure_ascii=False, indent=1)
    (work / "budget.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(budget)
