"""A converted folder proves itself: loaded as a user loads it, and compared with its sources.

What can be equal is counted: tensors, settings, prompts, ids. What is computed is compared stage by stage in float32,
whatever the dtype of the folder: widening its numbers loses nothing, and the sources' are rounded in the same way.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from .exact_checks import differing_ends, differing_prompts, differing_settings, differing_tensors, differing_tokens
from .plan import ConversionPlan
from .progress import progress_bar
from .source_outputs import SourceOutputs, source_outputs

# Largest difference that the order of summation explains, relative to the largest value of the stage (at least 1).
TOLERANCE = 1e-5
# Of pictures: one operation after another, each rounded once.
PICTURE_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Comparison:
    """One stage: the largest absolute difference between source and folder, and what is allowed.

    `first` names the first thing that differs, where things are counted.
    """

    stage: str
    difference: float
    tolerance: float
    first: str = ""

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
            mark = "" if c.passed else f"  DIFFERS{': ' if c.first else ''}{c.first}"
            lines.append(f"{c.stage:<{width}}  {c.difference:18.2e}  {c.tolerance:9.2e}{mark}")
        return "\n".join(lines)

    def count(self, stage: str, differing: Sequence[str], total: int):
        """A row for `total` things, none of which may differ."""
        self.comparisons.append(Comparison(f"{stage} ({total})", float(len(differing)), 0.0, *differing[:1]))

    def compare(self, stage: str, ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = TOLERANCE):
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


def prove(folder: Path, plan: ConversionPlan, pictures: list[Image.Image], progress: bool = True) -> Proof:
    """Compares a written folder with the sources it was made of.

    Args:
        folder: The folder, complete but for its account.
        pictures: Compared next to the built-in ones.

    Returns:
        [`Proof`]: One row for each stage; whether it passed is for the caller to act upon.
    """
    with progress_bar(shown=progress, total=2, desc="proof", unit="side") as bar:
        expected = source_outputs(plan, built_in_pictures() + pictures)
        bar.update()
        proof = compare_folder(folder, plan, expected)
        bar.update()
    return proof


@torch.no_grad()
def compare_folder(folder: Path, plan: ConversionPlan, expected: SourceOutputs) -> Proof:
    """Compares a written folder with what its sources gave."""
    proof = Proof()
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    # The originals convert any picture to RGB and do nothing more to it; for an RGB picture the folder does the same.
    built_in = len(built_in_pictures())
    groups = [(expected.pictures[:built_in], False), (expected.pictures[built_in:], True)]
    prepared = [
        processor.image_processor(group, plain_rgb=plain, return_tensors="pt")["pixel_values"]
        for group, plain in groups
        if group
    ]
    pixel_values = torch.cat(prepared)
    proof.compare("pixel values", pixel_values, expected.pixel_values, PICTURE_TOLERANCE)
    model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True).eval()
    proof.count("tensors", *differing_tensors(model, plan))
    proof.count("settings", *differing_settings(model, processor, plan))
    proof.count("prompts", *differing_prompts(processor, plan))
    proof.count("ends of answers", *differing_ends(model, processor, plan))
    proof.count("tokenizer, strings", *differing_tokens(processor.tokenizer, plan))
    computed = _computed(model.float(), plan, pixel_values, expected.input_ids)
    for stage, theirs in expected.stages.items():
        ours = computed[stage]
        if stage in ("language model", "whole prompt") and ours.shape[-1] >= theirs.shape[-1]:
            # The image token is masked, and has a row of its own where the table was full.
            kept = [i for i in range(theirs.shape[-1]) if i != plan.config.image_token_id]
            ours, theirs = ours[..., kept], theirs[..., kept]
        proof.compare(stage, ours, theirs)
    return proof


def _computed(
    model: Any, plan: ConversionPlan, pixel_values: torch.Tensor, input_ids: torch.Tensor
) -> dict[str, torch.Tensor]:
    """The stages as the folder's model computes them."""
    captured: dict[str, torch.Tensor] = {}
    hooks = _capture(model, captured)
    query_features = model.get_query_features(pixel_values)
    for hook in hooks:
        hook.remove()
    is_image = input_ids[0] == plan.config.image_token_id
    captured["Q-Former"] = query_features
    captured["projection"] = model.model.language_projection(query_features)
    captured["language model"] = model(input_ids=input_ids[:, ~is_image]).logits
    captured["whole prompt"] = model(input_ids=input_ids, query_features=query_features[:1]).logits
    return captured


def _around_norm(model: Any, given: torch.Tensor, output: torch.Tensor) -> dict[str, torch.Tensor]:
    if not model.config.vision_early_layers:
        return {"layer norm": output}
    return {"early layers": given[..., model.model.vision_model.timm_model.num_features :], "layer norm": output}


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
        norm.register_forward_hook(lambda _, given, output: captured.update(_around_norm(model, given[0], output))),
    ]
