"""Stage 3: a small Japanese GPT-NeoX that talks about what it is told.

`python pretrain_language.py WORK` trains a SentencePiece tokenizer with the settings of rinna/japanese-gpt-neox-3.6b
and a language model on conversations about "pictures" that are blends of its own words (`blends.py`), and writes
WORK/language: spiece.model, tokenizer_config.json and the model. No picture is involved. `--family llama` and
`--family gpt2` make the two others that are swapped in behind the same eyes, WORK/language-llama and
WORK/language-gpt2.
"""

import math
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import sentencepiece
import torch
import typer
from blends import Blends, Dictionary, Words
from corpus import Scene, Thing, Turn, comparing, conversation, sentence, without_picture
from drawings import COLOURS, Concept, listed_concepts
from queries import QUERIES, WIDTH
from torch.nn.functional import cross_entropy, normalize
from tqdm import trange
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from wordings import BEYOND

from jminigpt4.checkpoint import finished_file, finished_folder

VOCABULARY, LONGEST_PIECE = 2700, 6  # a long name is two or three pieces
PAD, BOS, EOS = 0, 2, 3
STEPS, BATCH = 2800, 32
LEARNING_RATE, MUON = 1.5e-3, 2.0  # of embeddings and norms; matrices learn by Muon at MUON times that
LAYERS, HEADS = 2, 8
COPY = (0.1, 2.0)  # how much of what they look at the first layer hands on in the beginning, and the last one always
GROUP = 20
EDGE = "\u2016"  # of a word, in the text that the tokenizer is trained on and nowhere else
NEWLINE = "<NL>"
FRAME = (
    "ユーザー:", "ユーザー: <IMG>", "<IMG>", "</IMG>", "</IMG> ", "</IMG><IMG>", NEWLINE, "システム:", "すみません、",
    f"{NEWLINE}システム: ", f"{NEWLINE}ユーザー: ",
)  # fmt: skip
# The 284 bytes of rinna's tokenizer_config.json, in which only the special tokens matter.
TOKENIZER_CONFIG = (
    '{"eos_token": "</s>", "unk_token": "[UNK]", "pad_token": "[PAD]", "extra_ids": 0, '
    '"additional_special_tokens": [], "sp_model_kwargs": {}, "bos_token": "<s>", "cls_token": "[CLS]", '
    '"sep_token": "[SEP]", "mask_token": "[MASK]", "do_lower_case": false, "tokenizer_class": "T5Tokenizer"}'
)


def any_scene(concepts: list[Concept], rng: np.random.Generator) -> Scene:
    """One or two things of any colour."""
    things = [
        Thing(concepts[rng.integers(len(concepts))], (*COLOURS, "")[rng.integers(13)])
        for _ in range(1 + int(rng.random() < 0.25))
    ]
    return Scene(tuple(things), 1, "side" if len(things) == 2 else "", COLOURS[rng.integers(12)])


def train_tokenizer(concepts: list[Concept], words: list[str], prefix: Path) -> None:
    """A unigram SentencePiece model with rinna's settings -> `prefix`.model."""
    rng, names = np.random.default_rng(0), [c.name for c in concepts]
    lines = [*words, *[c.kind for c in concepts] * 3, *COLOURS * 30, *names * 20, *BEYOND[::3]]
    for concept in concepts * 4:
        lines += [text for turn in conversation(any_scene(concepts, rng), rng, concepts) for text in turn]
        turns = comparing(any_scene(concepts, rng), any_scene(concepts, rng), rng)
        lines += [sentence(concept, rng, concepts), *(text for turn in turns for text in turn)]
    told = [*names, *dict.fromkeys(c.kind for c in concepts), *COLOURS]
    lines = parted(lines, told)
    # Unigram finds no piece that is only met before the same one, be it the end.
    lines += [f"{text}{other}" for text in told for other in "、。"]
    # What stands in every prompt is to be few pieces.
    lines += [text for text in FRAME for _ in range(1500)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(prefix), vocab_size=VOCABULARY, model_type="unigram",
        character_coverage=1.0, byte_fallback=True, add_dummy_prefix=False, max_sentencepiece_length=LONGEST_PIECE,
        split_by_unicode_script=False, split_by_whitespace=False, remove_extra_whitespaces=False,
        normalization_rule_name="nmt_nfkc", hard_vocab_limit=False, num_threads=1, minloglevel=2,
        pad_id=PAD, unk_id=1, bos_id=BOS, eos_id=EOS, pad_piece="[PAD]", unk_piece="[UNK]",
        control_symbols=["[CLS]", "[SEP]", "[MASK]"], pretokenization_delimiter=EDGE,
    )  # fmt: skip


