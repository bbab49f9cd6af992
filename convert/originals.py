"""What the originals compute, written out once more from their papers' equations and straight on their own tensors.

Nothing of this package's model, processor or formats or of transformers is used here, no name is mapped: it is the
other side of the proof.

    pictures     blip_processors.py: `Blip2ImageEvalProcessor`, bicubic, CLIP's mean and standard deviation
    EVA ViT      MiniGPT-4 @ 22d8888, eva_vit.py: pre-norm blocks, keys without bias, no last norm
    ln_vision    blip2.py: torch's LayerNorm, epsilon 1e-5
    Q-Former     Qformer.py: BERT, post-norm; cross-attention in every other layer; a feed-forward for queries alone
    prompts      rinna's article and customized_mini_gpt4.py; MiniGPT-4's conversation.py
"""

import re
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
BLOCK_EPS, NORM_EPS, QFORMER_EPS = 1e-6, 1e-5, 1e-12
MINIGPT4_SYSTEM = (
    "Give the following image: <Img>ImageContent</Img>. You will be able to see the image once I provide it to you. "
    "Please answer my questions."
)


class Tensors(Protocol):
    """Tensors by name: a source's [`Weights`], as they are or rounded."""

    def read(self, key: str) -> torch.Tensor: ...

    def names(self) -> list[str]: ...

    def __contains__(self, key: str) -> bool: ...


def prepared_picture(
    picture: Image.Image,
    size: tuple[int, int],
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
    resample: int = Image.Resampling.BICUBIC,
) -> torch.Tensor:
    """A picture squeezed to `(height, width)`, divided by 255 and normalised; float32 of `(3, height, width)`."""
    squeezed = picture.convert("RGB").resize(size[::-1], Image.Resampling(resample))
    pixels = np.asarray(squeezed, dtype=np.float32) / 255
    normed = (pixels - np.asarray(mean, dtype=np.float32)) / np.asarray(std, dtype=np.float32)
    return torch.from_numpy(normed).permute(2, 0, 1)


def prompt(name: str, questions: tuple[str, str], answer: str, bos: str) -> str | None:
    """A picture, two questions and the answer between them, up to where the second answer begins, as the originals
    write it; `None` for a format that is not one of theirs."""
    first, second = questions
    if name == "article-3.6b":
        human, end = "ユーザー: ", "<NL>システム: "
        return f"{bos}{human}<IMG><ImageHere></IMG> {first}{end}{answer}<NL>{human}{second}{end}"
    if name == "rinna-4b":
        return f"ユーザー: <Img><ImageHere></Img> {first}\nシステム: {answer}\nユーザー: {second}\nシステム: "
    if name == "minigpt4":
        turns = f"###Human: <Img><ImageHere></Img> {first}###Assistant: {answer}###Human: {second}###Assistant:"
        return bos + MINIGPT4_SYSTEM + turns
    return None


class _InFloat32:
    """A source's tensors in float32, read when asked for."""

    def __init__(self, weights: Tensors):
        self.weights = weights

    def __getitem__(self, key: str) -> torch.Tensor:
        return self.weights.read(key).float()

    def linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, self[f"{name}.weight"], self[f"{name}.bias"])

    def norm(self, x: torch.Tensor, name: str, eps: float) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], self[f"{name}.weight"], self[f"{name}.bias"], eps)


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int) -> torch.Tensor:
    """softmax(q k^T / sqrt(d)) v for `(batch, tokens, heads * d)`."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def eva_blocks(
    weights: Tensors, pixel_values: torch.Tensor, heads: int, depth: int, prefix: str = ""
) -> list[torch.Tensor]:
    """Output of each block of the EVA ViT.

    Args:
        weights: `eva_vit_g.pth`, or a LAVIS file with `visual_encoder.` as `prefix`.
        pixel_values: `(n, 3, size, size)`, float32, of the encoder's own size.
        depth: Number of blocks that BLIP-2 runs.

    Returns:
        `depth` tensors of `(n, 1 + patches, width)`.
    """
    t = _InFloat32(weights)
    kernel = t[f"{prefix}patch_embed.proj.weight"]
    x = F.conv2d(pixel_values, kernel, t[f"{prefix}patch_embed.proj.bias"], stride=kernel.shape[-1])
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([t[f"{prefix}cls_token"].expand(len(x), -1, -1), x], 1) + t[f"{prefix}pos_embed"]
    outputs = []
    for index in range(depth):
        block = f"{prefix}blocks.{index}."
        y = t.norm(x, block + "norm1", BLOCK_EPS)
        q, k, v = F.linear(y, t[block + "attn.qkv.weight"]).chunk(3, -1)
        y = _attend(q + t[block + "attn.q_bias"], k, v + t[block + "attn.v_bias"], heads)
        x = x + t.linear(y, block + "attn.proj")
        y = t.norm(x, block + "norm2", BLOCK_EPS)
        x = x + t.linear(F.gelu(t.linear(y, block + "mlp.fc1")), block + "mlp.fc2")
        outputs.append(x)
    return outputs


def ln_vision(weights: Tensors, features: torch.Tensor) -> torch.Tensor:
    """LAVIS's layer norm between image encoder and Q-Former; shapes stay."""
    return _InFloat32(weights).norm(features, "ln_vision", NORM_EPS)


def lavis_qformer(weights: Tensors, image_embeds: torch.Tensor, heads: int) -> list[torch.Tensor]:
    """Hidden states of the Q-Former: the normed query tokens and the output of each layer, `(n, queries, width)`.

    Args:
        weights: A LAVIS file, either layout.
        image_embeds: Output of [`ln_vision`], `(n, tokens, encoder width)`.
    """
    t = _InFloat32(weights)
    eps = QFORMER_EPS
    x = t.norm(t["query_tokens"].expand(len(image_embeds), -1, -1), "Qformer.bert.embeddings.LayerNorm", eps)
    hidden = [x]
    numbers = (re.match(r"Qformer\.bert\.encoder\.layer\.(\d+)\.", key) for key in weights.names())
    for index in sorted({int(number[1]) for number in numbers if number}):
        layer = f"Qformer.bert.encoder.layer.{index}."
        for kind in ("attention", "crossattention"):
            if f"{layer}{kind}.self.query.weight" not in weights:
                continue
            source = x if kind == "attention" else image_embeds
            q, k, v = (
                t.linear(given, f"{layer}{kind}.self.{name}")
                for name, given in (("query", x), ("key", source), ("value", source))
            )
            y = t.linear(_attend(q, k, v, heads), f"{layer}{kind}.output.dense")
            x = t.norm(x + y, f"{layer}{kind}.output.LayerNorm", eps)
        y = t.linear(F.gelu(t.linear(x, f"{layer}intermediate_query.dense")), f"{layer}output_query.dense")
        x = t.norm(x + y, f"{layer}output_query.LayerNorm", eps)
        hidden.append(x)
    return hidden
