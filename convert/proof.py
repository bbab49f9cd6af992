"""A converted folder proves itself: loaded as a user loads it, and compared with its sources stage by stage.

The sources' side runs first, one part after another, so that never more than one of its parts is in memory.
"""

import gc
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    Blip2QFormerModel,
    Blip2VisionModel,
)

from .originals import eva_blocks, lavis_qformer, ln_vision
from .plan import ConversionPlan
from .progress import progress_bar
from .sources import BLIP2, EVA, JMINIGPT4, LAVIS, PROJECTION, QFORMER, Source
from .stock_vision import stock_class
from .tokenizer import compare_with_sentencepiece, compare_with_source, sentencepiece_file

# Largest difference that the order of summation explains, relative to the largest value of the stage (at least 1).
TOLERANCES = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 1e-1}
QUESTION = "この画像には何が写っていますか？"


@dataclass(frozen=True)
class Comparison:
    """One stage: the largest absolute difference between source and folder, and what is allowed."""

    stage: str
    difference: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.difference <= self.tolerance  # a NaN passes nothing


@dataclass
class Proof:
    """All comparisons of one conversion, in the order of the computation."""

    comparisons: list[Comparison] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return bool(self.comparisons) and all(each.passed for each in self.comparisons)

    def rows(self) -> list[dict[str, Any]]:
        return [
            {"stage": c.stage, "max_abs_difference": c.difference, "tolerance": c.tolerance, "passed": c.passed}
            for c in self.comparisons
        ]

    def table(self) -> str:
        """The proof as text, a line for each stage."""
        width = max(len(c.stage) for c in self.comparisons)
        lines = [f"{'stage':<{width}}  max abs difference  tolerance"]
        for c in self.comparisons:
            mark = "" if c.passed else "  DIFFERS"
            lines.append(f"{c.stage:<{width}}  {c.difference:18.2e}  {c.tolerance:9.2e}{mark}")
        return "\n".join(lines)

    def compare(self, stage: str, ours: torch.Tensor, theirs: torch.Tensor, tolerance: float):
        difference = (ours.float() - theirs.float()).abs().max().item() if ours.shape == theirs.shape else float("inf")
        scale = max(1.0, theirs.float().abs().max().item())
        self.comparisons.append(Comparison(stage, difference, tolerance * scale))


def built_in_pictures() -> list[Image.Image]:
    """Two pictures that need no file: a colour gradient with a disc, upright, and noise, in landscape."""
    y, x = np.mgrid[0:320, 0:240] / 320
    disc = ((x - 0.4) ** 2 + (y - 0.5) ** 2 < 0.04)[..., None]
    gradient = np.stack([x, y, 1 - x], -1)
    shapes = np.where(disc, [0.9, 0.1, 0.1], gradient) * 255
    noise = np.random.default_rng(0).integers(0, 256, (150, 260, 3))
    return [Image.fromarray(array.astype(np.uint8)) for array in (shapes, noise)]


@torch.no_grad()
def prove(folder: Path, plan: ConversionPlan, pictures: list[Image.Image], progress: bool = True) -> Proof:
    """Compares a written folder with the sources it was made of.

    Args:
        folder: The folder, complete but for its account.
        pictures: Compared next to the built-in ones.

    Returns:
        [`Proof`]: One row for each stage; whether it passed is for the caller to act upon.
    """
    pictures = built_in_pictures() + pictures
    proof = Proof()
    with progress_bar(shown=progress, total=5, desc="proof", unit="stage") as bar:
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
        pixel_values = processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
        plain = torch.stack([_plain_pixels(picture, processor.image_processor) for picture in pictures])
        proof.compare("pixel values", pixel_values, plain, 1e-6)
        theirs = _vision_of(plan.sources["vision"], plan.config, pixel_values)
        bar.update()
        theirs |= _qformer_of(plan.sources["qformer"], plan.config, theirs["image encoder"])
        theirs |= _projection_of(plan.sources.get("projection"), theirs["Q-Former"])
        bar.update()
        inputs = _prompt(processor, pictures[0])
        theirs |= _language_of(plan, inputs["input_ids"], theirs.get("projection"))
        bar.update()
        _compare_model(proof, folder, plan, theirs, pixel_values, inputs)
        bar.update()
        _compare_tokenizer(proof, plan, processor.tokenizer)
        bar.update()
    return proof


def _plain_pixels(picture: Image.Image, image_processor: Any) -> torch.Tensor:
    """`Blip2ImageEvalProcessor` of LAVIS: squeeze, divide by 255, normalise. `(3, height, width)`."""
    size = (image_processor.size["width"], image_processor.size["height"])
    squeezed = picture.convert("RGB").resize(size, Image.Resampling(image_processor.resample))
    pixels = torch.from_numpy(np.asarray(squeezed, dtype=np.float32) / 255)
    normed = (pixels - torch.tensor(image_processor.image_mean)) / torch.tensor(image_processor.image_std)
    return normed.permute(2, 0, 1)