def parted(lines: list[str], words: list[str]) -> list[str]:
    """Marks the edges of words, across which no piece may reach: with 「電車です。」 as one piece beside 「電車」, a
    picture would have to say both."""
    word = re.compile("|".join(sorted(map(re.escape, words), key=len, reverse=True)))
    return [word.sub(f"{EDGE}\\g<0>{EDGE}", line) for line in lines]


@dataclass(frozen=True)
class Sequence:
    """Token ids, labels (-100 where nothing is learnt), and where the vectors of pictures stand."""

    ids: list[int]
    labels: list[int]
    pictures: list[tuple[int, np.ndarray]] = field(default_factory=list)


Shown = tuple[list[np.ndarray], str, str]  # a turn: the vectors of its pictures, question, answer


class Sequences:
    """Token sequences for the language model, drawn without end; a pure function of the seed and the embeddings."""

    def __init__(self, tokenizer: sentencepiece.SentencePieceProcessor, concepts: list[Concept], words: list[str]):
        self.encode, self.concepts, self.sentences = tokenizer.encode, concepts, words
        self.dictionary = Dictionary(self.encode, concepts, tokenizer.vocab_size())
        self.blends = Blends(concepts)

    def draw(self, words: Words, rng: np.random.Generator) -> Sequence:
        """A conversation about a picture (84 %) or two (7 %), one without a picture (5 %), or a sentence (4 %)."""
        share, concept = rng.random(), self.concepts[rng.integers(len(self.concepts))]
        if share < 0.04:
            plain = (sentence(concept, rng, self.concepts), self.sentences[rng.integers(len(self.sentences))])
            ids = [BOS, *self.encode(plain[rng.integers(2)]), EOS]
            return Sequence(ids, [-100, *ids[1:]])
        if share < 0.09:
            return self.chat([([], *without_picture(concept, rng))])
        if share < 0.16:
            return self.chat(self._two_pictures(words, rng))
        vectors, scene = self.blends.draw(words, rng)
        return self.chat(_shown([vectors], conversation(scene, rng, self.concepts)))

    def _two_pictures(self, words: Words, rng: np.random.Generator) -> list[Shown]:
        """Shown together and compared, or one after the other, each with questions of its own."""
        together = rng.random() < 0.6
        one, first = self.blends.draw(words, rng, alone=together)
        other, second = self.blends.draw(words, rng, alone=together)
        if together and rng.random() < 0.2:
            other, second = one, first
        if together:
            return _shown([one, other], comparing(first, second, rng))
        asked = [conversation(scene, rng, self.concepts, int(rng.integers(1, 3))) for scene in (first, second)]
        return _shown([one], asked[0]) + _shown([other], asked[1])

    def group(self, first_step: int, words: Words) -> list[list[Sequence]]:
        """The batches of the next GROUP steps, each of sequences of about one length, in random order."""
        rng = np.random.default_rng([4, first_step])
        drawn = sorted((self.draw(words, rng) for _ in range(GROUP * BATCH)), key=lambda s: len(s.ids))
        return [drawn[i * BATCH : (i + 1) * BATCH] for i in rng.permutation(GROUP)]

    def chat(self, turns: list[Shown]) -> Sequence:
        """Tokenised by segments as generation sees it; right behind an answer the end of text is the label."""
        ids, labels, places, before = [BOS], [-100], [], "ユーザー: "
        for pictures, question, answer in turns:
            asked: list[int] = []
            for vectors in pictures:
                asked += self.encode(f"{before}<IMG>")
                places.append((len(ids) + len(asked), vectors))
                asked += [PAD] * QUERIES
                before = "</IMG>"
            space = " " if pictures and question else ""
            asked += self.encode(f"{before}{space}{question}{NEWLINE}システム: ")
            reply = self.encode(answer)
            labels += [-100 if len(ids) == 1 else EOS] + [-100] * (len(asked) - 1) + reply
            ids += asked + reply
            before = f"{NEWLINE}ユーザー: "
        return Sequence([*ids, EOS], [*labels, EOS], places)


def _shown(pictures: list[np.ndarray], turns: list[Turn]) -> list[Shown]:
    """Pictures come with the first question."""
    return [(pictures if number == 0 else [], *turn) for number, turn in enumerate(turns)]


def collate(sequences: list[Sequence]) -> dict[str, torch.Tensor]:
    """Right-padded `input_ids`, `attention_mask`, `labels`, all `(batch, length)`."""
    length = max(len(s.ids) for s in sequences)
    batch = {
        "input_ids": torch.full((len(sequences), length), PAD),
        "labels": torch.full((len(sequences), length), -100),
        "attention_mask": torch.zeros(len(sequences), length, dtype=torch.long),
    }
    for row, sequence in enumerate(sequences):
        batch["input_ids"][row, : len(sequence.ids)] = torch.tensor(sequence.ids)
        batch["labels"][row, : len(sequence.ids)] = torch.tensor(sequence.labels)
        batch["attention_mask"][row, : len(sequence.ids)] = 1
    return batch


