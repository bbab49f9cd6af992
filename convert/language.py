"""The language side: any causal language model of transformers as a part of our model, and the projection to it."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.models.auto import CONFIG_MAPPING

from ..checkpoint import read_projection
from ..configuration_jminigpt4 import JMiniGPT4Config
from .card import FRESH_PROJECTION
from .language_code import register_language_code
from .sources import LANGUAGE, LAVIS, OWN, PROJECTION, Source
from .vision import Part, Read

# Names on disk that are other than those in memory (GPT-NeoX, since transformers 5.14).
RENAMED = {r"^embed_out\.": "lm_head."}

# Sizes of a projection that tell what it was trained for: (input, output) -> whose it is. Vision-CAIR/MiniGPT-4.
KNOWN_PROJECTIONS = {
    (768, 2816): "rinna's GPT-NeoX 3.6b or 4b",
    (768, 4096): "a 7B LLaMA (MiniGPT-4 with Vicuna 7B)",
    (768, 5120): "a 13B LLaMA (MiniGPT-4 with Vicuna 13B)",
    (5632, 4096): "Llama-2 7B without a Q-Former (MiniGPT-4 for Llama-2 joins four patches of 1408)",
    (1408, 4096): "an image encoder without a Q-Former",
}


def language_config(source: Source, trusted_code: str | None = None) -> tuple[PreTrainedConfig, dict[str, str]]:
    """Configuration of the language model, and the classes of its own code if it needs any (see
    [`jminigpt4.convert.language_code`]).

    Raises:
        ValueError: The source is no causal language model, or needs code that the user did not allow.
    """
    source.parts.add("language")
    if source.layout is OWN:
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
    """The language model, headless as ours holds it, and its head.

    Args:
        config: From [`language_config`]; its `vocab_size` becomes the one given.
        vocab_size: Rows the embedding table is to have. New rows are the mean of the old ones; ids never move.

    Raises:
        ValueError: A tensor belongs to nothing in a model of this type.
    """
    weights = source.weights
    with torch.device("meta"):
        headless = AutoModel.from_config(config)
    names = set(headless.state_dict())
    embeddings = _embedding_name(headless)
    tensors: dict[str, Read] = {}
    for key in weights.names():
        name = _target_name(key, names, headless.base_model_prefix, source)
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


def _target_name(key: str, names: set[str], prefix: str, source: Source) -> str | None:
    """Name of a tensor in our model; `None` for one that goes elsewhere or nowhere."""
    if source.layout is OWN:
        return key if re.match(source.layout.parts["language"], key) else None
    for old, new in RENAMED.items():
        key = re.sub(old, new, key)
    if key.startswith("lm_head."):
        return key
    bare = key.removeprefix(f"{prefix}.")
    return f"model.language_model.{bare}" if bare in names else None


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


def projection_part(source: Source | None, qformer_size: int, hidden_size: int, language: str) -> dict[str, Read]:
    """The Linear layer between Q-Former and language model.

    Args:
        source: A checkpoint of rinna's or MiniGPT-4's, our own projection file or a folder of ours; `None` for a
            fresh layer, initialised as `nn.Linear` is and as MiniGPT-4 trained it (seed 0).
        language: Name of the language model, for messages.

    Raises:
        ValueError: There is no projection in the source, or its size is another; the message names both sizes and
            whose projection it probably is.
    """
    if source is None:
        return _fresh_projection(qformer_size, hidden_size)
    source.parts.add("projection")
    prefixes = {LAVIS: r".*llama_proj\.", OWN: r"model\.language_projection\.", PROJECTION: r""}
    if source.layout not in prefixes:
        raise ValueError(f"{source.name} ({source.layout.name}) holds no projection.")
    pattern = prefixes[source.layout]
    keys = {kind: source.weights.matching(rf"{pattern}{kind}$") for kind in ("weight", "bias")}
    if any(len(found) != 1 for found in keys.values()):
        raise ValueError(
            f"{source.name} needs exactly one projection, a weight and a bias named `…llama_proj.`; "
            f"found {sum(keys.values(), [])}."
        )
    found = source.weights.shape(keys["weight"][0])
    if found != (hidden_size, qformer_size):
        raise ValueError(_wrong_size(source, found, (hidden_size, qformer_size), language))
    return {f"model.language_projection.{kind}": source.weights.take(key[0]) for kind, key in keys.items()}


def _fresh_projection(qformer_size: int, hidden_size: int) -> dict[str, Read]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = nn.Linear(qformer_size, hidden_size)
    return {
        "model.language_projection.weight": lambda: layer.weight.detach(),
        "model.language_projection.bias": lambda: layer.bias.detach(),
    }


def _wrong_size(source: Source, found: tuple[int, ...], needed: tuple[int, int], language: str) -> str:
    whose = KNOWN_PROJECTIONS.get((found[1], found[0]))
    for_whom = KNOWN_PROJECTIONS.get((needed[1], needed[0]))
    return (
        f"The projection of {source.name} maps {found[1]} to {found[0]}"
        + (f", which is the size for {whose}" if whose else "")
        + f"; {language} needs {needed[1]} to {needed[0]}"
        + (f", the size for {for_whom}" if for_whom else "")
        + ". Take the projection that was trained for this language model, or none and train one."
    )


def projection_note(source: Source | None, language: Source) -> str | None:
    """A sentence when a projection of the right size was trained for another language model, as far as it tells."""
    if source is None:
        return f"{FRESH_PROJECTION}: it has to be trained before the model says anything of use."
    trained_for = _trained_for(source)
    name = Path(language.public_name).name
    if trained_for and Path(trained_for).name != name:
        return (
            f"{source.public_name} says it was trained for {trained_for}, not for {language.public_name}: of the same "
            "size, but its answers will make no sense there."
        )
    return None


def _trained_for(source: Source) -> str | None:
    if source.layout is OWN:
        stated: Any = source.config.get("text_config") or {}
        return stated.get("_name_or_path") or None
    if source.layout is PROJECTION:
        file = source.weights.fetch(source.weights.files["weight"])  # the name may be one on the Hub
        return read_projection(file)[2].get("language_model")
    return None
