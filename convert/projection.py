"""The Linear layer between Q-Former and language model: taken where it fits, fresh where there is none."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..checkpoint import read_projection
from .account import trained_projection
from .parts import Read
from .sources import BLIP2, JMINIGPT4, LAVIS, PROJECTION_FILE, Source

# Sizes of a projection that tell what it was trained for: (input, output) -> whose it is. Vision-CAIR/MiniGPT-4.
KNOWN_PROJECTIONS = {
    (768, 2816): "rinna's GPT-NeoX 3.6b or 4b",
    (768, 4096): "a 7B LLaMA (MiniGPT-4 with Vicuna 7B)",
    (768, 5120): "a 13B LLaMA (MiniGPT-4 with Vicuna 13B)",
    (5632, 4096): "Llama-2 7B without a Q-Former (MiniGPT-4 for Llama-2 joins four patches of 1408)",
    (1408, 4096): "an image encoder without a Q-Former",
}

# How the names of weight and bias begin, as a pattern.
PROJECTION_NAMES = {
    LAVIS: r".*llama_proj\.",
    BLIP2: r"language_projection\.",
    JMINIGPT4: r"model\.language_projection\.",
    PROJECTION_FILE: r"",
}


def projection_part(source: Source | None, qformer_size: int, hidden_size: int, language: str) -> dict[str, Read]:
    """The Linear layer between Q-Former and language model.

    Args:
        source: A checkpoint of rinna's, MiniGPT-4's or this package, a BLIP-2 folder, or a projection file; `None`
            for a fresh layer, initialised as `nn.Linear` is and as MiniGPT-4 trained it (seed 0).
        language: Name of the language model, for messages.

    Raises:
        ValueError: There is no projection in the source, or its size is another; the message names both sizes and
            whose projection it probably is.
    """
    if source is None:
        return _fresh_projection(qformer_size, hidden_size)
    source.parts.add("projection")
    if source.layout not in PROJECTION_NAMES:
        raise ValueError(f"{source.name} ({source.layout.name}) holds no projection.")
    pattern = PROJECTION_NAMES[source.layout]
    if source.weights.matching(rf"{pattern}linear_\d\.weight$"):
        raise ValueError(
            f"The projection of {source.name} is of two layers (`projection: mlp`), and a conversion makes the "
            "article's one Linear: take another projection, or none, and train with `projection: mlp` again."
        )
    if source.layout is PROJECTION_FILE:
        check_alone(source.weights.fetch(source.weights.files["weight"]), source.name)
    keys = {kind: source.weights.matching(rf"{pattern}{kind}$") for kind in ("weight", "bias")}
    if any(len(found) != 1 for found in keys.values()):
        raise ValueError(
            f"{source.name} needs exactly one projection, a weight and a bias named `…llama_proj.`; "
            f"found {sum(keys.values(), [])}."
        )
    found = source.weights.shape(keys["weight"][0], 2)
    if found != (hidden_size, qformer_size):
        raise ValueError(_wrong_size(source, found, (hidden_size, qformer_size), language))
    return {f"model.language_projection.{kind}": source.weights.take(key[0]) for kind, key in keys.items()}


def check_alone(file: Path, name: str):
    """Whether a projection that this package trained can stand elsewhere without the parts that learnt with it.

    Raises:
        ValueError: It was trained together with others.
    """
    if parts := trained_projection(file).get("trained_parts"):
        raise ValueError(
            f"The projection of {name} was trained together with {', '.join(parts)}, and is of no use without: take "
            "the whole model that `jminigpt4 train --export` made."
        )


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


def projection_note(source: Source | None, language: Source, tensors: dict[str, Read]) -> str | None:
    """A sentence when a projection of the right size was trained for another language model, as far as it tells.

    Args:
        tensors: The language model's, by their names in a checkpoint of this package.
    """
    trained_for = _trained_for(source) if source is not None else None
    if source is None or trained_for is None or Path(trained_for).name == Path(language.public_name).name:
        return None
    if source.layout is JMINIGPT4 and _same_language_model(source, tensors):
        return None
    if source.layout is BLIP2:
        return (
            f"The projection of {source.public_name} was trained for the language model of that folder, "
            f"{trained_for}: if {language.public_name} is another, its answers will make no sense."
        )
    return (
        f"{source.public_name} says it was trained for {trained_for}, not for {language.public_name}: of the same "
        "size, but its answers will make no sense there."
    )


def _same_language_model(source: Source, tensors: dict[str, Read]) -> bool:
    """Whether the language model in a checkpoint has the values of another, up to the rounding of either's dtype: its
    names do not tell, as one folder may have two. Looks at a few tensors, as a model trained on differs in all."""
    sizes = {name: torch.Size(source.weights.shape(name)) for name in tensors if name in source.weights}
    vectors = [name for name, size in sizes.items() if len(size) == 1][:32]
    matrices = sorted((name for name, size in sizes.items() if len(size) == 2), key=lambda name: sizes[name].numel())
    compared = 0
    for name in vectors + matrices[:4]:
        mine, other = source.weights.read(name), tensors[name]()
        if mine.shape != other.shape:
            continue  # the embedding table has a row more with an image token
        rounding = max(torch.finfo(each.dtype).eps for each in (mine, other)) if mine.dtype != other.dtype else 0.0
        if not torch.allclose(mine.float(), other.float(), rtol=rounding, atol=1e-7 if rounding else 0.0):
            return False
        compared += mine.dim() == 2
    return compared > 0


def _trained_for(source: Source) -> str | None:
    if source.layout is BLIP2:
        text: Any = source.config.get("text_config") or {}
        width = text.get("hidden_size") or text.get("d_model")
        return text.get("_name_or_path") or f"{text.get('model_type', 'one')} of width {width}"
    if source.layout is JMINIGPT4:
        stated: Any = source.config.get("text_config") or {}
        return stated.get("_name_or_path") or None
    if source.layout is PROJECTION_FILE:
        file = source.weights.fetch(source.weights.files["weight"])  # the name may be one on the Hub
        return read_projection(file)[2].get("language_model")
    return None