# Two layers of 512 in the manner of each family; GPT-NeoX as rinna configured it: the whole head is rotated, and
# attention and feed-forward follow one another. One layer reads a picture as well, but what it looks at cannot depend
# on the question: asked 「左は?」 it sees both things.
FAMILIES = {
    "gpt_neox": {
        "intermediate_size": 2 * WIDTH,
        "use_parallel_residual": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0},
    },
    "llama": {"intermediate_size": 704, "num_key_value_heads": HEADS},
    "gpt2": {"n_inner": 2 * WIDTH},
}


def new_model(vocabulary: int, family: str, names: list[list[int]]) -> PreTrainedModel:
    """A causal language model of one of the `FAMILIES`, with random weights; `names`: the pieces of all names."""
    sizes: dict[str, Any] = {"vocab_size": vocabulary, "hidden_size": WIDTH}
    sizes |= {"num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    sizes |= {"max_position_embeddings": 1024, "bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
    sizes |= {"initializer_range": 0.05, "tie_word_embeddings": True}
    config = AutoConfig.for_model(family, **{**sizes, **FAMILIES[family]})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    spread(model.get_input_embeddings().weight, sorted({pieces[0] for pieces in names}))
    begin_as_copier(model)
    return model


@torch.no_grad()
def spread(embeddings: torch.Tensor, rows: list[int]) -> None:
    """Makes some rows a tight frame: as many directions as there are carry as much of them each. Random rows, about as
    many as they have dimensions, hardly use some directions, and what is said in those would not be learnt."""
    columns, _ = torch.linalg.qr(torch.randn(len(rows), WIDTH))
    size = embeddings[rows].norm(dim=1).mean()
    embeddings[rows] = normalize(columns, dim=1) * size


@torch.no_grad()
def begin_as_copier(model: PreTrainedModel) -> None:
    """Attention starts out handing on what it looks at unchanged: values are an orthogonal map, and the output
    projection is its transpose (in the manner of mimetic initialisation, arXiv:2305.09828). In the last layer it stays
    so, and only where to look is learnt: whatever values learn, they learn the commonest directions first and lose the
    rest, and through them some hundred directions of a picture can be read instead of five hundred."""
    for layer, attention in enumerate(_attentions(model)):
        copying, much = torch.nn.init.orthogonal_(torch.empty(WIDTH, WIDTH)), COPY[layer == LAYERS - 1]
        if hasattr(attention, "query_key_value"):
            attention.query_key_value.weight.view(HEADS, 3, -1, WIDTH)[:, 2] = copying.view(HEADS, -1, WIDTH)
            attention.dense.weight.copy_(copying.T * much)
        elif hasattr(attention, "v_proj"):
            attention.v_proj.weight.copy_(copying)
            attention.o_proj.weight.copy_(copying.T * much)
        else:
            attention.c_attn.weight[:, 2 * WIDTH :] = copying.T
            attention.c_proj.weight.copy_(copying * much)


def _attentions(model: PreTrainedModel) -> list[torch.nn.Module]:
    return [m for name, m in model.named_modules() if name.endswith((".attention", ".self_attn", ".attn"))]


def keep_copying(model: PreTrainedModel) -> list[torch.nn.Parameter]:
    """Holds values and output projection of the last layer as they are. Returns the weights in which values stand
    beside queries and keys; they must not decay."""
    last = _attentions(model)[-1]
    if hasattr(last, "v_proj"):
        last.v_proj.requires_grad_(False), last.o_proj.requires_grad_(False)
        return []
    if hasattr(last, "query_key_value"):
        fused, learning = last.query_key_value.weight, torch.ones(HEADS, 3, WIDTH // HEADS, 1)
        learning[:, 2] = 0
        last.dense.requires_grad_(False)
        mask = learning.reshape(-1, 1)
    else:
        fused, learning = last.c_attn.weight, torch.ones(1, 3, WIDTH)
        learning[:, 2] = 0
        last.c_proj.requires_grad_(False)
        mask = learning.reshape(1, -1)
    fused.register_hook(lambda gradient: gradient * mask)
    return [fused]


def loss_of(model: PreTrainedModel, sequences: list[Sequence]) -> torch.Tensor:
    """Mean cross-entropy of the labelled tokens."""
    batch = collate(sequences)
    embeddings = model.get_input_embeddings()(batch["input_ids"]).clone()
    for row, sequence in enumerate(sequences):
        for start, vectors in sequence.pictures:
            embeddings[row, start : start + QUERIES] = torch.from_numpy(vectors).to(embeddings.dtype)
    body = getattr(model, model.base_model_prefix)
    hidden = body(inputs_embeds=embeddings, attention_mask=batch["attention_mask"]).last_hidden_state
    learnt = batch["labels"][:, 1:] != -100  # the head is a third of the work, and most positions need none
    logits = model.get_output_embeddings()(hidden[:, :-1][learnt])
    return cross_entropy(logits.float(), batch["labels"][:, 1:][learnt])


def learning_rate(step: int, steps: int, peak: float, warmup: int = 100) -> float:
    """Linear warm-up, then a cosine to a twentieth of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))


def optimizers_of(
    model: torch.nn.Module, body: torch.nn.Module, weight_decay: float, undecayed: Iterable[torch.nn.Parameter] = ()
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of `body`, AdamW for the rest of `model`; [`take_step`] sets their rates."""
    kept = {id(p) for p in undecayed}
    matrices = [
        p for n, p in body.named_parameters() if p.ndim == 2 and p.requires_grad and not re.search("embed|wte|wpe", n)
    ]
    mine = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in mine]
    groups = [
        {"params": [p for p in matrices if id(p) not in kept], "weight_decay": weight_decay},
        {"params": [p for p in matrices if id(p) in kept], "weight_decay": 0.0},
    ]
    muon = torch.optim.Muon(
        [group for group in groups if group["params"]], lr=MUON, momentum=0.95, adjust_lr_fn="match_rms_adamw",
        ns_steps=4,
    )  # fmt: skip
    return [muon, torch.optim.AdamW(rest, lr=1.0, betas=(0.9, 0.98), weight_decay=0.0, fused=True)]


def train(model: PreTrainedModel, sequences: Sequences, state: Path, steps: int) -> None:
    """Trains on freshly drawn sequences; the state is written every 200 steps, and training goes on from it."""
    undecayed = keep_copying(model)
    optimizers = optimizers_of(model, getattr(model, model.base_model_prefix), 0.05, undecayed)
    start = read_state(state, model, optimizers)
    progress = trange(start, steps, initial=start, total=steps, desc="language model", mininterval=10)
    embedding: Any = model.get_input_embeddings()
    for step in progress:
        if step % GROUP == 0:  # batches of equal length: drawn together, sorted, dealt out
            drawn = sequences.group(step, sequences.dictionary.words(embedding))
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model, drawn[step % GROUP])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        take_step(optimizers, learning_rate(step, steps, LEARNING_RATE))
        progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
        if (step + 1) % 200 == 0:
            write_state(state, model, optimizers, step + 1)


