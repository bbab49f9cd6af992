"""One side of the proof: what the sources compute by themselves, stage by stage, in float32.

Their tensors are first rounded as the folder stores them, so that both sides compute with the same numbers and differ
by the order of summation alone, in whatever dtype the folder is.
"""

import gc
import json
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from transformers import AutoModelForCausalLM, Blip2QFormerModel, Blip2VisionModel

from .originals import NORM_EPS, eva_blocks, lavis_qformer, ln_vision, prepared_picture
from .plan import ConversionPlan, kept_in_float32
from .projection import PROJECTION_NAMES
from .qformer import POSITIONS
from .sources import BLIP2, BLIP2_VISION, EVA, JMINIGPT4, LAVIS, QFORMER, STOCK_VISION, Source
from .stock_vision import stock_class

QUESTION = "この画像には何が写っていますか？"


@dataclass
class SourceOutputs:
    """Inputs and outputs of the sources.

    Attributes:
        pictures: What was prepared.
        pixel_values: The pictures, prepared as the sources prepare them.
        input_ids: The prompt with the first picture.
        stages: Name of each stage to its output.
    """

    pictures: list[Image.Image]
    pixel_values: torch.Tensor
    input_ids: torch.Tensor
    stages: dict[str, torch.Tensor]


@torch.no_grad()
def source_outputs(plan: ConversionPlan, pictures: list[Image.Image]) -> SourceOutputs:
    """Runs the sources one part after another, so that never more than one of them is in memory."""
    pixel_values = _pixel_values(plan, pictures)
    content = [{"type": "image", "image": pictures[0]}, {"type": "text", "text": QUESTION}]
    processor: Any = plan.processor
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True
    )
    input_ids = torch.tensor(inputs["input_ids"])
    stages = _vision_of(plan, pixel_values)
    stages |= _qformer_of(plan, stages)
    stages |= _projection_of(plan.sources.get("projection"), stages["Q-Former"])
    stages |= _language_of(plan, input_ids, stages.get("projection"))
    return SourceOutputs(pictures, pixel_values, input_ids, stages)


def dtype_of(plan: ConversionPlan) -> torch.dtype:
    """The dtype of the folder; Q-Former and projection are in float32 whatever it is."""
    return getattr(torch, str(plan.config.dtype).removeprefix("torch."))


class _Rounded:
    """A source's tensors in float32, with the values they have in the folder's dtype."""

    def __init__(self, source: Source, dtype: torch.dtype):
        self.weights, self.dtype = source.weights, dtype

    def read(self, key: str) -> torch.Tensor:
        tensor = self.weights.read(key)
        return tensor.to(self.dtype).float() if tensor.is_floating_point() else tensor

    def names(self) -> list[str]:
        return self.weights.names()

    def __contains__(self, key: str) -> bool:
        return key in self.weights


def _pixel_values(plan: ConversionPlan, pictures: list[Image.Image]) -> torch.Tensor:
    source = plan.sources["vision"]
    vision: Any = plan.config.vision_config
    if vision.model_type == "blip_2_vision_model":
        size = (vision.image_size, vision.image_size)
        return torch.stack([prepared_picture(picture, size) for picture in pictures])
    if source.layout is JMINIGPT4 or source.layout is STOCK_VISION:
        name = "processor_config.json" if source.layout is JMINIGPT4 else "preprocessor_config.json"
        stated = json.loads((source.need_folder() / name).read_text(encoding="utf-8"))
        stated = stated.get("image_processor", stated)
        mean, std = stated.get("image_mean"), stated.get("image_std")
        resample = stated.get("resample", Image.Resampling.BICUBIC)
        if not stated.get("do_normalize", True):
            mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    else:
        from timm.data import resolve_model_data_config

        settings = resolve_model_data_config(_timm_encoder(vision), args=_pretrained(source))
        mean, std = settings["mean"], settings["std"]
        resample = getattr(Image.Resampling, settings["interpolation"].upper(), Image.Resampling.BICUBIC)
    size = plan.processor.image_processor.size  # where pictures are cut to their middle there are several to choose
    size = (size["height"], size["width"])
    normed = {key: value for key, value in (("mean", mean), ("std", std)) if value is not None}
    return torch.stack([prepared_picture(picture, size, resample=resample, **normed) for picture in pictures])


def _pretrained(source: Source) -> dict[str, Any]:
    stated = source.config.get("pretrained_cfg") or {}
    return {key: stated[key] for key in ("mean", "std", "interpolation") if key in stated}


def _timm_encoder(vision: Any) -> Any:
    import timm

    return timm.create_model(vision.architecture, pretrained=False, num_classes=0, **(vision.model_args or {}))


