"""Stage 2: a Q-Former on the frozen vision tower, with English only (the manner of BLIP-2, arXiv:2301.12597).

`python pretrain_qformer.py WORK` trains query tokens, layer norm, positions and Q-Former on the feature maps of all
training artists' pictures, and writes WORK/qformer, a folder that `jminigpt4.convert` takes.

The caption of a picture is a few English words: the names of one or two things or `something else`, their colours, how
many there are, how they lie, the colour of the ground. BLIP-2's contrastive loss compares what queries say with what
could be said; here the queries of each part (`queries.py`) are compared with all that could be said of any part. The
word embeddings are thrown away. No Japanese occurs here.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from drawings import COLOURS, COLOURS_ENGLISH, Concept, listed_concepts, read_drawings
from pretrain_language import learning_rate, optimizers_of, read_state, take_step, write_state
from queries import ARRANGEMENTS, PARTS, QUERIES, WIDTH
from safetensors.torch import save_file
from scenes import View, read_views
from torch import nn
from torch.nn.functional import cross_entropy, normalize
from tqdm import trange
from transformers import Blip2QFormerConfig, Blip2QFormerModel
from vision import CHANNELS, EARLY_LAYERS, TOKENS

from jminigpt4.checkpoint import finished_folder

STEPS, BATCH, LEARNING_RATE = 1300, 160, 1.2e-3
LAYERS = 2
ASK_EVERY = 400
WEIGHTS = "model.safetensors"
# Part -> what it tells, and how much it counts.
TOLD = {
    "first": ("names", 1.0), "second": ("names", 0.7), "first colour": ("colours", 0.3),
    "second colour": ("colours", 0.3), "ground": ("grounds", 0.2), "count": ("counts", 0.3),
    "arrangement": ("arrangements", 0.2),
}  # fmt: skip
NOT_ASKED = -100


class QueryEncoder(nn.Module):
    """The parts of the finished model between vision tower and projection, under the finished model's names."""

    def __init__(self):
        super().__init__()
        self.vision_layernorm = nn.LayerNorm(CHANNELS, eps=1e-5)
        self.position_embeddings = nn.Parameter(torch.randn(1, TOKENS, CHANNELS) * 0.3)
        self.query_tokens = nn.Parameter(torch.randn(1, QUERIES, WIDTH) * 0.06)
        config = Blip2QFormerConfig(
            hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=8, intermediate_size=2 * WIDTH,
            cross_attention_frequency=2, encoder_hidden_size=CHANNELS, hidden_dropout_prob=0.1,
            attention_probs_dropout_prob=0.05, initializer_range=0.06, use_qformer_text_input=False, vocab_size=1,
            max_position_embeddings=1,
        )  # fmt: skip
        self.qformer = Blip2QFormerModel._from_config(config, attn_implementation="eager")

    def forward(self, maps: torch.Tensor, visible: torch.Tensor | None = None) -> torch.Tensor:
        """`(n, tokens, channels)` -> query features `(n, QUERIES, WIDTH)`; `visible` `(n, tokens)` hides places."""
        encoded = self.vision_layernorm(maps) + self.position_embeddings
        queries = self.query_tokens.expand(len(maps), -1, -1)
        mask = None if visible is None else visible.long()
        outputs = self.qformer(query_embeds=queries, encoder_hidden_states=encoded, encoder_attention_mask=mask)
        return outputs.last_hidden_state