def _vision_of(source: Source, config: Any, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the source's own image encoder makes of the pictures, before the layer norm."""
    vision = config.vision_config
    if source.layout in (EVA, LAVIS):
        prefix = "visual_encoder." if source.layout is LAVIS else ""
        blocks = eva_blocks(source.weights, pixel_values, vision.num_attention_heads, vision.num_hidden_layers, prefix)
        return {"first block": blocks[0], "image encoder": blocks[-1]}
    if vision.model_type == "blip_2_vision_model":
        prefix = {BLIP2: "vision_model.", JMINIGPT4: "model.vision_model."}[source.layout]
        encoder = _load(Blip2VisionModel(vision), source, prefix)
        hidden = encoder(pixel_values, output_hidden_states=True).hidden_states
        return {"first block": hidden[1], "image encoder": hidden[-1]}
    if vision.model_type != "timm_wrapper":
        return {"image encoder": _stock_encoder(source, vision)(pixel_values).last_hidden_state}
    import timm

    prefix = "model.vision_model.timm_model." if source.layout is JMINIGPT4 else "timm_model."
    encoder = timm.create_model(vision.architecture, pretrained=False, num_classes=0, **(vision.model_args or {}))
    return {"image encoder": _load(encoder, source, prefix).forward_features(pixel_values)}


def _stock_encoder(source: Source, vision: Any) -> Any:
    """transformers' own vision model with the source's tensors, which transformers' own loader gives their place."""
    prefix = "model.vision_model." if source.layout is JMINIGPT4 else ""
    keys = [key for key in source.weights.names() if key.startswith(prefix) and key in source.weights.taken]
    state = {key.removeprefix(prefix): source.weights.read(key) for key in keys}
    encoder, found = stock_class(vision).from_pretrained(
        None, config=vision, state_dict=state, dtype=torch.float32, output_loading_info=True
    )
    lacking = [key for key in found["missing_keys"] if not key.startswith("pooler.")]
    if lacking:
        raise ValueError(f"transformers finds no {lacking[0]} in {source.name}: it is not a whole image encoder.")
    return encoder.eval()


def _load(module: torch.nn.Module, source: Source, prefix: str) -> Any:
    """A source's own module with the source's tensors, by their own names; classifiers and the like stay behind."""
    state = {
        key.removeprefix(prefix): source.weights.read(key)
        for key in source.weights.names()
        if key.removeprefix(prefix) in module.state_dict()
    }
    module.load_state_dict(state, strict=True)
    return module.float().eval()


def _qformer_of(source: Source, config: Any, features: torch.Tensor) -> dict[str, torch.Tensor]:
    """Layer norm and Q-Former of the source on the features of its image encoder."""
    if features.ndim == 4:
        last = features.shape[-1] == config.qformer_config.encoder_hidden_size
        features = features.flatten(1, 2) if last else features.flatten(2).transpose(1, 2)
    weights = source.weights
    if source.layout is LAVIS:
        image_embeds = ln_vision(weights, features)
        hidden = lavis_qformer(weights, image_embeds, config.qformer_config.num_attention_heads)
        return {"layer norm": image_embeds, "Q-Former": hidden[-1]}
    prefix = {BLIP2: "", QFORMER: "", JMINIGPT4: "model."}[source.layout]
    # SigLIP and CLIP have a norm of the name that BLIP-2 gives this one: theirs is looked at last.
    names = ["model.vision_layernorm", "vision_layernorm", "vision_model.post_layernorm"]
    names.append("model.vision_model.post_layernorm")
    name = next((name for name in names if f"{name}.weight" in weights), None)
    affine = [weights.read(f"{name}.{kind}").float() for kind in ("weight", "bias")] if name else [None, None]
    image_embeds = F.layer_norm(features, features.shape[-1:], *affine, 1e-5)
    qformer = _load(Blip2QFormerModel(config.qformer_config), source, f"{prefix}qformer.")
    queries = weights.read(f"{prefix}query_tokens").float().expand(len(features), -1, -1)
    output = qformer(query_embeds=queries, encoder_hidden_states=image_embeds).last_hidden_state
    return {"layer norm": image_embeds, "Q-Former": output}


def _projection_of(source: Source | None, query_features: torch.Tensor) -> dict[str, torch.Tensor]:
    if source is None:
        return {}
    pattern = {PROJECTION: "", JMINIGPT4: r"model\.language_projection\."}.get(source.layout, r".*llama_proj\.")
    names = (source.weights.matching(f"{pattern}{kind}$")[0] for kind in ("weight", "bias"))
    weight, bias = (source.weights.read(name).float() for name in names)
    return {"projection": F.linear(query_features, weight, bias)}


def _prompt(processor: Any, picture: Image.Image) -> dict[str, Any]:
    content = [{"type": "image", "image": picture}, {"type": "text", "text": QUESTION}]
    messages = [{"role": "user", "content": content}]
    return processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )


