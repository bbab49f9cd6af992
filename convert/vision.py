"""The picture side: image encoder and Q-Former of every known source, as parts of our model.

Names of the originals: MiniGPT-4 @ 22d8888, `eva_vit.py`, `Qformer.py` and `blip2.py`; of the result: transformers'
`Blip2VisionModel` and `Blip2QFormerModel`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import Blip2QFormerConfig, Blip2VisionConfig, PreTrainedConfig, TimmWrapperConfig

from ..configuration_jminigpt4 import JMiniGPT4Config
from .sources import BLIP2, EVA, LAVIS, OWN, QFORMER, TIMM, Source

# What the originals compute with (eva_vit.py `norm_layer=partial(nn.LayerNorm, eps=1e-6)`; BERT's 1e-12). Early
# configurations of the Hub's BLIP-2 say otherwise (LAVIS#418).
BLOCK_EPS = 1e-6
QFORMER_EPS = 1e-12
# Attention heads cannot be read off the weights. Known by width: ViT-g and CLIP ViT-L, BERT-base.
VISION_HEADS = {1408: 16, 1024: 16}
QFORMER_HEADS = {768: 12}
# ViT-g has 40 blocks; BLIP-2 takes the features before the last (eva_vit.py `create_eva_vit_g`, depth=39).
VIT_G_WIDTH, VIT_G_DEPTH = 1408, 39

EVA_NAMES = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj.weight": "embeddings.patch_embedding.weight",
    "patch_embed.proj.bias": "embeddings.patch_embedding.bias",
}
EVA_BLOCK_NAMES = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.proj": "self_attn.projection",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}

Read = Callable[[], torch.Tensor]


@dataclass
class Part:
    """One part of the model: its configuration, and where every one of its tensors is read from.

    Attributes:
        tensors: Name in our model to what reads the tensor.
        notes: What the user should know, one sentence each.
    """

    config: PreTrainedConfig
    tensors: dict[str, Read]
    notes: list[str] = field(default_factory=list)


def vision_part(source: Source, heads: int | None = None) -> Part:
    """The image encoder without the layer norm behind it, which belongs to the Q-Former's file in the originals.

    Args:
        source: EVA or LAVIS weights, a BLIP-2 or InstructBLIP folder, a timm folder, or one of our own.
        heads: Attention heads, where the weights do not tell.

    Raises:
        ValueError: The source holds no image encoder, or the number of heads is not known.
    """
    source.parts.add("vision")
    if source.layout in (EVA, LAVIS):
        return _eva(source, heads)
    if source.layout is BLIP2:
        return _blip2_vision(source)
    if source.layout is TIMM:
        return _timm(source)
    if source.layout is OWN:
        return _own_vision(source)
    raise ValueError(f"{source.name} ({source.layout.name}) holds no image encoder.")


def _eva(source: Source, heads: int | None) -> Part:
    weights = source.weights
    prefix = "visual_encoder." if source.layout is LAVIS else ""
    if prefix + "cls_token" not in weights:
        raise ValueError(
            f"{source.name} holds no image encoder: LAVIS's and MiniGPT-4's checkpoints leave it out, because it is "
            "frozen. Give eva_vit_g.pth."
        )
    width = weights.shape(prefix + "cls_token")[-1]
    positions = weights.shape(prefix + "pos_embed")[1]
    patch = weights.shape(prefix + "patch_embed.proj.weight")[-1]
    found = 1 + max(int(key.split("blocks.")[1].split(".")[0]) for key in weights.matching(rf"{prefix}blocks\."))
    whole = bool(weights.matching(rf"{prefix}(norm|fc_norm|head)\."))
    depth = min(VIT_G_DEPTH, found) if width == VIT_G_WIDTH else found - whole
    config = Blip2VisionConfig(
        hidden_size=width,
        intermediate_size=weights.shape(f"{prefix}blocks.0.mlp.fc1.weight")[0],
        num_hidden_layers=depth,
        num_attention_heads=_heads(heads, VISION_HEADS, width, "vision_heads", source),
        image_size=round((positions - 1) ** 0.5) * patch,
        patch_size=patch,
        layer_norm_eps=BLOCK_EPS,
        qkv_bias=True,
    )
    tensors = {f"model.vision_model.{new}": weights.take(prefix + old) for old, new in EVA_NAMES.items()}
    for index in range(depth):
        tensors |= _eva_block(source, f"{prefix}blocks.{index}.", f"model.vision_model.encoder.layers.{index}.")
    for index in range(depth, found):  # BLIP-2 does not run these
        for key in weights.matching(rf"{prefix}blocks\.{index}\."):
            weights.taken.add(key)
    return Part(config, tensors)


def _eva_block(source: Source, old: str, new: str) -> dict[str, Read]:
    weights = source.weights
    tensors = {
        f"{new}{ours}.{kind}": weights.take(f"{old}{theirs}.{kind}")
        for theirs, ours in EVA_BLOCK_NAMES.items()
        for kind in ("weight", "bias")
    }
    tensors[f"{new}self_attn.qkv.weight"] = weights.take(f"{old}attn.qkv.weight")
    q_bias, v_bias = weights.take(f"{old}attn.q_bias"), weights.take(f"{old}attn.v_bias")

    def qkv_bias() -> torch.Tensor:
        q = q_bias()
        return torch.cat([q, torch.zeros_like(q), v_bias()])  # keys have no bias (eva_vit.py, Attention.forward)

    tensors[f"{new}self_attn.qkv.bias"] = qkv_bias
    return tensors


def _heads(given: int | None, known: dict[int, int], width: int, argument: str, source: Source) -> int:
    heads = given or known.get(width)
    if heads is None:
        raise ValueError(
            f"{source.name} is {width} wide, and how many attention heads that makes cannot be read off the weights: "
            f"give `{argument}`."
        )
    if width % heads:
        raise ValueError(f"{width} channels do not divide into {heads} attention heads: check `{argument}`.")
    return heads


def _blip2_vision(source: Source) -> Part:
    stated = dict(source.config.get("vision_config") or {})
    stated.pop("model_type", None)  # InstructBLIP has its own name for the same encoder
    config = Blip2VisionConfig.from_dict(stated)
    notes = []
    if config.layer_norm_eps != BLOCK_EPS:
        notes.append(
            f"{source.public_name} states an epsilon of {config.layer_norm_eps} for the image encoder; its weights "
            f"were trained with {BLOCK_EPS}, which is written."
        )
        config.layer_norm_eps = BLOCK_EPS
    keys = [key for key in source.weights.matching(r"vision_model\.") if ".post_layernorm." not in key]
    tensors = {f"model.{key}": source.weights.take(key) for key in keys}
    # The layer norm behind the encoder goes with the Q-Former.
    source.weights.taken.update(source.weights.matching(r"vision_model\.post_layernorm\."))
    return Part(config, tensors, notes)


def _timm(source: Source) -> Part:
    config = TimmWrapperConfig.from_dict(source.config)
    config.do_pooling = False
    (config.model_args or {}).pop("num_classes", None)  # there is no classifier
    classifier = (source.config.get("pretrained_cfg") or {}).get("classifier") or "head"
    heads = tuple(f"{name}." for name in ([classifier] if isinstance(classifier, str) else classifier))
    tensors = {}
    for key in source.weights.names():
        name = key.removeprefix("timm_model.")
        if name.startswith(heads):
            source.weights.taken.add(key)
        else:
            tensors[f"model.vision_model.timm_model.{name}"] = source.weights.take(key)
    return Part(config, tensors)


def _own_vision(source: Source) -> Part:
    config: Any = JMiniGPT4Config.from_dict(source.config)
    keys = [key for key in source.weights.matching(r"model\.vision_model\.") if ".post_layernorm." not in key]
    return Part(config.vision_config, {key: source.weights.take(key) for key in keys})


def qformer_part(source: Source, vision: PreTrainedConfig, heads: int | None = None) -> Part:
    """The Q-Former with its query tokens, and the layer norm between the image encoder and it.

    Args:
        source: A LAVIS file, a BLIP-2 folder, a Q-Former folder (see [`jminigpt4.convert.assemble`]) or our own.
        vision: Configuration of the image encoder; it says where our model keeps the layer norm.
        heads: Attention heads, where the weights do not tell.

    Raises:
        ValueError: The source holds no Q-Former, or one that reads the question, as InstructBLIP's does.
    """
    source.parts.add("qformer")
    names = {LAVIS: _lavis_qformer, BLIP2: _blip2_qformer, QFORMER: _qformer_folder, OWN: _own_qformer}
    if source.layout not in (LAVIS, BLIP2, QFORMER, OWN):
        raise ValueError(f"{source.name} ({source.layout.name}) holds no Q-Former.")
    part = names[source.layout](source, heads)
    stock = vision.model_type == "blip_2_vision_model"
    target = "model.vision_model.post_layernorm" if stock else "model.vision_layernorm"
    for kind in ("weight", "bias"):
        part.tensors[f"{target}.{kind}"] = part.tensors.pop(f"layernorm.{kind}")
    if stock and vision.hidden_size != part.config.encoder_hidden_size:
        raise ValueError(
            f"The image encoder is {vision.hidden_size} wide, but the Q-Former of {source.name} was trained on one of "
            f"{part.config.encoder_hidden_size}: give the two of one model."
        )
    return part


def _lavis_qformer(source: Source, heads: int | None) -> Part:
    weights = source.weights
    if "query_tokens" not in weights:
        raise ValueError(f"{source.name} holds no Q-Former: give blip2_pretrained_flant5xxl.pth or its like.")
    reads_text = "Qformer.bert.embeddings.word_embeddings.weight" in weights
    if reads_text and weights.matching(r"(llm_proj|t5_proj|opt_proj)\."):
        raise ValueError(_reads_the_question(source))
    prefix = "Qformer.bert.encoder.layer."
    layers = 1 + max(int(key.removeprefix(prefix).split(".")[0]) for key in weights.matching(re.escape(prefix)))
    crossing = [i for i in range(layers) if f"{prefix}{i}.crossattention.self.query.weight" in weights]
    width = weights.shape("query_tokens")[-1]
    config = Blip2QFormerConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=_heads(heads, QFORMER_HEADS, width, "qformer_heads", source),
        intermediate_size=weights.shape(f"{prefix}0.intermediate_query.dense.weight")[0],
        encoder_hidden_size=weights.shape(f"{prefix}0.crossattention.self.key.weight")[1],
        cross_attention_frequency=crossing[1] - crossing[0] if len(crossing) > 1 else layers,
        layer_norm_eps=QFORMER_EPS,
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
        f"The Q-Former of {source.name} reads the question along with the picture, as InstructBLIP's does; ours sees "
        "the picture alone. Take the Q-Former of a BLIP-2 model; as the image encoder this one can be used."
    )


def _qformer_config(stated: dict[str, Any], source: Source) -> tuple[Blip2QFormerConfig, list[str]]:
    config = Blip2QFormerConfig.from_dict(stated)
    config.use_qformer_text_input = False
    notes = []
    if config.layer_norm_eps != QFORMER_EPS:
        notes.append(
            f"{source.public_name} states an epsilon of {config.layer_norm_eps} for the Q-Former; BERT's "
            f"{QFORMER_EPS} is what it was trained with, and is written."
        )
        config.layer_norm_eps = QFORMER_EPS
    return config, notes


def _blip2_qformer(source: Source, heads: int | None) -> Part:
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


def _qformer_folder(source: Source, heads: int | None) -> Part:
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
    return Part(config, tensors)


def _own_qformer(source: Source, heads: int | None) -> Part:
    weights = source.weights
    tensors = {key: weights.take(key) for key in weights.matching(r"model\.(qformer\.|query_tokens$)")}
    stock = "model.vision_layernorm.weight" not in weights
    layernorm = "model.vision_model.post_layernorm" if stock else "model.vision_layernorm"
    for kind in ("weight", "bias"):
        tensors[f"layernorm.{kind}"] = weights.take(f"{layernorm}.{kind}")
    config: Any = JMiniGPT4Config.from_dict(source.config)
    return Part(config.qformer_config, tensors)
