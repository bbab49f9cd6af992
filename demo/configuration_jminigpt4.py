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
"""Configuration of Japanese MiniGPT-4: one picture encoder, one Q-Former, one language model."""

import re
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, Blip2QFormerConfig, PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.models.auto import CONFIG_MAPPING
from transformers.utils import auto_docstring

# Saving writes only the class that was saved; a checkpoint must name every Auto class that can load it.
AUTO_MAP = {
    "AutoConfig": "configuration_jminigpt4.JMiniGPT4Config",
    "AutoModel": "modeling_jminigpt4.JMiniGPT4ForConditionalGeneration",
    "AutoModelForCausalLM": "modeling_jminigpt4.JMiniGPT4ForConditionalGeneration",
    "AutoModelForImageTextToText": "modeling_jminigpt4.JMiniGPT4ForConditionalGeneration",
    "AutoModelForMultimodalLM": "modeling_jminigpt4.JMiniGPT4ForConditionalGeneration",
    "AutoProcessor": "processing_jminigpt4.JMiniGPT4Processor",
    "AutoImageProcessor": "image_processing_jminigpt4.JMiniGPT4ImageProcessor",
}

# rinna/japanese-gpt-neox-3.6b, config.json. Two of its values differ from the defaults of `GPTNeoXConfig` in ways
# that change every logit: the whole head is rotated, and attention and MLP follow one another.
JAPANESE_GPT_NEOX_3_6B = {
    "vocab_size": 32000,
    "hidden_size": 2816,
    "num_hidden_layers": 36,
    "num_attention_heads": 22,
    "intermediate_size": 11264,
    "max_position_embeddings": 2048,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0},
    "use_parallel_residual": False,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "pad_token_id": 0,
}

BESIDE_THE_ARTICLE = {"projector_hidden_act", "vision_early_layers", "num_vision_positions"}

# What the configuration file of a checkpoint may name: transformers fetches and runs a kernel from the Hub where
# another repository is named, and with `flash_attention_2` where that package is not installed.
ATTENTION_OF_A_FILE = ("eager", "sdpa", "flex_attention")
ATTENTION_KEY = re.compile(r"_?(attn|experts)_implementation(_internal)?")
# Arguments of timm's models that describe an architecture. Whatever else `timm.create_model` takes opens files or
# addresses (`checkpoint_path`, `pretrained`, `pretrained_cfg`, `cache_dir` …).
TIMM_ARGUMENTS = frozenset(
    {
        *("act_layer", "attn_drop_rate", "attn_pool_mlp_ratio", "attn_pool_num_heads", "attn_type", "base_dim"),
        *("base_width", "block_size", "cardinality", "channel_multiplier", "channels", "class_token", "conv_mlp"),
        *("conv_ratio", "depth", "depth_multiplier", "depths", "dims", "distilled", "drop_path_rate", "drop_rate"),
        *("dynamic_img_pad", "dynamic_img_size", "embed_dim", "embed_dims", "expand_ratio", "fc_norm", "feat_size"),
        *("final_norm", "fix_init", "fix_stem", "global_pool", "growth_rate", "head_dim", "head_hidden_size"),
        *("head_init_scale", "head_norm_first", "img_size", "in_chans", "init_values", "kernel_size"),
        *("kernel_sizes", "key_dim", "layers", "ls_init_value", "mlp_bias", "mlp_ratio", "mlp_ratios"),
        *("no_embed_class", "norm_eps", "norm_layer", "num_classes", "num_features", "num_heads"),
        *("num_prefix_tokens", "num_reg_tokens", "output_stride", "pad_type", "patch_drop_rate", "patch_norm"),
        *("patch_size", "pool_include_prefix", "pos_drop_rate", "pos_embed", "pre_norm", "proj_bias"),
        *("proj_drop_rate", "qk_norm", "qkv_bias", "qkv_fused", "ref_feat_shape", "reg_tokens"),
        *("rope_grid_indexing", "rope_grid_offset", "rope_rotate_half", "rope_temperature", "rope_type"),
        *("round_limit", "scale_attn_inner", "scale_attn_norm", "scale_mlp", "scale_mlp_norm", "scale_norm"),
        *("sr_ratios", "stem_bias", "stem_chs", "stem_kernel_size", "stem_size", "stem_type", "stem_width"),
        *("strict_img_size", "swiglu_align_to", "swiglu_mlp", "token_mixers", "use_abs_pos_emb", "use_fc_norm"),
        *("use_post_norm", "use_post_transformer_norm", "use_pre_transformer_norm", "use_rel_pos_bias"),
        *("use_rot_pos_emb", "use_shared_rel_pos_bias", "weight_init", "width", "width_factor", "window_ratio"),
        "window_size",
    }
)


