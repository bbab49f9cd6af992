"""Tiny language models of every causal family of transformers, tokenizers for them, and the table that their tests
write."""

import json
import os
import re
from pathlib import Path

import pytest
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedConfig, PreTrainedTokenizerFast
from transformers.models.auto import CONFIG_MAPPING

from jminigpt4.convert import assemble

TABLE = Path(__file__).parents[2] / "docs" / "language-models.md"
WORDS = 300
VOCABULARY = WORDS  # exactly full: the image token gets a row of its own

# What the families call the sizes that make a model small; each takes the names that its configuration has.
SIZES = {
    # of all
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
    "sliding_window": 16,
    "attention_chunk_size": 16,
    "initializer_range": 0.3,
    "init_std": 0.3,
    "is_decoder": True,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    # of the older ones
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 128,
    "n_inner": 64,
    "d_model": 32,
    "n_layers": 2,
    "n_heads": 4,
    "num_heads": 4,
    "max_seq_len": 128,
    "ffn_dim": 64,
    "ffn_hidden_size": 64,
    "embedding_size": 32,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 64,
    # of mixtures of experts
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_topk": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "expert_ffn_hidden_size": 16,
    # of latent attention
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    # of states
    "state_size": 8,
    "ssm_state_size": 8,
    "expand": 2,
    "n_groups": 1,
    "chunk_size": 8,
    "time_step_rank": 4,
    "lru_width": 32,
    "mamba_expand": 2,
    "mamba_d_state": 8,
    "mamba_d_conv": 4,
    "mamba_dt_rank": 4,
    "mamba_n_groups": 1,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_ssm": 64,
    "mamba_num_heads": 4,
    "mamba_head_dim": 16,
    "mamba_chunk_size": 8,
    "use_mamba_kernels": False,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    # of embeddings for every layer
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": VOCABULARY,
    "num_kv_shared_layers": 0,
    "global_head_dim": 8,
} | dict.fromkeys(
    (
        "dropout",
        "attention_dropout",
        "activation_dropout",
        "hidden_dropout",
        "hidden_dropout_prob",
        "attention_probs_dropout_prob",
        "resid_pdrop",
        "embd_pdrop",
        "attn_pdrop",
    ),
    0.0,
)

