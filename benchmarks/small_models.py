"""Configurations of the article's kind at any size, for models with random weights."""

from typing import Any

from transformers import Blip2QFormerConfig, Blip2VisionConfig

from jminigpt4 import JMiniGPT4Config
from jminigpt4.configuration_jminigpt4 import JAPANESE_GPT_NEOX_3_6B

Sizes = tuple[int, int, int]

# EVA ViT-g, Q-Former and rinna's 3.6b in their proportions at a fiftieth of the size: 87 million parameters,
# 65 of them the language model's.
FIFTIETH: dict[str, Any] = {
    "vision": (352, 12, 8),
    "qformer": (192, 4, 4),
    "language": (704, 10, 8),
    "vision_intermediate_size": 1536,
}


def small_config(
    vision: Sizes,
    qformer: Sizes,
    language: Sizes,
    vision_intermediate_size: int | None = None,
    image_size: int = 224,
    image_token_id: int = 6,
    num_query_tokens: int = 32,
    **text: Any,
) -> JMiniGPT4Config:
    """Image encoder, Q-Former and GPT-NeoX, each by its width, layers and heads.

    Args:
        text: Further values of the language model's configuration; by default rinna's, with 4096 tokens.
    """
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads")
    parts: list[dict[str, Any]] = [dict(zip(names, sizes, strict=True)) for sizes in (vision, qformer, language)]
    wide = [{**part, "intermediate_size": 4 * part["hidden_size"]} for part in parts]
    wide[0]["intermediate_size"] = vision_intermediate_size or wide[0]["intermediate_size"]
    return JMiniGPT4Config(
        vision_config=Blip2VisionConfig(**wide[0], image_size=image_size),
        qformer_config=Blip2QFormerConfig(**wide[1], encoder_hidden_size=vision[0], vocab_size=8),
        text_config={**JAPANESE_GPT_NEOX_3_6B, "vocab_size": 4096, **wide[2], **text},
        image_token_id=image_token_id,
        num_query_tokens=num_query_tokens,
    )