@auto_docstring(custom_intro="Configuration of a [`JMiniGPT4ForConditionalGeneration`].")
@strict
class JMiniGPT4Config(PreTrainedConfig):
    r"""
    vision_config (`dict` or `PreTrainedConfig`, *optional*):
        The image encoder: a `Blip2VisionConfig` (default: EVA ViT-g, 39 layers of 1408) or a `TimmWrapperConfig`.
    qformer_config (`dict` or `Blip2QFormerConfig`, *optional*):
        The Q-Former (default: 12 layers of 768). `encoder_hidden_size` follows the image encoder where that states a
        hidden size, and has to be given with a `TimmWrapperConfig`, which states none.
    text_config (`dict` or `PreTrainedConfig`, *optional*):
        The language model: any causal one of transformers (default: rinna/japanese-gpt-neox-3.6b).
    num_query_tokens (`int`, *optional*, defaults to 32):
        Number of query tokens, which is the number of image tokens that stand for one picture.
    image_token_id (`int`, *optional*, defaults to 6):
        Id of the image token, inside the embedding table. The default is rinna's `[MASK]`, a piece the language model
        never learnt; `jminigpt4 convert` appends a token of its own, `<ImageHere>`, and writes its id here.
    vision_early_layers (`list[int]`, *optional*):
        Hidden states of an image encoder of timm, by number, that are joined to its last feature map, channel by
        channel and averaged over its places: colours and edges, of which a last map may keep little.
        `encoder_hidden_size` of the Q-Former counts them.
    num_vision_positions (`int`, *optional*, defaults to 0):
        Number of position embeddings behind the layer norm, one for each place of the image encoder's map; 0 for an
        encoder that has its own.
    vision_layernorm_eps (`float`, *optional*, defaults to 1e-05):
        Epsilon of the layer norm between image encoder and Q-Former (LAVIS `ln_vision`). It is not the epsilon of the
        encoder's blocks, which is 1e-6.
    lm_head_bias (`bool`, *optional*, defaults to `False`):
        Whether the head of the language model has a bias.
    projector_hidden_act (`str`, *optional*):
        Activation between the two layers of the projection, as LLaVA-1.5 has them (`"gelu"`). By default, and where a
        checkpoint does not state it, the projection is the article's: one linear layer.

    Example:

    ```python
    >>> from jminigpt4 import JMiniGPT4Config

    >>> config = JMiniGPT4Config()
    >>> config.text_config.hidden_size, config.qformer_config.hidden_size, config.num_query_tokens
    (2816, 768, 32)
    ```"""

    model_type = "jminigpt4"
    sub_configs = {"vision_config": AutoConfig, "qformer_config": Blip2QFormerConfig, "text_config": AutoConfig}

    vision_config: dict | PreTrainedConfig | None = None
    qformer_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    num_query_tokens: int = 32
    image_token_id: int = 6
    vision_early_layers: list[int] | None = None
    num_vision_positions: int = 0
    vision_layernorm_eps: float = 1e-5
    lm_head_bias: bool = False
    projector_hidden_act: str | None = None
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any):
        """The configuration that a file states; see [`PreTrainedConfig.from_dict`].

        Raises:
            ValueError: The file chooses an attention that would be fetched, or is no configuration.
        """
        _check_attention(config_dict)
        return super().from_dict(config_dict, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain values. What the article's model does not have is stated by nothing, as it was
        before there was anything else: a second layer of the projection, early layers, positions."""
        values = super().to_dict()
        return {key: value for key, value in values.items() if value or key not in BESIDE_THE_ARTICLE}

    def __post_init__(self, **kwargs: Any):
        check_image_encoder(self.vision_config)
        self.vision_config = _build(self.vision_config, "blip_2_vision_model")
        self.qformer_config = _build(self.qformer_config, "blip_2_qformer")
        self.text_config = _build(self.text_config, "gpt_neox", JAPANESE_GPT_NEOX_3_6B)
        check_language_model(self.text_config)
        # The sub-configs are the truth; what they state is not to be stated twice.
        if getattr(self.vision_config, "hidden_size", None) is not None:
            self.qformer_config.encoder_hidden_size = self.vision_config.hidden_size
        tied = getattr(self.text_config, "tie_word_embeddings", False)
        self.tie_word_embeddings = self.tie_word_embeddings or bool(tied)
        super().__post_init__(**kwargs)
        self.auto_map = {**AUTO_MAP, **(getattr(self, "auto_map", None) or {})}
        self._check_image_token()
        self._check_places()
        if self.projector_hidden_act is not None and self.projector_hidden_act not in ACT2FN:
            raise ValueError(f"projector_hidden_act {self.projector_hidden_act!r} is no activation of transformers.")

    def _check_places(self):
        kind = self.vision_config.model_type
        if self.vision_early_layers and kind != "timm_wrapper":
            raise ValueError(f"vision_early_layers are for image encoders of timm, and this one is of type {kind!r}.")
        if self.num_vision_positions < 0 or (self.num_vision_positions and kind == "blip_2_vision_model"):
            raise ValueError(
                f"num_vision_positions is {self.num_vision_positions}: it is for encoders without positions of their "
                "own, and 0 for others."
            )

    def _check_image_token(self):
        # Outside the table every look-up of a prompt would fail, deep in the model and without a name.
        vocab_size = self.text_config.vocab_size
        if not 0 <= self.image_token_id < vocab_size:
            raise ValueError(
                f"image_token_id {self.image_token_id} is outside the embedding table of {vocab_size} rows: "
                "grow the table with `resize_token_embeddings`, or choose an id below its size."
            )
        if self.num_query_tokens < 1:
            raise ValueError(f"num_query_tokens must be at least 1, got {self.num_query_tokens}.")


def check_language_model(config: PreTrainedConfig):
    """Refuses what is more than a language model.

    Raises:
        ValueError: The configuration has one of a language model beside others, or encoders.
    """
    if config.get_text_config(decoder=True) is not config:
        raise ValueError(
            f"The language model is of type {config.model_type!r}, which holds a language model beside "
            "other parts: take that one alone, the config's `get_text_config(decoder=True)` with its weights."
        )
    if not {"vision_config", "audio_config"}.isdisjoint(config.sub_configs):
        raise ValueError(
            f"The language model is of type {config.model_type!r}, which has an encoder of its own for pictures or "
            "sound: take a language model without one."
        )


def check_image_encoder(config: Any):
    """Refuses a configuration that makes timm, at any depth of it, do anything but build an architecture.

    Raises:
        ValueError: An architecture is no plain name, or an argument is not in `TIMM_ARGUMENTS` or no plain value.
    """
    if isinstance(config, PreTrainedConfig):
        config = config.to_dict()
    if isinstance(config, list | tuple):
        for each in config:
            check_image_encoder(each)
    if not isinstance(config, dict):
        return
    for key, value in config.items():
        # Not `hf-hub:` and `local-dir:`, which timm follows, nor a path.
        if key in ("architecture", "backbone") and not (value is None or _is_plain_name(value)):
            raise ValueError(f"vision_config names the {key} {value!r}, which is no name of a model of timm.")
        if key in ("model_args", "backbone_kwargs"):
            _check_timm_arguments(value)
        else:
            check_image_encoder(value)


def _check_timm_arguments(arguments: Any):
    if not isinstance(arguments, dict | None):
        raise ValueError(f"The arguments for timm in vision_config are no object: {arguments!r}.")
    for name, value in (arguments or {}).items():
        if name not in TIMM_ARGUMENTS:
            raise ValueError(
                f"vision_config hands timm the argument {name!r}, which does not describe an architecture: remove it."
            )
        values = value if isinstance(value, list | tuple) else [value]
        if not all(isinstance(each, int | float | None) or _is_plain_name(each) for each in values):
            raise ValueError(f"vision_config hands timm {name}={value!r}: numbers, names and lists of them are taken.")


def _is_plain_name(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[\w.-]*", value) is not None


def _check_attention(config: Any):
    if isinstance(config, list):
        for each in config:
            _check_attention(each)
    if not isinstance(config, dict):
        return
    for key, value in config.items():
        _check_attention(value)
        named = value.values() if isinstance(value, dict) else [value]
        if ATTENTION_KEY.fullmatch(key) and not all(each in (None, *ATTENTION_OF_A_FILE) for each in named):
            raise ValueError(
                f"config.json chooses {key} {value!r}: a checkpoint may name {', '.join(ATTENTION_OF_A_FILE)}; any "
                "other is for whoever loads it to choose, with `attn_implementation`."
            )


def _build(config: dict | PreTrainedConfig | None, model_type: str, defaults: dict | None = None) -> PreTrainedConfig:
    """A sub-config from what the user gave: nothing (the article's part), a `dict`, or a config."""
    if isinstance(config, PreTrainedConfig):
        return config
    if config is None:
        return CONFIG_MAPPING[model_type](**(defaults or {}))
    config = {"model_type": model_type, **config}
    if config["model_type"] not in CONFIG_MAPPING:
        raise ValueError(
            f"A part is of type {config['model_type']!r}, which transformers does not know: if it is a language model "
            "with code of its own, call `jminigpt4.convert.trust_language_code(FOLDER)` first."
        )
    return CONFIG_MAPPING[config["model_type"]].from_dict(config)


__all__ = ["JMiniGPT4Config"]