LINEAR = {"layer_types": ["linear_attention", "full_attention"]}
BYTES = {
    "vocab_size": 260,
    "hidden_size": 32,
    "hidden_size_global": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_hidden_layers": 1,
    "intermediate_size": 64,
    "initializer_range": 0.3,
}
INDEXER = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 64,
    "indexer_compress_ratio": 4,
}
ROTARY = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
WINDOWED = {"layer_types": ["sliding_attention", "full_attention"]}
CONVOLUTION = {"layer_types": ["conv", "full_attention"]}
SCALED = {"logits_scaling": 3.0}
CAPPED = {"final_logit_softcapping": 2.0}
# What a family needs beyond small sizes: one layer of each kind, and something behind its head where it may have it.
OWN = {
    "bailing_hybrid": LINEAR,
    "bamba": {"attn_layer_indices": [1]},
    "blt": {f"{part}_config": BYTES for part in ("encoder", "decoder", "global", "patcher")},
    "codegen": {"rotary_dim": 8},
    "cohere_compass_text": {"rope_parameters": dict.fromkeys(WINDOWED["layer_types"], ROTARY), **WINDOWED},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "falcon_h1": {"lm_head_multiplier": 0.3, "embedding_multiplier": 2.5},
    "gemma2": CAPPED,
    "gemma3_text": CAPPED,
    "gemma4_unified_text": CAPPED,
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 16},
    "gptj": {"rotary_dim": 8},
    "granite": SCALED,
    "granite_swa": SCALED,
    "granitemoe": SCALED,
    "granitemoe_swa": SCALED,
    "granitemoehybrid": {**SCALED, "layer_types": ["mamba", "attention"]},
    "granitemoeshared": SCALED,
    "hyperclovax": SCALED,
    "inkling2_loop_text": {"unpadded_vocab_size": VOCABULARY},
    "inkling2_text": {"unpadded_vocab_size": VOCABULARY},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "gemma4_assistant": {
        "text_config": dict.fromkeys(("hidden_size_per_layer_input", "vocab_size_per_layer_input"), 0)
    },
    "kimi_linear": {**LINEAR, "linear_head_dim": 8, "linear_num_heads": 4},
    "lfm2": CONVOLUTION,
    "lfm2_moe": CONVOLUTION,
    "lfm3": CONVOLUTION,
    # In chunks alone, no answer would see a picture of the chunk before it.
    "llama4_text": {"layer_types": ["chunked_attention", "full_attention"], "no_rope_layers": [1, 0]},
    "longcat_flash": {"zero_expert_num": 2, "num_layers": 1},
    "musicgen": {"text_encoder": {"model_type": "t5"}, "audio_encoder": {"model_type": "encodec"}, "decoder": {}},
    "musicgen_melody": {
        "text_encoder": {"model_type": "t5"},
        "audio_encoder": {"model_type": "encodec"},
        "decoder": {},
    },
    "mamba2": {"num_heads": 4, "head_dim": 16},
    "moshi": {"sliding_window": 128},  # past a window its own steps with a cache are not its own pass over the whole
    "nanochat": CAPPED,
    "qwen2": {"use_sliding_window": True, "max_window_layers": 1},
    "qwen3_5_moe_text": LINEAR,
    "qwen3_5_text": LINEAR,
    "qwen3_next": LINEAR,
    "qwen4_exp_text": {"layer_types": ["linear_attention", "indexed_attention"], "hc_lowrank": 8, **INDEXER},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "reformer": {
        "axial_pos_embds": False,
        "attn_layers": ["local", "lsh"],
        "attention_head_size": 8,
        "feed_forward_size": 64,
    },
    "zamba": {"layer_types": ["mamba", "hybrid"], "attention_hidden_size": 64, "attention_head_dim": 16},
    "zamba2": {
        "layers_block_type": ["mamba", "hybrid"],
        "layer_types": ["mamba", "hybrid"],
        "n_mamba_heads": 4,
        "num_key_value_heads": 4,
        "mamba_headdim": 16,
    },
    "zaya": {"num_experts_per_tok": 1},
}


def family_config(model_type: str) -> PreTrainedConfig:
    """Two layers of 32 and a vocabulary of 300."""
    kind = CONFIG_MAPPING[model_type]
    aliases = getattr(kind, "attribute_map", {})
    names = {*getattr(kind, "__dataclass_fields__", {}), *aliases}
    options = {aliases.get(name, name): value for name, value in SIZES.items() if name in names}
    if "kv_lora_rank" in names:
        options["num_key_value_heads"] = 4  # latent attention has keys and values for every head
    return kind(**{**options, **OWN.get(model_type, {})})


@pytest.fixture(scope="session")
def make_family_config():
    return family_config


CORPUS = (
    "犬が走っています。",
    "何が写っていますか？",
    "赤い車と青い車",
    "a red dog",
    "What is in this picture?",
    "This is",
) * 8
CONTROLS = ["<pad>", "<s>", "</s>", "<unk>", "<|endoftext|>", "[CLS]", "<NL>", "<think>"]


def _byte_level() -> Tokenizer:
    """As GPT-2, Llama 3 and Qwen have it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=WORDS, special_tokens=CONTROLS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def _unigram() -> Tokenizer:
    """As transformers makes it of a SentencePiece model: T5's and XGLM's; unknown characters are `<unk>`."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("  ", " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=WORDS,
        special_tokens=CONTROLS,
        unk_token="<unk>",
        initial_alphabet=list("<>[]/|"),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*CORPUS, "< > [ ] / | NL CLS s pad think endoftext unk ImageHere"], trainer)
    return tokenizer


