"""Stage 2: a Q-Former on the frozen vision tower, with English only (the manner of BLIP-2, arXiv:2301.12597).

`python pretrain_qformer.py WORK` trains query tokens, layer norm and Q-Former on the feature maps of all training
artists' drawings with two losses, and writes WORK/qformer, a folder that `jminigpt4.convert` takes.

- contrastive: the mean query feature against the English names of all concepts;
- captioning: a small English decoder reads the query features and says `a red apple, a kind of fruit`.

The text encoder and the decoder are thrown away. No Japanese occurs here.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from drawings import COLOURS, COLOURS_ENGLISH, Concept, Drawing, read_concepts, read_drawings
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import cross_entropy, normalize
from tqdm import tqdm
from transformers import Blip2QFormerConfig, Blip2QFormerModel
from vision import CHANNELS, PASSES, TOKENS, TRAINING, drawings_of_pass

from jminigpt4.checkpoint import finished_folder

# One Linear has to find some 600 names in these features: the wider they are, the more of them it can tell apart.
QUERIES, WIDTH = 8, 512
EPOCHS, STEPS, BATCH, LEARNING_RATE = 10, 130, 128, 1.2e-3  # STEPS: an epoch
CAPTION_LENGTH = 20
WEIGHTS = "model.safetensors"


def qformer_config() -> Blip2QFormerConfig:
    """One layer of 512 that looks at the feature map."""
    return Blip2QFormerConfig(
        hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=8, intermediate_size=2 * WIDTH,
        cross_attention_frequency=2, encoder_hidden_size=CHANNELS, hidden_dropout_prob=0.15,
        attention_probs_dropout_prob=0.1, initializer_range=0.06, use_qformer_text_input=False, vocab_size=1,
        max_position_embeddings=1,
    )  # fmt: skip


class QueryEncoder(nn.Module):
    """The parts of the finished model between vision tower and projection, under the finished model's names."""

    def __init__(self):
        super().__init__()
        self.vision_layernorm = nn.LayerNorm(CHANNELS, eps=1e-5)
        self.query_tokens = nn.Parameter(torch.randn(1, QUERIES, WIDTH) * 0.06)
        self.qformer = Blip2QFormerModel._from_config(qformer_config(), attn_implementation="eager")

    def forward(self, feature_maps: torch.Tensor, visible: torch.Tensor | None = None) -> torch.Tensor:
        """`(n, tokens, channels)` -> query features `(n, QUERIES, WIDTH)`; `visible` `(n, tokens)` hides places."""
        queries = self.query_tokens.expand(len(feature_maps), -1, -1)
        encoded = self.vision_layernorm(feature_maps)
        mask = None if visible is None else visible.long()
        outputs = self.qformer(query_embeds=queries, encoder_hidden_states=encoded, encoder_attention_mask=mask)
        return outputs.last_hidden_state


class EnglishWords:
    """The words of the captions, and captions as ids (0 pads, 1 begins, 2 ends)."""

    def __init__(self, concepts: list[Concept]):
        text = " ".join(f"{c.english} {c.kind_english}" for c in concepts).lower()
        words = {*text.split(), *" ".join(COLOURS_ENGLISH).split(), "a", "an", "kind", "of", ","}
        self.ids = {word: index + 3 for index, word in enumerate(sorted(words))}

    def __len__(self) -> int:
        return len(self.ids) + 3

    def encode(self, text: str) -> list[int]:
        return [self.ids[word] for word in text.lower().replace(",", " ,").split()]

    def caption(self, concept: Concept, colour: str) -> list[int]:
        shade = COLOURS_ENGLISH[COLOURS.index(colour)] + " " if colour else ""
        ids = [1, *self.encode(f"a {shade}{concept.english}, a kind of {concept.kind_english}"), 2]
        return ids + [0] * (CAPTION_LENGTH - len(ids))