def _vision_of(plan: ConversionPlan, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the source's own image encoder makes of the pictures, before the layer norm."""
    source = plan.sources["vision"]
    vision: Any = plan.config.vision_config
    weights = _Rounded(source, dtype_of(plan))
    if source.layout in (EVA, LAVIS):
        prefix = "visual_encoder." if source.layout is LAVIS else ""
        blocks = eva_blocks(weights, pixel_values, vision.num_attention_heads, vision.num_hidden_layers, prefix)
        return {"first block": blocks[0], "image encoder": blocks[-1]}
    if vision.model_type == "blip_2_vision_model":
        prefix = {BLIP2: "vision_model.", BLIP2_VISION: "", JMINIGPT4: "model.vision_model."}[source.layout]
        encoder = _load(Blip2VisionModel(vision), weights, prefix)
        hidden = encoder(pixel_values, output_hidden_states=True).hidden_states
        return {"first block": hidden[1], "image encoder": hidden[-1]}
    if vision.model_type != "timm_wrapper":
        return {"image encoder": _stock_encoder(source, vision, weights)(pixel_values).last_hidden_state}
    prefix = "model.vision_model.timm_model." if source.layout is JMINIGPT4 else "timm_model."
    encoder = _load(_timm_encoder(vision), weights, prefix)
    last = encoder.forward_features(pixel_values)
    if not plan.config.vision_early_layers:
        return {"image encoder": last}
    early = encoder.forward_intermediates(pixel_values, plan.config.vision_early_layers, intermediates_only=True)
    averaged = [F.interpolate(each, last.shape[-2:], mode="area").flatten(2).transpose(1, 2) for each in early]
    return {"image encoder": last, "early layers": torch.cat(averaged, -1)}


def _stock_encoder(source: Source, vision: Any, weights: _Rounded) -> Any:
    """transformers' own vision model with the source's tensors, which transformers' own loader gives their place."""
    prefix = "model.vision_model." if source.layout is JMINIGPT4 else ""
    keys = [key for key in weights.names() if key.startswith(prefix) and key in source.weights.taken]
    state = {key.removeprefix(prefix): weights.read(key) for key in keys}
    encoder, found = stock_class(vision).from_pretrained(
        None, config=vision, state_dict=state, dtype=torch.float32, output_loading_info=True
    )
    lacking = [key for key in found["missing_keys"] if not key.startswith("pooler.")]
    if lacking:
        raise ValueError(f"transformers finds no {lacking[0]} in {source.name}: it is not a whole image encoder.")
    return encoder.eval()


def _load(module: torch.nn.Module, weights: _Rounded, prefix: str) -> Any:
    """A source's own module with the source's tensors, by their own names; classifiers and the like stay behind."""
    expected = module.state_dict()
    state = {
        key.removeprefix(prefix): weights.read(key) for key in weights.names() if key.removeprefix(prefix) in expected
    }
    module.load_state_dict(state, strict=True)
    return module.float().eval()


def _qformer_of(plan: ConversionPlan, vision: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Layer norm and Q-Former of the source on what its image encoder gives."""
    features, early = vision["image encoder"], vision.get("early layers")
    source = plan.sources["qformer"]
    config: Any = plan.config
    if features.ndim == 4:
        width = config.qformer_config.encoder_hidden_size - (0 if early is None else early.shape[-1])
        features = features.flatten(1, 2) if features.shape[-1] == width else features.flatten(2).transpose(1, 2)
    if early is not None:
        features = torch.cat([features, early], -1)
    # BLIP-2's norm is a part of its image encoder in transformers, and has its dtype there.
    stock = config.vision_config.model_type == "blip_2_vision_model"
    norm, weights = _Rounded(source, dtype_of(plan) if stock else torch.float32), _Rounded(source, torch.float32)
    if source.layout is LAVIS:
        image_embeds = ln_vision(norm, features)
        hidden = lavis_qformer(weights, image_embeds, config.qformer_config.num_attention_heads)
        return {"layer norm": image_embeds, "Q-Former": hidden[-1]}
    prefix = {BLIP2: "", QFORMER: "", JMINIGPT4: "model."}[source.layout]
    # SigLIP and CLIP have a norm of the name that BLIP-2 gives this one: theirs is looked at last.
    names = ["model.vision_layernorm", "vision_layernorm", "vision_model.post_layernorm"]
    names.append("model.vision_model.post_layernorm")
    name = next((name for name in names if f"{name}.weight" in norm), None)
    affine = [norm.read(f"{name}.{kind}") for kind in ("weight", "bias")] if name else [None, None]
    image_embeds = F.layer_norm(features, features.shape[-1:], *affine, NORM_EPS)
    if name and (positions := f"{name}.{POSITIONS}") in norm:
        image_embeds = image_embeds + norm.read(positions)
    qformer = _load(Blip2QFormerModel(config.qformer_config), weights, f"{prefix}qformer.")
    queries = weights.read(f"{prefix}query_tokens").expand(len(features), -1, -1)
    output = qformer(query_embeds=queries, encoder_hidden_states=image_embeds).last_hidden_state
    return {"layer norm": image_embeds, "Q-Former": output}


def _projection_of(source: Source | None, query_features: torch.Tensor) -> dict[str, torch.Tensor]:
    if source is None:
        return {}
    pattern = PROJECTION_NAMES[source.layout]
    weight, bias = (
        source.weights.read(source.weights.matching(f"{pattern}{kind}$")[0]).float() for kind in ("weight", "bias")
    )
    return {"projection": F.linear(query_features, weight, bias)}


def _language_of(
    plan: ConversionPlan, input_ids: torch.Tensor, projected: torch.Tensor | None
) -> dict[str, torch.Tensor]:
    """Logits of the source's language model: for the text alone and, where there is a projection to compare, for the
    prompt with the first picture, glued together as `get_context_emb` of the originals does it."""
    source = plan.sources["language"]
    if source.layout is JMINIGPT4:
        return {}
    model = AutoModelForCausalLM.from_pretrained(
        source.need_folder(), dtype=torch.float32, variant=source.weights.variant
    ).eval()
    kept = kept_in_float32(model, dtype_of(plan))
    for name, parameter in model.named_parameters():
        if kept.isdisjoint(name.split(".")):
            parameter.data = parameter.data.to(dtype_of(plan)).float()
    is_image = input_ids[0] == plan.config.image_token_id
    text_ids = input_ids[:, ~is_image]
    logits = {"language model": model(input_ids=text_ids).logits}
    if projected is not None:
        first = int(is_image.int().argmax())
        embed = model.get_input_embeddings()
        before, after = embed(text_ids[:, :first]), embed(text_ids[:, first:])
        context = torch.cat([before, projected[:1], after], 1)
        logits["whole prompt"] = model(inputs_embeds=context).logits
    del model
    gc.collect()
    return logits
