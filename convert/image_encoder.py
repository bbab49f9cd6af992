"""Image encoders of every known kind of source, as a part of the model.

Names of the originals: MiniGPT-4 @ 22d8888, `eva_vit.py`; of the result: transformers' `Blip2VisionModel`, and for
encoders of timm and of transformers those they have there.
"""

import re
from functools import partial
from typing import Any

import torch
from transformers import AutoModel, Blip2VisionConfig, TimmWrapperConfig

from ..configuration_jminigpt4 import JMiniGPT4Config, check_image_encoder
from ..inference.stored_weights import StoredNames
from .parts import Part, Read, attention_heads
from .sources import BLIP2, BLIP2_VISION, EVA, JMINIGPT4, LAVIS, LEGACY_BUFFERS, STOCK_VISION, TIMM, Source
from .stock_vision import stock_vision_config

# What the originals compute with (eva_vit.py `norm_layer=partial(nn.LayerNorm, eps=1e-6)`). Early configurations of
# the Hub's BLIP-2 say otherwise (LAVIS#418).
BLOCK_EPS = 1e-6
# Attention heads cannot be read off the weights. Known by width: ViT-g and CLIP ViT-L.
VISION_HEADS = {1408: 16, 1024: 16}
# Where timm keeps classifiers, for models that do not say it.
CLASSIFIERS = ["head", "head_dist", "fc", "classifier"]
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


def vision_part(source: Source, heads: int | None = None) -> Part:
    """The image encoder without the layer norm behind it, which belongs to the Q-Former's file in the originals.

    Args:
        source: EVA or LAVIS weights; a folder of BLIP-2 or InstructBLIP, of timm, of a vision or dual model of
            transformers; or a checkpoint of this package.
        heads: Attention heads, where the weights do not tell.

    Raises:
        ValueError: The source holds no image encoder, or the number of heads is not known.
    """
    source.parts.add("vision")
    if source.layout in (EVA, LAVIS):
        return _eva(source, heads)
    readers = {BLIP2: _blip2, BLIP2_VISION: _blip2, TIMM: _timm, STOCK_VISION: _stock, JMINIGPT4: _jminigpt4}
    if source.layout not in readers:
        raise ValueError(f"{source.name} ({source.layout.name}) holds no image encoder.")
    return readers[source.layout](source)


def _eva(source: Source, heads: int | None) -> Part:
    weights = source.weights
    prefix = "visual_encoder." if source.layout is LAVIS else ""
    if prefix + "cls_token" not in weights:
        raise ValueError(
            f"{source.name} holds no image encoder: LAVIS's and MiniGPT-4's checkpoints leave it out, because it is "
            "frozen. Give eva_vit_g.pth."
        )
    width = weights.shape(prefix + "cls_token", 3)[-1]
    positions = weights.shape(prefix + "pos_embed", 3)[1]
    patch = weights.shape(prefix + "patch_embed.proj.weight", 4)[-1]
    found = 1 + max(int(key.split("blocks.")[1].split(".")[0]) for key in weights.matching(rf"{prefix}blocks\."))
    whole = bool(weights.matching(rf"{prefix}(norm|fc_norm|head)\."))
    depth = min(VIT_G_DEPTH, found) if width == VIT_G_WIDTH else found - whole
    config = Blip2VisionConfig(
        hidden_size=width,
        intermediate_size=weights.shape(f"{prefix}blocks.0.mlp.fc1.weight", 2)[0],
        num_hidden_layers=depth,
        num_attention_heads=attention_heads(heads, VISION_HEADS, width, "vision_heads", source),
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


def _blip2(source: Source) -> Part:
    alone = source.layout is BLIP2_VISION
    stated = dict(source.config if alone else source.config.get("vision_config") or {})
    stated.pop("model_type", None)  # InstructBLIP has its own name for the same encoder
    config = Blip2VisionConfig.from_dict(stated)
    notes = []
    if config.layer_norm_eps != BLOCK_EPS:
        notes.append(
            f"{source.public_name} states an epsilon of {config.layer_norm_eps} for the image encoder; its weights "
            f"were trained with {BLOCK_EPS}, which is written."
        )
        config.layer_norm_eps = BLOCK_EPS
    prefix = "" if alone else "vision_model."
    norm = f"{prefix}post_layernorm."
    keys = [key for key in source.weights.matching(re.escape(prefix)) if not key.startswith(norm)]
    keys = [key for key in keys if not any(re.match(pattern, key) for pattern in LEGACY_BUFFERS)]
    tensors = {f"model.vision_model.{key.removeprefix(prefix)}": source.weights.take(key) for key in keys}
    # The layer norm behind the encoder goes with the Q-Former.
    source.weights.taken.update(source.weights.matching(re.escape(norm)))
    return Part(config, tensors, notes)


def _timm(source: Source) -> Part:
    check_image_encoder(source.config)
    config = TimmWrapperConfig.from_dict(source.config)
    config.do_pooling = False
    (config.model_args or {}).pop("num_classes", None)  # there is no classifier
    classifier = (source.config.get("pretrained_cfg") or {}).get("classifier") or CLASSIFIERS
    heads = tuple(f"{name}." for name in ([classifier] if isinstance(classifier, str) else classifier))
    with torch.device("meta"):
        used = set(AutoModel.from_config(config).state_dict())
    tensors = {}
    for key in source.weights.names():
        name = f"timm_model.{key.removeprefix('timm_model.')}"
        if name in used:  # also a norm that timm counts among the head (ConvNeXt: `head.norm`)
            tensors[f"model.vision_model.{name}"] = source.weights.take(key)
        elif name.removeprefix("timm_model.").startswith(heads):
            source.weights.taken.add(key)
    return Part(config, tensors)


def _stock(source: Source) -> Part:
    config: Any = stock_vision_config(source.config)
    check_image_encoder(config)
    with torch.device("meta"):
        encoder = AutoModel.from_config(config)
    stored, found = StoredNames(encoder), set()
    prefixes = (f"{encoder.base_model_prefix}.", "vision_model.")
    prefix = next((prefix for prefix in prefixes if source.weights.matching(re.escape(prefix))), "")
    tensors: dict[str, Read] = {}
    for key in source.weights.matching(re.escape(prefix)):
        name = stored.in_memory(key.removeprefix(prefix))
        if name in stored.state:
            found.add(name)
            tensors[f"model.vision_model.{key.removeprefix(prefix)}"] = source.weights.take(key)
    notes = []
    poolers = {name: tensor.shape for name, tensor in encoder.state_dict().items() if name.startswith("pooler.")}
    if poolers and found.isdisjoint(poolers):
        # transformers builds it with every ViT; the Q-Former reads what comes before it.
        tensors |= {f"model.vision_model.{name}": partial(torch.zeros, shape) for name, shape in poolers.items()}
        notes.append(f"{source.public_name} has no pooler, and none is used: zeros are written in its place.")
    return Part(config, tensors, notes)


def _jminigpt4(source: Source) -> Part:
    config: Any = JMiniGPT4Config.from_dict(source.config).vision_config
    keys = source.weights.matching(r"model\.vision_model\.")
    if config.model_type == "blip_2_vision_model":  # its last norm goes with the Q-Former
        keys = [key for key in keys if ".post_layernorm." not in key]
    return Part(config, {key: source.weights.take(key) for key in keys})
