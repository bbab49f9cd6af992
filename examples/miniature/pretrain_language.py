"""Stage 3: a small Japanese GPT-NeoX that answers from what it is told.

`python pretrain_language.py WORK` trains a SentencePiece tokenizer with the settings of rinna/japanese-gpt-neox-3.6b
and a language model on conversations whose "picture" is a few words of text, and writes WORK/language: spiece.model,
tokenizer_config.json and the model. No picture is involved. `--family llama` and `--family gpt2` make the two others
that are swapped in behind the same eyes, WORK/language-llama and WORK/language-gpt2.
"""

import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import sentencepiece
import torch
import typer
from corpus import Scene, context, conversation, sentence, text_question
from drawings import COLOURS, Concept, read_concepts
from torch.nn.functional import cross_entropy
from tqdm import trange
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from jminigpt4.checkpoint import finished_folder

VOCABULARY = 2400
PAD, BOS, EOS = 0, 2, 3
STEPS, BATCH = 6000, 32
FIRST_PHASE = 5 / 7  # of the steps; in the second phase what stands for the picture can at times not be read any more
LEARNING_RATES, NOISE = (1.5e-3, 5e-4), (3.0, 5.0)  # of the two phases; the noise is in sizes of a word
OTHERS = 3
COPY = 0.5  # how much of what it looks at an attention layer hands on in the beginning
GROUP = 20
NEWLINE = "<NL>"
# The 284 bytes of rinna's tokenizer_config.json, in which only the special tokens matter.
TOKENIZER_CONFIG = (
    '{"eos_token": "</s>", "unk_token": "[UNK]", "pad_token": "[PAD]", "extra_ids": 0, '
    '"additional_special_tokens": [], "sp_model_kwargs": {}, "bos_token": "<s>", "cls_token": "[CLS]", '
    '"sep_token": "[SEP]", "mask_token": "[MASK]", "do_lower_case": false, "tokenizer_class": "T5Tokenizer"}'
)


def scene_of(concept: Concept, rng: np.random.Generator) -> Scene:
    """A concept in some colour; text may claim any colour, a picture may not."""
    draw = rng.random()
    return Scene(concept, None if draw < 0.15 else "" if draw < 0.3 else str(rng.choice(COLOURS)))


def train_tokenizer(concepts: list[Concept], words: list[str], prefix: Path) -> None:
    """A unigram SentencePiece model with rinna's settings -> `prefix`.model."""
    rng, names = np.random.default_rng(0), [c.name for c in concepts]
    # Names stand alone much more often than in sentences: a name is to be one piece, whatever particle follows it.
    lines = [*words, *names * 60, *[c.kind for c in concepts] * 5, *COLOURS * 60]
    for concept in concepts * 4:
        scene = scene_of(concept, rng)
        turns = conversation(scene, rng, names)
        lines += [f"ユーザー: <IMG>{context(scene, rng)}</IMG>", sentence(scene, rng, names)]
        lines += [f"{question}{NEWLINE}システム: " for question, _ in turns] + [answer for _, answer in turns]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(prefix), vocab_size=VOCABULARY, model_type="unigram",
        character_coverage=1.0, byte_fallback=True, add_dummy_prefix=False, max_sentencepiece_length=12,
        split_by_unicode_script=False, remove_extra_whitespaces=False, normalization_rule_name="nmt_nfkc",
        hard_vocab_limit=False, num_threads=2, minloglevel=2,
        pad_id=PAD, unk_id=1, bos_id=BOS, eos_id=EOS, pad_piece="[PAD]", unk_piece="[UNK]",
        control_symbols=["[CLS]", "[SEP]", "[MASK]"],
    )  # fmt: skip


@dataclass(frozen=True)
class Sequence:
    """Token ids, labels (-100 where nothing is learnt) and the span of the words that stand for the picture."""

    ids: list[int]
    labels: list[int]
    told: tuple[int, int]