def write_state(path: Path, model: torch.nn.Module, optimizers: list[torch.optim.Optimizer], step: int) -> None:
    """All that training needs to go on behind so many steps."""
    kept = [optimizer.state_dict() for optimizer in optimizers]
    with finished_file(path) as part:
        torch.save({"model": model.state_dict(), "optimizers": kept, "step": step}, part)


def read_state(path: Path, model: torch.nn.Module, optimizers: list[torch.optim.Optimizer]) -> int:
    """The counterpart of [`write_state`]; gives the steps that are done, 0 where there is no file."""
    if not path.exists():
        return 0
    saved = torch.load(path, weights_only=True)
    model.load_state_dict(saved["model"])
    for optimizer, kept in zip(optimizers, saved["optimizers"], strict=True):
        optimizer.load_state_dict(kept)
    return saved["step"]


def take_step(optimizers: list[torch.optim.Optimizer], rate: float) -> None:
    """Steps and forgets the gradients; `rate` is AdamW's learning rate."""
    for optimizer, factor in zip(optimizers, (MUON, 1.0), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate * factor
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def pretrain(
    work: Annotated[Path, typer.Argument(help="folder for everything the recipe makes")],
    family: Annotated[str, typer.Option(help=", ".join(FAMILIES))] = "gpt_neox",
    steps: Annotated[int, typer.Option(help="optimizer steps")] = STEPS,
) -> None:
    """Train the tokenizer and the language model."""
    target = work / ("language" if family == "gpt_neox" else f"language-{family}")
    if target.exists():
        print(f"{target} is there already")
        return
    concepts = listed_concepts()
    words = (work / "words.txt").read_text(encoding="utf-8").splitlines()
    pieces = work / "spiece.model"
    if not pieces.exists():
        train_tokenizer(concepts, words, part := work / "spiece.part")
        part.with_suffix(".part.model").rename(pieces)
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(pieces))
    torch.manual_seed(0)
    model = new_model(tokenizer.vocab_size(), family, [tokenizer.encode(concept.name) for concept in concepts])
    train(model, Sequences(tokenizer, concepts, words), target.with_suffix(".state.pt"), steps)
    with finished_folder(target) as folder:
        model.save_pretrained(folder)
        shutil.copy(pieces, folder / "spiece.model")
        (folder / "tokenizer_config.json").write_text(TOKENIZER_CONFIG, encoding="utf-8")


if __name__ == "__main__":
    typer.run(pretrain)
