"""Any causal language model of transformers as a part of the model."""

import re
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.models.auto import CONFIG_MAPPING

from ..configuration_jminigpt4 import JMiniGPT4Config
from ..inference.stored_weights import StoredNames
from .language_code import register_language_code
from .parts import Part, Read
from .sources import JMINIGPT4, LANGUAGE, Source

# Names on disk that are other than those in memory (GPT-NeoX, since transformers 5.14).
RENAMED = {r"^embed_out\.": "lm_head."}


def language_config(source: Source, trusted_code: str | None = None) -> tuple[PreTrainedConfig, dict[str, str]]:
    """Configuration of the language model, and the classes of its own code if it needs any (see
    [`jminigpt4.convert.language_code`]).

    Raises:
        ValueError: The source is no causal language model, or needs code that the user did not allow.
    """
    source.parts.add("language")
    if source.layout is JMINIGPT4:
        own: Any = JMiniGPT4Config.from_dict(source.config)
        return own.text_config, {}
    if source.layout is not LANGUAGE:
        raise ValueError(
            f"{source.name} ({source.layout.name}) is no language model: give a folder or a Hub repository that "
            "AutoModelForCausalLM loads."
        )
    unknown = source.config["model_type"] not in CONFIG_MAPPING
    code = register_language_code(source, trusted_code) if unknown else {}
    config = AutoConfig.from_pretrained(source.need_folder(), trust_remote_code=False)
    config.name_or_path = source.public_name  # what is published says nothing of this machine's folders
    if hasattr(config, "auto_map"):
        del config.auto_map  # code that is not run needs no mention, and the rest is registered
    return config, code


def language_part(source: Source, config: PreTrainedConfig, vocab_size: int) -> Part:
    """The language model, headless as the whole model holds it, and its head.

    Args:
        config: From [`language_config`]; its `vocab_size` becomes the one given.
        vocab_size: Rows the embedding table is to have. New rows are the mean of the old ones; ids never move.

    Raises:
        ValueError: A tensor belongs to nothing in a model of this type.
    """
    weights = source.weights
    with torch.device("meta"):
        headless = AutoModel.from_config(config)
    stored = StoredNames(headless)
    embeddings = _embedding_name(headless)
    tensors: dict[str, Read] = {}
    for key in weights.names():
        name = _target_name(key, stored, headless.base_model_prefix, source)
        if name is None:
            continue
        table = name in (f"model.language_model.{embeddings}", "lm_head.weight", "lm_head.bias")
        read = weights.take(key)
        tensors[name] = _grown(read, vocab_size) if table and vocab_size > config.vocab_size else read
    notes = []
    if config.tie_word_embeddings and "lm_head.weight" in tensors:
        _check_tied(source, tensors[f"model.language_model.{embeddings}"], tensors.pop("lm_head.weight"))
    if vocab_size > config.vocab_size:
        notes.append(
            f"The embedding table of {source.public_name} is full ({config.vocab_size} rows): "
            f"{vocab_size - config.vocab_size} row is appended for the image token."
        )
    config.vocab_size = vocab_size
    return Part(config, tensors, notes)


def _embedding_name(headless: PreTrainedModel) -> str:
    embeddings = headless.get_input_embeddings()
    return next(f"{name}.weight" for name, module in headless.named_modules() if module is embeddings)


def _target_name(key: str, stored: StoredNames, prefix: str, source: Source) -> str | None:
    """Name of a tensor in the whole model; `None` for one that goes elsewhere or nowhere."""
    if source.layout is JMINIGPT4:
        return key if re.match(source.layout.parts["language"], key) else None
    for old, new in RENAMED.items():
        key = re.sub(old, new, key)
    if key.startswith("lm_head."):
        return key
    bare = key.removeprefix(f"{prefix}.")
    # Experts have a tensor each on disk, in the source as in the checkpoint: transformers merges them as it loads.
    return f"model.language_model.{bare}" if stored.in_memory(bare) in stored.names else None


def _grown(read: Read, rows: int) -> Read:
    def grow() -> torch.Tensor:
        table = read()
        mean = table.float().mean(0, keepdim=True).to(table.dtype)
        return torch.cat([table, mean.expand(rows - table.shape[0], *table.shape[1:])])

    return grow


def _check_tied(source: Source, embeddings: Read, head: Read):
    if not torch.equal(embeddings(), head()):
        raise ValueError(
            f"{source.name} says that its head shares the embeddings (tie_word_embeddings), but it holds two "
            "different tables. Correct its config.json."
        )