def _language_of(
    plan: ConversionPlan, input_ids: torch.Tensor, projected: torch.Tensor | None
) -> dict[str, torch.Tensor]:
    """Logits of the source's language model: for the text alone and, where there is a projection to compare, for the
    prompt with the first picture, glued together as `get_context_emb` of the originals does it."""
    source = plan.sources["language"]
    dtype = _dtype(plan)
    if source.layout is JMINIGPT4:
        return {}
    model = AutoModelForCausalLM.from_pretrained(source.need_folder(), dtype=dtype).eval()
    is_image = input_ids[0] == plan.config.image_token_id
    text_ids = input_ids[:, ~is_image]
    logits = {"language model": model(input_ids=text_ids).logits}
    if projected is not None:
        first = int(is_image.int().argmax())
        embed = model.get_input_embeddings()
        before, after = embed(text_ids[:, :first]), embed(text_ids[:, first:])
        context = torch.cat([before, projected[:1].to(dtype), after], 1)
        logits["whole prompt"] = model(inputs_embeds=context).logits
    del model
    gc.collect()
    return logits


def _dtype(plan: ConversionPlan) -> torch.dtype:
    return getattr(torch, str(plan.config.dtype).removeprefix("torch."))


def _compare_model(
    proof: Proof,
    folder: Path,
    plan: ConversionPlan,
    theirs: dict[str, torch.Tensor],
    pixel_values: torch.Tensor,
    inputs: dict[str, Any],
):
    model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True).eval()
    model.model.vision_model.float()  # the sources' side computes pictures in float32
    model.model.vision_layernorm.float()
    captured: dict[str, torch.Tensor] = {}
    hooks = _capture(model, captured)
    query_features = model.get_query_features(pixel_values)
    for hook in hooks:
        hook.remove()
    captured["Q-Former"] = query_features
    captured["projection"] = model.model.language_projection(query_features)
    is_image = inputs["input_ids"][0] == plan.config.image_token_id
    captured["language model"] = model(input_ids=inputs["input_ids"][:, ~is_image]).logits
    captured["whole prompt"] = model(input_ids=inputs["input_ids"], query_features=query_features[:1]).logits

    for stage, reference in theirs.items():
        ours = captured[stage]
        if stage in ("language model", "whole prompt"):
            kept = [i for i in range(reference.shape[-1]) if i != plan.config.image_token_id]
            ours, reference = ours[..., kept], reference[..., kept]
        proof.compare(stage, ours, reference, TOLERANCES[_precision(stage, plan)])


def _precision(stage: str, plan: ConversionPlan) -> torch.dtype:
    """The dtype that limits a stage. The picture side is computed in float32, and is exact unless the folder's dtype
    is coarser than that of a source."""
    dtype = _dtype(plan)
    if stage in ("language model", "whole prompt"):
        return dtype
    before_norm = stage in ("first block", "image encoder")
    for entry in plan.entries:
        norm = "post_layernorm" in entry.name or "vision_layernorm" in entry.name
        if entry.name.startswith("model.vision_") and entry.dtype == dtype and not (before_norm and norm):
            source_dtype = entry.read().dtype
            if source_dtype.is_floating_point and torch.promote_types(source_dtype, dtype) != dtype:
                return dtype
    return torch.float32


def _capture(model: Any, captured: dict[str, torch.Tensor]) -> list[Any]:
    """Keeps what passes between the parts of the model: the first block, the encoder before its norm, the norm."""
    vision = model.model.vision_model
    keep = captured.__setitem__
    if model.config.vision_config.model_type == "blip_2_vision_model":
        first, norm = vision.encoder.layers[0], vision.post_layernorm
        return [
            first.register_forward_hook(lambda _, __, output: keep("first block", output)),
            norm.register_forward_hook(
                # transformers runs this norm a second time, on the pooled token; the first run is the one in use
                lambda _, given, output: (
                    None
                    if "layer norm" in captured
                    else captured.update({"image encoder": given[0], "layer norm": output})
                )
            ),
        ]
    norm = model.model.vision_layernorm
    return [
        vision.register_forward_hook(lambda _, __, output: keep("image encoder", output.last_hidden_state)),
        norm.register_forward_hook(lambda _, __, output: keep("layer norm", output)),
    ]


def _compare_tokenizer(proof: Proof, plan: ConversionPlan, tokenizer: Any):
    """Strings of the built-in corpus that the tokenizer splits otherwise than SentencePiece, where it was converted
    from that, or else than the language model's own."""
    source = plan.sources["language"]
    if source.layout is JMINIGPT4:
        return
    model_file = sentencepiece_file(source.need_folder())
    if model_file is not None:
        wrong, total = compare_with_sentencepiece(tokenizer, model_file)
    else:
        wrong, total = compare_with_source(tokenizer, source.need_folder())
    proof.comparisons.append(Comparison(f"tokenizer ({total} strings)", float(wrong), 0.0))