class EnglishSide(nn.Module):
    """Text encoder and caption decoder; only needed to train the Q-Former."""

    def __init__(self, words: EnglishWords, concepts: list[Concept]):
        super().__init__()
        names = [words.encode(c.english) for c in concepts]
        self.register_buffer("names", torch.tensor([ids + [0] * (4 - len(ids)) for ids in names]))
        self.names_of = nn.EmbeddingBag(len(words), WIDTH, padding_idx=0, mode="mean")
        self.own_name = nn.Embedding(len(concepts), WIDTH)  # word order and homonyms
        # Query features are half a constant; without the batch norm the contrastive loss rests at its plateau.
        self.image_head = nn.Sequential(nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, WIDTH, bias=False))
        self.temperature = nn.Parameter(torch.tensor(2.5))
        self.embedding = nn.Embedding(len(words), WIDTH)
        self.positions = nn.Parameter(torch.randn(CAPTION_LENGTH, WIDTH) * 0.02)
        layer = nn.TransformerDecoderLayer(WIDTH, 4, WIDTH * 2, 0.1, batch_first=True, norm_first=True)
        self.decoder = nn.TransformerDecoder(layer, 1, nn.LayerNorm(WIDTH))
        self.head = nn.Linear(WIDTH, len(words))
        nn.init.normal_(self.names_of.weight, std=0.06)
        nn.init.normal_(self.own_name.weight, std=0.06)

    def names_logits(self, queries: torch.Tensor) -> torch.Tensor:
        """Similarity of pictures to all English names, `(n, concepts)`."""
        with torch.autocast("cpu", enabled=False):  # bfloat16 would round differences of similarity away
            texts = self.names_of(self.names) + self.own_name.weight
            pictures = self.image_head(queries.float().mean(1))
            return normalize(pictures, dim=-1) @ normalize(texts, dim=-1).T * self.temperature.exp()

    def caption_loss(self, queries: torch.Tensor, captions: torch.Tensor) -> torch.Tensor:
        inputs, targets = captions[:, :-1], captions[:, 1:]
        hidden = self.embedding(inputs) + self.positions[: inputs.shape[1]]
        mask = nn.Transformer.generate_square_subsequent_mask(inputs.shape[1])
        hidden = self.decoder(hidden, queries, tgt_mask=mask, tgt_is_causal=True)
        wanted = targets != 0
        return cross_entropy(self.head(hidden[wanted]), targets[wanted], label_smoothing=0.05)


