"""Q-Formers of every known kind of source, as a part of the model, with the layer norm in front of them.

Names of the originals: MiniGPT-4 @ 22d8888, `Qformer.py` and `blip2.py`; of the result: transformers'
`Blip2QFormerModel`.
"""

import re
from typing import Any

import torch
from transformers import Blip2QFormerConfig, PreTrainedConfig

from ..configuration_jminigpt4 import JMiniGPT4Config
from .parts import Part, attention_heads
from .sources import BLIP2, JMINIGPT4, LAVIS, QFORMER, Source

# BERT's. Early configurations of the Hub's BLIP-2 say otherwise (LAVIS#418).
EPS = 1e-12
POSITIONS = "position_embeddings"  # of the layer norm, where the image encoder has none
# Attention heads cannot be read off the weights. Known by width: BERT-base.
QFORMER_HEADS = {768: 12}


def qformer_part(source: Source, vision: PreTrainedConfig, heads: int | None = None) -> Part:
    """The Q-Former with its query tokens, and the layer norm between the image encoder and it.

    Args:
        source: A LAVIS file, a BLIP-2 folder, a Q-Former folder (see [`jminigpt4.convert.assemble`]) or a checkpoint
            of this package.
        vision: Configuration of the image encoder; it says where the model keeps the layer norm.
        heads: Attention heads, where the weights do not tell.

    Raises:
        ValueError: The source holds no Q-Former, or one that reads the question, as InstructBLIP's does.
    """
    source.parts.add("qformer")
    readers = {BLIP2: _blip2, QFORMER: _folder, JMINIGPT4: _jminigpt4}
    if source.layout is not LAVIS and source.layout not in readers:
        raise ValueError(f"{source.name} ({source.layout.name}) holds no Q-Former.")
    part = _lavis(source, heads) if source.layout is LAVIS else readers[source.layout](source)
    stock = vision.model_type == "blip_2_vision_model"
    target = "model.vision_model.post_layernorm" if stock else "model.vision_layernorm"
    for kind in ("weight", "bias", POSITIONS):
        if read := part.tensors.pop(f"layernorm.{kind}", None):
            part.tensors[f"{target}.{kind}"] = read
    width = getattr(vision, "hidden_size", None)  # of timm's encoders it is seen when the model is built
    if width is not None and width != part.config.encoder_hidden_size:
        raise ValueError(
            f"The image encoder is {width} wide, but the Q-Former of {source.name} was trained on one of "
            f"{part.config.encoder_hidden_size}: give the two of one model."
        )
    return part


def _lavis(source: Source, heads: int | None) -> Part:
    weights = source.weights
    if "query_tokens" not in weights:
        raise ValueError(f"{source.name} holds no Q-Former: give blip2_pretrained_flant5xxl.pth or its like.")
    reads_text = "Qformer.bert.embeddings.word_embeddings.weight" in weights
    if reads_text and weights.matching(r"(llm_proj|t5_proj|opt_proj)\."):
        raise ValueError(_reads_the_question(source))
    prefix = "Qformer.bert.encoder.layer."
    layers = 1 + max(int(key.removeprefix(prefix).split(".")[0]) for key in weights.matching(re.escape(prefix)))
    crossing = [i for i in range(layers) if f"{prefix}{i}.crossattention.self.query.weight" in weights]
    width = weights.shape("query_tokens", 3)[-1]
    config = Blip2QFormerConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=attention_heads(heads, QFORMER_HEADS, width, "qformer_heads", source),
        intermediate_size=weights.shape(f"{prefix}0.intermediate_query.dense.weight", 2)[0],
        encoder_hidden_size=weights.shape(f"{prefix}0.crossattention.self.key.weight", 2)[1],
        cross_attention_frequency=crossing[1] - crossing[0] if len(crossing) > 1 else layers,
        layer_norm_eps=EPS,
        use_qformer_text_input=False,
    )
    tensors = {
        "model.query_tokens": weights.take("query_tokens"),
        "layernorm.weight": weights.take("ln_vision.weight"),
        "layernorm.bias": weights.take("ln_vision.bias"),
    }
    for kind in ("weight", "bias"):
        tensors[f"model.qformer.layernorm.{kind}"] = weights.take(f"Qformer.bert.embeddings.LayerNorm.{kind}")
    kinds = r"\d+\.(attention|crossattention|intermediate_query|output_query)\."
    for key in weights.matching(re.escape(prefix) + kinds):
        name = key.removeprefix("Qformer.bert.").replace(".self.", ".attention.")
        tensors[f"model.qformer.{name}"] = weights.take(key)
    return Part(config, tensors)