class EnglishSide(nn.Module):
    """Embeddings of all that captions say of each part, and one linear head that compares queries with them.

    Whatever a query tells, it is compared with everything that could be told of any part: it has to say what it speaks
    of, too. With a head for each part queries need not, and become nearly the same vector; one Linear cannot keep them
    apart afterwards.
    """

    texts: torch.Tensor
    parts: torch.Tensor
    own: torch.Tensor

    def __init__(self, concepts: list[Concept]):
        super().__init__()
        said = {
            "names": [*(c.english.lower() for c in concepts), "something else", "nothing"],
            "colours": [*COLOURS_ENGLISH, "many colours"],
            "grounds": list(COLOURS_ENGLISH),
            "counts": ["one", "two", "three"],
            "arrangements": ["alone", "side by side", "one above the other"],
        }
        texts = [(part, text) for part, (kind, _) in TOLD.items() for text in said[kind]]
        words = {w: n + 1 for n, w in enumerate(sorted({w for _, text in texts for w in text.split()}))}
        longest = max(len(text.split()) for _, text in texts)
        ids = [[words[w] for w in text.split()] + [0] * (longest - len(text.split())) for _, text in texts]
        self.register_buffer("texts", torch.tensor(ids))
        self.register_buffer("parts", torch.tensor([list(TOLD).index(part) for part, _ in texts]))
        # A name is the same name wherever it stands: `first` and `second` share the embeddings of word order.
        own = {(TOLD[part][0], text): None for part, text in texts}
        self.register_buffer("own", torch.tensor([list(own).index((TOLD[part][0], text)) for part, text in texts]))
        self.of_words = nn.EmbeddingBag(len(words) + 1, WIDTH, padding_idx=0, mode="mean")
        self.of_texts = nn.Embedding(len(own), WIDTH)  # word order and homonyms
        self.of_parts = nn.Embedding(len(TOLD), WIDTH)
        for embedding in (self.of_words, self.of_texts, self.of_parts):
            nn.init.normal_(embedding.weight, std=0.06)
        # Query features are half a constant; without the batch norm the contrastive loss rests at its plateau.
        self.head = nn.Sequential(nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, WIDTH, bias=False))
        self.temperature = nn.Parameter(torch.tensor(2.5))
        starts = np.cumsum([0, *(len(said[kind]) for kind, _ in TOLD.values())]).tolist()
        self.starts = dict(zip(TOLD, starts, strict=False))

    def forward(self, queries: torch.Tensor) -> dict[str, torch.Tensor]:
        """Part -> similarity of its queries in each picture to all that can be said, `(n, texts)`."""
        with torch.autocast("cpu", enabled=False):  # bfloat16 would round differences of similarity away
            texts = self.of_words(self.texts) + self.of_texts.weight[self.own] + self.of_parts.weight[self.parts]
            pooled = torch.stack([queries.float()[:, PARTS[part]].mean(1) for part in TOLD], dim=1)
            told = normalize(self.head(pooled.flatten(0, 1)), dim=-1) @ normalize(texts, dim=-1).T
            similarities = (told * self.temperature.exp()).unflatten(0, (len(queries), len(TOLD)))
            return {part: similarities[:, number] for number, part in enumerate(TOLD)}