class Sequences:
    """Token sequences for the language model, drawn without end; a pure function of the seed."""

    def __init__(self, tokenizer: sentencepiece.SentencePieceProcessor, concepts: list[Concept], words: list[str]):
        self.encode, self.concepts, self.words = tokenizer.encode, concepts, words
        self.names = [c.name for c in concepts]

    def draw(self, rng: np.random.Generator) -> Sequence:
        """A conversation about a "picture" (84 %), one without a picture, or a plain sentence (8 % each)."""
        concept = self.concepts[rng.integers(len(self.concepts))]
        scene, share = scene_of(concept, rng), rng.random()
        if share < 0.08:
            text = (
                self.words[rng.integers(len(self.words))] if rng.random() < 0.5 else sentence(scene, rng, self.names)
            )
            ids = [BOS, *self.encode(text), EOS]
            return Sequence(ids, [-100, *ids[1:]], (0, 0))
        if share < 0.16:
            return self.chat("", "", "ユーザー: ", [text_question(scene, rng)])
        return self.chat("ユーザー: <IMG>", context(scene, rng), "</IMG>", conversation(scene, rng, self.names))

    def group(self, first_step: int) -> list[list[Sequence]]:
        """The batches of the next GROUP steps, each of sequences of about one length, in random order."""
        rng = np.random.default_rng([4, first_step])
        drawn = sorted((self.draw(rng) for _ in range(GROUP * BATCH)), key=lambda s: len(s.ids))
        return [drawn[i * BATCH : (i + 1) * BATCH] for i in rng.permutation(GROUP)]

    def chat(self, opening: str, told: str, closing: str, turns: list[tuple[str, str]]) -> Sequence:
        """Tokenised by segments as generation sees it; right behind an answer the end of text is the label."""
        head = self.encode(opening)
        words = self.encode(told)
        ids, before = [BOS, *head, *words], closing
        labels = [-100] * len(ids)
        for question, answer in turns:
            space = " " if before == "</IMG>" and question else ""
            prompt = self.encode(f"{before}{space}{question}{NEWLINE}システム: ")
            reply = self.encode(answer)
            owed = EOS if before.startswith(NEWLINE) else -100
            ids += prompt + reply
            labels += [owed] + [-100] * (len(prompt) - 1) + reply
            before = f"{NEWLINE}ユーザー: "
        return Sequence([*ids, EOS], [*labels, EOS], (1 + len(head), 1 + len(head) + len(words)))


def collate(sequences: list[Sequence]) -> dict[str, torch.Tensor]:
    """Right-padded `input_ids`, `attention_mask`, `labels` (batch, length), and `told`, true where the words stand."""
    length = max(len(s.ids) for s in sequences)
    batch = {
        "input_ids": torch.full((len(sequences), length), PAD),
        "labels": torch.full((len(sequences), length), -100),
        "attention_mask": torch.zeros(len(sequences), length, dtype=torch.long),
        "told": torch.zeros(len(sequences), length, dtype=torch.bool),
    }
    for row, sequence in enumerate(sequences):
        batch["input_ids"][row, : len(sequence.ids)] = torch.tensor(sequence.ids)
        batch["labels"][row, : len(sequence.ids)] = torch.tensor(sequence.labels)
        batch["attention_mask"][row, : len(sequence.ids)] = 1
        batch["told"][row, slice(*sequence.told)] = True
    return batch


# One layer of 512 in the manner of each family; GPT-NeoX as rinna configured it: the whole head is rotated, and
# attention and feed-forward follow one another. What is told has to be said again: with tied embeddings the way from
# the one to the other is the same for every word and soon found, and through one layer it is almost linear, so that a
# Linear can be trained through it; through two layers it learns more slowly.
FAMILIES = {
    "gpt_neox": {
        "intermediate_size": 1024,
        "use_parallel_residual": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0},
    },
    "llama": {"intermediate_size": 704, "num_key_value_heads": 8},
    "gpt2": {"n_inner": 1024},
}