def _reads_the_question(source: Source) -> str:
    return (
        f"The Q-Former of {source.name} reads the question along with the picture, as InstructBLIP's does; here it "
        "sees the picture alone. Take the Q-Former of a BLIP-2 model; as the image encoder this one can be used."
    )


def _qformer_config(stated: dict[str, Any], source: Source) -> tuple[Blip2QFormerConfig, list[str]]:
    config = Blip2QFormerConfig.from_dict(stated)
    config.use_qformer_text_input = False
    notes = []
    if config.layer_norm_eps != EPS:
        notes.append(
            f"{source.public_name} states an epsilon of {config.layer_norm_eps} for the Q-Former; BERT's "
            f"{EPS} is what it was trained with, and is written."
        )
        config.layer_norm_eps = EPS
    return config, notes


def _blip2(source: Source) -> Part:
    weights = source.weights
    if source.config.get("model_type", "").startswith("instructblip"):
        raise ValueError(_reads_the_question(source))
    config, notes = _qformer_config(source.config.get("qformer_config") or {}, source)
    keys = weights.matching(r"qformer\.(layernorm|encoder\.layer\.\d+\.(?!intermediate\.|output\.))")
    tensors = {f"model.{key}": weights.take(key) for key in keys}
    tensors["model.query_tokens"] = weights.take("query_tokens")
    for kind in ("weight", "bias"):
        tensors[f"layernorm.{kind}"] = weights.take(f"vision_model.post_layernorm.{kind}")
    return Part(config, tensors, notes)


def _folder(source: Source) -> Part:
    weights = source.weights
    config = Blip2QFormerConfig.from_dict(source.config)
    if config.use_qformer_text_input:
        raise ValueError(_reads_the_question(source))
    if "query_tokens" not in weights:
        raise ValueError(f"{source.name} lacks `query_tokens`: a Q-Former folder holds them beside its weights.")
    tensors = {}
    for key in weights.names():
        if key == "query_tokens":
            tensors["model.query_tokens"] = weights.take(key)
        elif key.startswith("vision_layernorm."):
            tensors[key.removeprefix("vision_")] = weights.take(key)
        else:
            tensors[f"model.qformer.{key.removeprefix('qformer.')}"] = weights.take(key)
    size = config.encoder_hidden_size
    tensors.setdefault("layernorm.weight", lambda: torch.ones(size))
    tensors.setdefault("layernorm.bias", lambda: torch.zeros(size))
    return Part(config, tensors, places=_places(source, f"vision_layernorm.{POSITIONS}"))


def _places(source: Source, positions: str) -> dict[str, Any]:
    """What a Q-Former looks at beside the last feature map, as the configuration of the model says it."""
    count = source.weights.shape(positions, 3)[1] if positions in source.weights else 0
    return {"vision_early_layers": source.config.get("vision_early_layers"), "num_vision_positions": count}


def _jminigpt4(source: Source) -> Part:
    weights = source.weights
    tensors = {key: weights.take(key) for key in weights.matching(r"model\.(qformer\.|query_tokens$)")}
    stock = "model.vision_layernorm.weight" not in weights
    layernorm = "model.vision_model.post_layernorm" if stock else "model.vision_layernorm"
    for kind in ("weight", "bias"):
        tensors[f"layernorm.{kind}"] = weights.take(f"{layernorm}.{kind}")
    if (positions := f"{layernorm}.{POSITIONS}") in weights:
        tensors[f"layernorm.{POSITIONS}"] = weights.take(positions)
    config: Any = JMiniGPT4Config.from_dict(source.config)
    return Part(config.qformer_config, tensors, places=_places(source, positions))