def _wordpiece() -> Tokenizer:
    """As BERT's Japanese and English models have it: lower case, accents removed, punctuation by itself."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=WORDS, special_tokens=CONTROLS, show_progress=False)
    tokenizer.train_from_iterator([*CORPUS, "< > [ ] / | nl cls s pad think endoftext unk imagehere"], trainer)
    return tokenizer


def _with_two_that_are_not_special(tokenizer: Tokenizer) -> Tokenizer:
    """As rinna's `<NL>` and Qwen3's `<think>`: tokens added to the vocabulary that transformers does not call special;
    the second is sought in normalised text."""
    state = json.loads(tokenizer.to_str())
    for token in state["added_tokens"]:
        token["special"] = token["content"] not in ("<NL>", "<think>")
        token["normalized"] = token["content"] == "<think>"
    return Tokenizer.from_str(json.dumps(state))


TOKENIZERS = {"byte-level": _byte_level, "unigram": _unigram, "wordpiece": _wordpiece}


@pytest.fixture(scope="session")
def save_tokenizer(tmp_path_factory):
    """`save_tokenizer(kind, folder)`: a tokenizer of at most 300 words beside a language model."""
    made: dict[str, PreTrainedTokenizerFast] = {}

    def save(kind: str, folder: Path):
        if kind not in made:
            made[kind] = PreTrainedTokenizerFast(
                tokenizer_object=_with_two_that_are_not_special(TOKENIZERS[kind]()),
                **{"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
            )
        made[kind].save_pretrained(folder)

    return save


@pytest.fixture(scope="session")
def image_side(reference, tmp_path_factory) -> Path:
    """A checkpoint whose language model is to be swapped: two layers of image encoder, 8 query tokens a picture."""
    folder = tmp_path_factory.mktemp("image_side") / "checkpoint"
    assemble(
        vision=reference / "checkpoints" / "eva_vit_g.pth",
        qformer=reference / "checkpoints" / "blip2_pretrained_flant5xxl.pth",
        language=reference / "llm",
        out=folder,
        prompt_format="article-3.6b",
        vision_heads=4,
        qformer_heads=4,
        prove_equal=False,
        progress=False,
    )
    return folder


def read_table() -> tuple[list[str], dict[str, list[str]]]:
    """Versions of transformers in the table's head, and its cells by family."""
    text = TABLE.read_text(encoding="utf-8")
    lines = text[text.index("| `model_type`") :].splitlines()
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return cells[0][1:], {row[0].strip("`"): row[1:] for row in cells[2:]}


@pytest.fixture(scope="session")
def documented():
    """What `docs/language-models.md` says of the installed transformers, by family: nothing while it is written."""
    versions, rows = read_table()
    if transformers.__version__ not in versions or os.environ.get("WRITE_LANGUAGE_MODELS"):
        return {}
    column = versions.index(transformers.__version__)
    return {family: cells[column] for family, cells in rows.items()}


def pytest_sessionfinish(session):
    """With WRITE_LANGUAGE_MODELS=1 the results become the column of the installed transformers in the table."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or not os.environ.get("WRITE_LANGUAGE_MODELS"):
        return
    reports = [report for outcome in ("passed", "failed") for report in reporter.stats.get(outcome, [])]
    results = dict(found for report in reports for name, found in report.user_properties if name == "family")
    text = TABLE.read_text(encoding="utf-8")
    versions, rows = read_table()
    columns = {version: {f: cells[at] for f, cells in rows.items()} for at, version in enumerate(versions)}
    columns[transformers.__version__] = {**columns.get(transformers.__version__, {}), **results}
    newest_last = sorted(columns, key=lambda version: [int(part) for part in version.split(".")[:3]])
    lines = [f"| `model_type` | {' | '.join(newest_last)} |", "|---" * (len(columns) + 1) + "|"]
    for family in sorted({family for column in columns.values() for family in column}):
        cells = [columns[version].get(family) or "–" for version in newest_last]
        lines.append(f"| `{family}` | {' | '.join(cells)} |")
    start = text.index("| `model_type`")
    TABLE.write_text(text[:start] + "\n".join(lines) + "\n", encoding="utf-8")