def new_model(vocabulary: int, family: str) -> PreTrainedModel:
    """A causal language model of one of the `FAMILIES`, with random weights."""
    sizes: dict[str, Any] = {"vocab_size": vocabulary, "hidden_size": 512}
    sizes |= {"num_hidden_layers": 1, "num_attention_heads": 8}
    sizes |= {"max_position_embeddings": 1024, "bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
    sizes |= {"initializer_range": 0.05, "tie_word_embeddings": True}
    config = AutoConfig.for_model(family, **{**sizes, **FAMILIES[family]})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    begin_as_copier(model)
    return model


@torch.no_grad()
def begin_as_copier(model: PreTrainedModel) -> None:
    """Every attention layer starts out handing on what it looks at unchanged: values are an orthogonal map, and the
    output projection is its transpose (in the manner of mimetic initialisation, arXiv:2305.09828)."""
    size = model.config.hidden_size
    for name, module in model.named_modules():
        copying = torch.nn.init.orthogonal_(torch.empty(size, size))
        if name.endswith("attention") and hasattr(module, "query_key_value"):
            fused = module.query_key_value.weight.view(model.config.num_attention_heads, 3, -1, size)
            fused[:, 2] = copying.view(model.config.num_attention_heads, -1, size)
            module.dense.weight.copy_(copying.T * COPY)
        elif hasattr(module, "v_proj"):
            module.v_proj.weight.copy_(copying)
            module.o_proj.weight.copy_(copying.T * COPY)
        elif hasattr(module, "c_attn"):
            module.c_attn.weight[:, 2 * size :] = copying.T
            module.c_proj.weight.copy_(copying * COPY)


def noise_at(step: int, steps: int) -> float:
    """The greatest noise on what stands for the picture: it grows over the first two fifths of each phase."""
    first = round(steps * FIRST_PHASE)
    if step < first:
        return NOISE[0] * min(1.0, step / (0.4 * first))
    return NOISE[0] + (NOISE[1] - NOISE[0]) * min(1.0, (step - first) / (0.4 * (steps - first)))


def blurred(embeddings: torch.Tensor, told: torch.Tensor, noise: float) -> torch.Tensor:
    """The words that stand for the picture, as a projection may put them there: never exactly words.

    All query tokens look at the same picture and are much alike, so in most rows the words are laid over each other,
    each with a weight of its own. The words of other rows shine through, since one Linear cannot tell hundreds of
    things apart without a trace of their likes, and noise is added, up to more than can be read through: an untrained
    projection puts nothing but noise there, and has to learn from what the model makes of it. A fifth of the rows
    stays as it is.

    Args:
        embeddings: `(batch, length, hidden)`.
        told: `(batch, length)`, true where the words stand.
        noise: Its greatest standard deviation, in those of a word.
    """
    rows, length, width = embeddings.shape
    mask = told[..., None]
    weights = torch.rand(rows, length, 1) * 0.5 + 0.5
    together = (embeddings * weights * mask).sum(1, keepdim=True)
    share = torch.rand(rows, 1, 1) ** torch.randint(0, 3, (rows, 1, 1)).sub(1).clamp(min=0)
    shown = embeddings + share * (together - embeddings)
    for _ in range(OTHERS):
        shown = shown + together[torch.randperm(rows)].detach() * 0.2 * min(noise, 3) * torch.rand(rows, 1, 1)
    one, each = torch.randn(rows, 1, width), torch.randn(rows, length, width)
    size = embeddings.detach()[told].std() * noise
    shown = shown + (one * torch.rand(rows, 1, 1) + 0.3 * each * torch.rand(rows, 1, 1)) * size
    changed = mask & (torch.rand(rows, 1, 1) > 0.2)
    return torch.where(changed, shown, embeddings)


def loss_of(model: PreTrainedModel, batch: dict[str, torch.Tensor], noise: float) -> torch.Tensor:
    """Mean cross-entropy of the labelled tokens, with the picture's words [`blurred`]."""
    embeddings = blurred(model.get_input_embeddings()(batch["input_ids"]), batch["told"], noise)
    body = getattr(model, model.base_model_prefix)
    hidden = body(inputs_embeds=embeddings, attention_mask=batch["attention_mask"]).last_hidden_state
    learnt = batch["labels"][:, 1:] != -100  # the head is a third of the work, and most positions need none
    logits = model.get_output_embeddings()(hidden[:, :-1][learnt])
    return cross_entropy(logits, batch["labels"][:, 1:][learnt])


def learning_rate(step: int, steps: int, peak: float, warmup: int = 100) -> float:
    """Linear warm-up, then a cosine to a twentieth of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))


def rate_at(step: int, steps: int) -> float:
    """Each phase has a schedule of its own."""
    first = round(steps * FIRST_PHASE)
    if step < first:
        return learning_rate(step, first, LEARNING_RATES[0])
    return learning_rate(step - first, steps - first, LEARNING_RATES[1])


def train(model: PreTrainedModel, sequences: Sequences, state: Path, steps: int) -> None:
    """AdamW on freshly drawn sequences; the state is written every 200 steps, and training goes on from it."""
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    start = 0
    if state.exists():
        saved = torch.load(state, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        start = saved["step"]
    progress = trange(start, steps, initial=start, total=steps, desc="language model", mininterval=10)
    for step in progress:
        torch.manual_seed(step)
        if step % GROUP == 0 or step == start:  # batches of equal length: drawn together, sorted, dealt out
            drawn = sequences.group(step - step % GROUP)
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, steps)
        batch = collate(drawn[step % GROUP])
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model, batch, noise_at(step, steps))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
        if (step + 1) % 200 == 0:
            part = state.with_suffix(".part")
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}, part)
            part.rename(state)


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
    concepts = [c for c in read_concepts() if c.held_out != "never"]
    words = (work / "words.txt").read_text(encoding="utf-8").splitlines()
    pieces = work / "spiece.model"
    if not pieces.exists():
        train_tokenizer(concepts, words, work / "spiece")
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(pieces))
    torch.manual_seed(0)
    model = new_model(tokenizer.vocab_size(), family)
    train(model, Sequences(tokenizer, concepts, words), target.with_suffix(".state.pt"), steps)
    with finished_folder(target) as folder:
        model.save_pretrained(folder)
        shutil.copy(pieces, folder / "spiece.model")
        (folder / "tokenizer_config.json").write_text(TOKENIZER_CONFIG, encoding="utf-8")


if __name__ == "__main__":
    typer.run(pretrain)