@dataclass
class Seen:
    """Feature maps on disk with the captions of their pictures: part -> number of what is said, NOT_ASKED for none."""

    maps: np.ndarray
    views: list[View]
    captions: dict[str, np.ndarray]

    @classmethod
    def read(cls, work: Path, eyes: str, concepts: list[Concept]) -> "Seen":
        drawings, views = read_drawings(work / "drawings.jsonl"), read_views(work / eyes / "views.jsonl")
        beyond, nothing = len(concepts), len(concepts) + 1
        numbers = {c.name: number for number, c in enumerate(concepts)}
        captions: dict[str, list[int]] = {part: [] for part in PARTS}
        for view in views:
            shown = [drawings[i] for i in view.drawings]
            names = [numbers[d.concept] if d.listed else beyond for d in shown] + [nothing] * (2 - len(shown))
            colours = [
                (*COLOURS, "").index(drawing.colour) if kept else NOT_ASKED
                for drawing, kept in zip(shown, view.coloured, strict=True)
            ] + [NOT_ASKED] * (2 - len(shown))
            ground = COLOURS.index(view.ground) if view.ground else NOT_ASKED
            told = (*names, *colours, ground, view.count - 1, ARRANGEMENTS.index(view.arrangement))
            for part, number in zip(PARTS, told, strict=True):
                captions[part].append(number)
        maps = np.load(work / eyes / "maps.npy", mmap_mode="r")
        return cls(maps, views, {part: np.array(numbers) for part, numbers in captions.items()})

    def batch(self, places: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(self.maps[places]).float()

    def truth(self, part: str, places: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(self.captions[part][places])


def loss_of(encoder: QueryEncoder, english: EnglishSide, seen: Seen, places: np.ndarray, rng: np.random.Generator):
    """Contrastive loss of the pictures at `places`. Up to two fifths of the places of a feature map are hidden, and in
    two of five batches every picture is blended with another one (mixup): without both, the drawings are learnt by
    heart."""
    maps, other, share = seen.batch(places), rng.permutation(len(places)), 1.0
    if rng.random() < 0.4:
        share = float(max(share := rng.beta(0.6, 0.6), 1 - share))
        maps = share * maps + (1 - share) * maps[other]
    hidden = torch.from_numpy(rng.random((len(maps), TOKENS)) < rng.uniform(0, 0.4, (len(maps), 1)))
    loss = torch.zeros(())
    for part, similarities in english(encoder(maps, visible=~hidden)).items():
        kind, weight = TOLD[part]
        for truth, of_it in ((places, share), (places[other], 1 - share)):
            numbers = seen.truth(part, truth)
            if of_it > 0 and (numbers != NOT_ASKED).any():
                smoothing = 0.1 if kind == "names" else 0.0
                numbers = torch.where(numbers == NOT_ASKED, NOT_ASKED, numbers + english.starts[part])
                part_loss = cross_entropy(similarities, numbers, ignore_index=NOT_ASKED, label_smoothing=smoothing)
                loss = loss + weight * of_it * part_loss
    return loss


@torch.no_grad()
def accuracies(encoder: QueryEncoder, english: EnglishSide, seen: Seen, places: np.ndarray) -> dict[str, float]:
    """Part -> share of pictures of which the right thing is said, of those that are asked."""
    encoder.eval(), english.eval()
    said: dict[str, list[torch.Tensor]] = {part: [] for part in PARTS}
    for start in range(0, len(places), 128):
        for part, similarities in english(encoder(seen.batch(places[start : start + 128]))).items():
            said[part].append(similarities.argmax(1) - english.starts[part])
    encoder.train(), english.train()
    truth = {part: seen.truth(part, places) for part in PARTS}
    hits = {part: (torch.cat(said[part]) == truth[part])[truth[part] != NOT_ASKED] for part in PARTS}
    return {part: float(each.float().mean()) for part, each in hits.items() if len(each)}


def pretrain(
    work: Annotated[Path, typer.Argument(help="folder for everything the recipe makes")],
    random: Annotated[bool, typer.Option(help="on the tower with random weights")] = False,
    steps: Annotated[int, typer.Option(help="optimizer steps")] = STEPS,
) -> None:
    """Train the Q-Former; the state is written every 200 steps, and training goes on from it."""
    target = work / ("qformer-random" if random else "qformer")
    if target.exists():
        print(f"{target} is there already")
        return
    torch.manual_seed(0)
    concepts, drawings = listed_concepts(), read_drawings(work / "drawings.jsonl")
    seen = Seen.read(work, "eyes-random" if random else "eyes", concepts)
    encoder, english = QueryEncoder(), EnglishSide(concepts)
    both = nn.ModuleDict({"encoder": encoder, "english": english})
    optimizers = optimizers_of(both, encoder.qformer, weight_decay=0.1)
    state = work / f"{target.name}.state.pt"
    first = read_state(state, both, optimizers)
    taught = np.flatnonzero([view.training for view in seen.views])
    asked = _asked(seen, drawings)
    for step in (progress := trange(first, steps, initial=first, total=steps, desc=target.name, mininterval=10)):
        rng = np.random.default_rng([2, step])
        torch.manual_seed(step)
        places = np.sort(rng.choice(taught, BATCH, replace=False))
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(encoder, english, seen, places, rng)
        loss.backward()
        nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        take_step(optimizers, learning_rate(step, steps, LEARNING_RATE))
        progress.set_postfix(loss=f"{loss.item():.2f}", refresh=False)
        if (step + 1) % 200 == 0:
            write_state(state, both, optimizers, step + 1)
        if (step + 1) % ASK_EVERY == 0:
            for title, places in asked.items():
                told = accuracies(encoder, english, seen, places)
                print(
                    f"{step + 1} {title}: {', '.join(f'{part} {hit:.2f}' for part, hit in told.items())}", flush=True
                )
    write(encoder, target)


def _asked(seen: Seen, drawings: list) -> dict[str, np.ndarray]:
    """Pictures of the artist on which settings are chosen, by kind."""
    own = [not v.training and drawings[v.drawings[0]].artist == "emojione-v1" for v in seen.views]
    kinds = np.array([view.kind if mine else "" for view, mine in zip(seen.views, own, strict=True)])
    return {f"EmojiOne 1, {kind}": np.flatnonzero(kinds == kind) for kind in ("plain", "several", "two")}


def write(encoder: QueryEncoder, target: Path) -> None:
    """The Q-Former as a folder that `jminigpt4.convert.assemble` takes: configuration and tensors."""
    state = encoder.state_dict()
    state["vision_layernorm.position_embeddings"] = state.pop("position_embeddings")
    with finished_folder(target) as folder:
        encoder.qformer.config.vision_early_layers = list(EARLY_LAYERS)
        encoder.qformer.config.save_pretrained(folder)
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / WEIGHTS)


if __name__ == "__main__":
    typer.run(pretrain)
