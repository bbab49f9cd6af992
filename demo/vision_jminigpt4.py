# Copyright 2026 The jminigpt4 authors.
#
# Licensed under the MIT License; you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     https://opensource.org/license/mit
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""What the Q-Former of Japanese MiniGPT-4 looks at: an image encoder, and what it gives as one sequence of places."""

from typing import Any

import torch
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d
from transformers import AutoModel, Blip2VisionModel

from .configuration_jminigpt4 import JMiniGPT4Config


class JMiniGPT4VisionNorm(nn.LayerNorm):
    """The layer norm in front of the Q-Former (LAVIS `ln_vision`), and behind it one embedding a place, as BERT adds
    them (arXiv:1810.04805, section 3), for an encoder that says nothing of places."""

    def __init__(self, size: int, eps: float, places: int):
        super().__init__(size, eps=eps, dtype=torch.float32)
        self.position_embeddings = nn.Parameter(torch.zeros(1, places, size, dtype=torch.float32)) if places else None

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """`(n, places, size)` to the same.

        Raises:
            ValueError: There are other places than positions.
        """
        normed = super().forward(input)
        if self.position_embeddings is None:
            return normed
        if normed.shape[1] != self.position_embeddings.shape[1]:
            raise ValueError(
                f"The image encoder gives {normed.shape[1]} places, and the Q-Former has positions for "
                f"{self.position_embeddings.shape[1]}: set the image processor's `size` to what it was trained with."
            )
        return normed + self.position_embeddings


def image_encoder(config: JMiniGPT4Config) -> tuple[Any, nn.Module]:
    """The image encoder of a configuration, with random weights, and the norm behind it."""
    # CODEPATH: EVA ViT-g of BLIP-2 (rinna's and MiniGPT-4's checkpoints) here; the demo's EfficientNet-Lite2 and any
    # other model of timm or transformers below.
    if config.vision_config.model_type == "blip_2_vision_model":
        encoder = Blip2VisionModel._from_config(config.vision_config)
        # The encoder's own last norm is LAVIS's `ln_vision`; it must not inherit the epsilon of the blocks.
        encoder.post_layernorm.eps = config.vision_layernorm_eps
        return encoder, nn.Identity()
    size = config.qformer_config.encoder_hidden_size
    norm = JMiniGPT4VisionNorm(size, config.vision_layernorm_eps, config.num_vision_positions)
    return AutoModel.from_config(config.vision_config), norm


def encode(
    encoder: Any, config: JMiniGPT4Config, pixel_values: torch.Tensor, interpolate_pos_encoding: bool, **kwargs: Any
) -> Any:
    """What the image encoder gives for pictures; see `get_query_features` for arguments and errors."""
    if not isinstance(encoder, Blip2VisionModel):
        wanted = {"output_hidden_states": list(config.vision_early_layers)} if config.vision_early_layers else {}
        return encoder(pixel_values, do_pooling=False, return_dict=True, **wanted)
    size = config.vision_config.image_size
    # The stock encoder cuts the position embeddings of a smaller picture without a word.
    if not interpolate_pos_encoding and tuple(pixel_values.shape[-2:]) != (size, size):
        raise ValueError(
            f"pixel_values are {tuple(pixel_values.shape[-2:])} but the image encoder expects {(size, size)}: "
            "set the image processor's `size`, or pass `interpolate_pos_encoding=True`."
        )
    return encoder(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, return_dict=True, **kwargs)


def as_places(encoded: Any, config: JMiniGPT4Config) -> torch.Tensor:
    """`(n, places, encoder_hidden_size)` of what an encoder gave: tokens as they are; a feature map, either layout,
    row by row, each place with what the early layers have there on average.

    Raises:
        ValueError: Early layers are wanted of an encoder that gives tokens.
    """
    last, early = encoded.last_hidden_state, encoded.hidden_states if config.vision_early_layers else ()
    if last.ndim == 3:
        if early:
            raise ValueError(
                f"vision_early_layers is {config.vision_early_layers}, but "
                f"{config.vision_config.architecture} gives tokens and no feature map: it has to be left out."
            )
        return last
    size = config.qformer_config.encoder_hidden_size - sum(each.shape[1] for each in early)
    if last.shape[-1] == size:  # channels last
        last = last.movedim(-1, 1)
    joined = [last, *(adaptive_avg_pool2d(each, last.shape[-2:]) for each in early)]
    return torch.cat(joined, 1).flatten(2).transpose(1, 2)