class TrainingMaps:
    """Feature maps of all passes with the captions of their drawings; read from disk as batches ask for them."""

    def __init__(
        self, folder: Path, drawings: list[Drawing], concepts: list[Concept], words: EnglishWords, passes: int
    ):
        index = {c.name: i for i, c in enumerate(concepts)}
        self.maps, self.rows, captions, labels = [], [], [], []
        for number in range(passes):
            self.maps.append(np.load(folder / f"{number}.npy", mmap_mode="r"))
            coloured = np.load(folder / f"{number}.coloured.npy")
            for row, position in enumerate(drawings_of_pass(drawings, number)):
                drawing = drawings[position]
                if drawing.artist not in TRAINING or drawing.held_out == "never":
                    continue
                self.rows.append((number, row))
                labels.append(index[drawing.concept])
                captions.append(words.caption(concepts[labels[-1]], drawing.colour if coloured[row] else ""))
        self.labels, self.captions = torch.tensor(labels), torch.tensor(captions)

    def batch(self, chosen: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        maps = np.stack([self.maps[number][row] for number, row in (self.rows[i] for i in chosen)])
        return torch.from_numpy(maps).float(), self.labels[chosen], self.captions[chosen]


def train_step(encoder: QueryEncoder, english: EnglishSide, batch: tuple, rng: np.random.Generator) -> torch.Tensor:
    """Contrastive plus captioning loss of one batch. Up to half of the places of a feature map are hidden, and in
    half of the batches every picture is blended with another one (mixup): without both, the drawings are learnt by
    heart in five epochs."""
    maps, labels, captions = batch
    other, share = torch.from_numpy(rng.permutation(len(maps))), 1.0
    if rng.random() < 0.5:
        share = float(max(share := rng.beta(0.6, 0.6), 1 - share))
        maps = share * maps + (1 - share) * maps[other]
    hidden = torch.from_numpy(rng.random((len(maps), TOKENS)) < rng.uniform(0, 0.5, (len(maps), 1)))
    queries = encoder(maps, visible=~hidden)
    logits = english.names_logits(queries)
    named = share * cross_entropy(logits, labels, label_smoothing=0.1)
    if share < 1:
        named = named + (1 - share) * cross_entropy(logits, labels[other], label_smoothing=0.1)
    return named + 0.5 * share * english.caption_loss(queries, captions)


@torch.no_grad()
def accuracy(encoder: QueryEncoder, english: EnglishSide, maps: np.ndarray, labels: np.ndarray) -> float:
    """Share of pictures whose nearest English name is the right one."""
    encoder.eval(), english.eval()
    guesses = [english.names_logits(encoder(torch.from_numpy(m.copy()).float())).argmax(1) for m in _chunks(maps)]
    encoder.train(), english.train()
    return float((torch.cat(guesses).numpy() == labels).mean())


def _chunks(maps: np.ndarray, size: int = 256) -> list[np.ndarray]:
    return [maps[i : i + size] for i in range(0, len(maps), size)]


def pretrain(
    work: Annotated[Path, typer.Argument(help="folder for everything the recipe makes")],
    random: Annotated[bool, typer.Option(help="on the tower with random weights")] = False,
    epochs: Annotated[int, typer.Option(help=f"epochs of {STEPS} steps")] = EPOCHS,
    passes: Annotated[int, typer.Option(help="views of every drawing to train on")] = PASSES,
) -> None:
    """Train the Q-Former; after every epoch the state is written, and training goes on from it."""
    target = work / ("qformer-random" if random else "qformer")
    if target.exists():
        print(f"{target} is there already")
        return
    torch.manual_seed(0)
    concepts, drawings = [c for c in read_concepts() if c.held_out != "never"], read_drawings(work / "drawings.jsonl")
    folder = work / ("features-random" if random else "features")
    words = EnglishWords(concepts)
    data = TrainingMaps(folder, drawings, concepts, words, passes)
    encoder, english = QueryEncoder(), EnglishSide(words, concepts)
    parameters = [*encoder.parameters(), *english.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, epochs * STEPS, pct_start=0.08)
    parts = {"encoder": encoder, "english": english, "optimizer": optimizer, "schedule": schedule}
    state, first = work / f"{target.name}.state.pt", 0
    if state.exists():
        saved = torch.load(state, weights_only=True)
        first = saved.pop("epoch")
        for name, part in parts.items():
            part.load_state_dict(saved[name])
    develop = _develop_set(folder, drawings, concepts)
    for epoch in range(first, epochs):
        rng = np.random.default_rng([2, epoch])
        torch.manual_seed(epoch)
        order = np.resize(rng.permutation(len(data.rows)), STEPS * BATCH)  # once more from the start if they run out
        progress = tqdm(range(STEPS), desc=f"Q-Former epoch {epoch}", mininterval=10)
        for step in progress:
            with torch.autocast("cpu", torch.bfloat16):
                loss = train_step(encoder, english, data.batch(order[step * BATCH : (step + 1) * BATCH]), rng)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            progress.set_postfix(loss=f"{loss.item():.2f}", refresh=False)
        print(
            f"epoch {epoch}: English name right on EmojiOne 1: {accuracy(encoder, english, *develop):.3f}", flush=True
        )
        part_file = state.with_suffix(".part")
        torch.save({**{name: part.state_dict() for name, part in parts.items()}, "epoch": epoch + 1}, part_file)
        part_file.rename(state)
    write(encoder, target)


def write(encoder: QueryEncoder, target: Path) -> None:
    """The Q-Former as a folder that `jminigpt4.convert.assemble` takes: configuration and tensors."""
    with finished_folder(target) as folder:
        encoder.qformer.config.save_pretrained(folder)
        save_file({name: tensor.contiguous() for name, tensor in encoder.state_dict().items()}, folder / WEIGHTS)


def _develop_set(folder: Path, drawings: list[Drawing], concepts: list[Concept]) -> tuple[np.ndarray, np.ndarray]:
    index = {c.name: i for i, c in enumerate(concepts)}
    shown = [i for i, d in enumerate(drawings) if d.artist == "emojione-v1" and d.concept in index]
    maps = np.load(folder / "0.npy", mmap_mode="r")[shown]
    return maps, np.array([index[drawings[i].concept] for i in shown])


if __name__ == "__main__":
    typer.run(pretrain)
