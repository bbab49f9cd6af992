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
"""Japanese MiniGPT-4: pictures pass a frozen image encoder, a frozen Q-Former and one trained Linear layer, and stand
in the prompt of a frozen language model as ordinary positions.

    pixel_values -> vision_model -> (vision_layernorm) -> qformer -> query features -> language_projection -> prompt

Sources: the article of rinna Co., Ltd. on Japanese MiniGPT-4 (July 2023); MiniGPT-4 (arXiv:2304.10592);
BLIP-2 (arXiv:2301.12597).
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn

if tuple(int(part) for part in transformers.__version__.split(".")[:2]) < (5, 19):
    raise ImportError(
        f"jminigpt4 needs transformers 5.19 or newer; found {transformers.__version__}. "
        "Remedy: pip install -U 'transformers>=5.19,<6'"
    )

from transformers import Blip2QFormerModel, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    BaseModelOutputWithPooling,
    CausalLMOutputWithPast,
)
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, auto_docstring, torch_compilable_check
from transformers.utils.generic import can_return_tuple

from .configuration_jminigpt4 import JMiniGPT4Config
from .language_jminigpt4 import BASE_OUTPUTS, CACHE_NAME, Family, model_without_head
from .vision_jminigpt4 import JMiniGPT4VisionNorm, as_places, encode, image_encoder

# exp of minus it is zero in float32, at temperatures up to 1.9 as well, and its square is finite in float16.
IMAGE_TOKEN_BELOW_MAXIMUM = 200.0


@auto_docstring(custom_intro="Output of [`JMiniGPT4Model`].")
@dataclass
class JMiniGPT4ModelOutputWithPast(BaseModelOutputWithPast):
    r"""
    image_hidden_states (`torch.Tensor`, *optional*):
        Projected query features that replaced the image tokens, `(num_images, num_query_tokens, text_hidden_size)`.
    image_outputs (`BaseModelOutputWithPooling`, *optional*):
        What `get_image_features` gave; its `pooler_output` is `image_hidden_states`.
    """

    image_hidden_states: torch.Tensor | None = None
    image_outputs: BaseModelOutputWithPooling | None = None


@auto_docstring(custom_intro="Output of [`JMiniGPT4ForConditionalGeneration`].")
@dataclass
class JMiniGPT4CausalLMOutputWithPast(CausalLMOutputWithPast):
    r"""
    loss (`torch.Tensor` of shape `(1,)`, *optional*):
        Next-token loss, the mean over all labels that are neither -100 nor the image token.
    logits (`torch.Tensor` of shape `(batch_size, kept_positions, vocab_size)`):
        Scores of the next token, those of the language model's own `ForCausalLM`. The image token's is 200 below the
        highest: its probability is zero.
    image_hidden_states (`torch.Tensor`, *optional*):
        Projected query features that replaced the image tokens, `(num_images, num_query_tokens, text_hidden_size)`.
    image_outputs (`BaseModelOutputWithPooling`, *optional*):
        What `get_image_features` gave; its `pooler_output` is `image_hidden_states`.
    """

    image_hidden_states: torch.Tensor | None = None
    image_outputs: BaseModelOutputWithPooling | None = None


@auto_docstring
class JMiniGPT4PreTrainedModel(PreTrainedModel):
    config: JMiniGPT4Config
    base_model_prefix = "model"
    input_modalities = ["image", "text"]
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = [CACHE_NAME]
    # The originals ran these in float32 beside a half-precision language model; float16 would overflow in them.
    _keep_in_fp32_modules_strict = ["query_tokens", "qformer", "language_projection"]
    _modules_never_quantised = (r"(model\.)?(vision_model|vision_layernorm|qformer|language_projection)", "lm_head")
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @classmethod
    def from_pretrained(cls, *args, quantization_config: Any = None, **kwargs):
        """Loads a checkpoint; see [`PreTrainedModel.from_pretrained`]. With a `BitsAndBytesConfig` only the language
        model is quantised, unless `llm_int8_skip_modules` says otherwise: all else is small or, like the projection,
        what the answers hang on."""
        if getattr(quantization_config, "llm_int8_skip_modules", ()) is None:
            quantization_config = copy.deepcopy(quantization_config)
            quantization_config.llm_int8_skip_modules = list(cls._modules_never_quantised)
        if quantization_config is not None:
            kwargs["quantization_config"] = quantization_config
        return super().from_pretrained(*args, **kwargs)

    @property
    def dtype(self) -> torch.dtype:
        """dtype of the language model. (The first parameter's, which is the default, may be one kept in float32.)"""
        embeddings: Any = self.get_input_embeddings()
        return embeddings.weight.dtype

    def is_custom_code(self) -> bool:
        """Whether a part comes with code of its own. transformers asks before it computes what no file holds: models
        of custom code it spares all of it, and the stock parts in them would be left with whatever their memory held
        (Falcon-H1's multipliers). Our own initialisation keeps what was loaded, as transformers' does."""
        parts = (each for each in self.modules() if isinstance(each, PreTrainedModel))
        return any(part.is_custom_code() for part in parts if not isinstance(part, JMiniGPT4PreTrainedModel))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, JMiniGPT4Model):
            init.normal_(module.query_tokens, mean=0.0, std=self.config.initializer_range)
        if isinstance(module, JMiniGPT4VisionNorm) and module.position_embeddings is not None:
            init.normal_(module.position_embeddings, mean=0.0, std=self.config.initializer_range)


class JMiniGPT4MultiModalProjector(nn.Module):
    """Two linear layers in the place of the article's one, `(*, in_features)` to `(*, out_features)` (LLaVA-1.5,
    arXiv:2310.03744, section 3.3)."""

    def __init__(self, in_features: int, out_features: int, hidden_act: str):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.linear_1 = nn.Linear(in_features, out_features)
        self.act = ACT2FN[hidden_act]
        self.linear_2 = nn.Linear(out_features, out_features)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.linear_2(self.act(self.linear_1(features)))


@auto_docstring(custom_intro="Image encoder, Q-Former, projection and language model, without the head.")
class JMiniGPT4Model(JMiniGPT4PreTrainedModel):
    def __init__(self, config: JMiniGPT4Config):
        super().__init__(config)
        # CODEPATH: any checkpoint loaded with flash attention; the stock Q-Former has no flash kernel to call.
        qformer_config: Any = config.qformer_config
        if "flash" in (qformer_config._attn_implementation or ""):
            qformer_config._attn_implementation = "sdpa"
        self.vision_model, self.vision_layernorm = image_encoder(config)
        if isinstance(self.vision_layernorm, nn.LayerNorm):
            self._keep_in_fp32_modules_strict = [*(self._keep_in_fp32_modules_strict or ()), "vision_layernorm"]
        queries = torch.zeros(1, config.num_query_tokens, config.qformer_config.hidden_size, dtype=torch.float32)
        self.query_tokens = nn.Parameter(queries)
        self.qformer = Blip2QFormerModel._from_config(config.qformer_config).float()
        self.language_model = model_without_head(config.text_config)
        self.family = Family(config.text_config, self.language_model)
        embedding_size = self.language_model.get_input_embeddings().embedding_dim
        sizes = (config.qformer_config.hidden_size, embedding_size)
        # CODEPATH: the article's checkpoints and all converted ones here; those trained with `projection: mlp` below.
        if config.projector_hidden_act is None:
            self.language_projection: Any = nn.Linear(*sizes, dtype=torch.float32)
        else:
            self.language_projection = JMiniGPT4MultiModalProjector(*sizes, config.projector_hidden_act).float()
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.language_model.set_input_embeddings(value)

    def freeze(self):
        """Leaves the projection as the only thing that learns (article, section on training)."""
        self.requires_grad_(False)
        self.language_projection.requires_grad_(True)
        self.train(self.training)

    def train(self, mode: bool = True):
        """Sets the training mode, but leaves frozen parts in eval: a frozen Q-Former or language model with dropout
        (rinna's 4b has 0.1) would blur what the projection learns from."""
        super().train(mode)
        for part in (self.vision_model, self.vision_layernorm, self.qformer, self.language_model):
            if mode and not any(parameter.requires_grad for parameter in part.parameters()):
                part.eval()
        if mode:
            for layer in self.language_model.modules():
                # A layer recomputes its activations only while in training mode; its dropouts stay in eval.
                if isinstance(layer, GradientCheckpointingLayer) and layer.gradient_checkpointing:
                    layer.training = True
        return self

    def get_query_features(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False, **kwargs: Unpack[TransformersKwargs]
    ) -> BaseModelOutputWithPooling:
        """Pictures to query features, the output of the Q-Former (BLIP-2, section 3.1): all that can be computed once
        per picture, before the projection.

        Args:
            pixel_values (`torch.Tensor` of shape `(num_images, 3, height, width)`):
                Pictures as the image processor makes them.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
                Whether to stretch the position embeddings to pictures of another size than the encoder's.

        Returns:
            [`BaseModelOutputWithPooling`]: `last_hidden_state` of shape `(num_images, num_query_tokens, 768)`;
            `hidden_states` and `attentions` of the image encoder when asked for. No graph is kept when the parts are
            frozen.

        Raises:
            ValueError: A picture's size is not the encoder's and `interpolate_pos_encoding` is off.
        """
        parts = (self.vision_model, self.vision_layernorm, self.qformer)
        learns = self.query_tokens.requires_grad or any(p.requires_grad for part in parts for p in part.parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and learns):
            encoded = encode(self.vision_model, self.config, pixel_values, interpolate_pos_encoding, **kwargs)
            image_embeds = self.vision_layernorm(as_places(encoded, self.config))
            image_embeds = image_embeds.to(self.query_tokens.dtype)
            query_embeds = self.query_tokens.expand(image_embeds.shape[0], -1, -1)
            query_outputs = self.qformer(
                query_embeds=query_embeds, encoder_hidden_states=image_embeds, return_dict=True
            )
        return BaseModelOutputWithPooling(
            last_hidden_state=query_outputs.last_hidden_state,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )

    @can_return_tuple
    @auto_docstring(custom_intro="Pictures, or query features computed before, to embeddings of the language model.")
    def get_image_features(
        self,
        pixel_values: torch.Tensor | None = None,
        query_features: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | BaseModelOutputWithPooling:
        r"""
        query_features (`torch.Tensor` of shape `(num_images, num_query_tokens, qformer_hidden_size)`, *optional*):
            Output of `get_query_features`, in the place of `pixel_values`.

        Returns:
            [`BaseModelOutputWithPooling`]: `pooler_output` holds the projected features,
            `(num_images, num_query_tokens, text_hidden_size)`; `last_hidden_state` the query features.
        """
        if pixel_values is not None and query_features is None:
            outputs: Any = self.get_query_features(pixel_values, interpolate_pos_encoding, **kwargs)
        elif pixel_values is None and query_features is not None:
            expected = tuple(self.query_tokens.shape[1:])
            if query_features.ndim != 3 or tuple(query_features.shape[1:]) != expected:
                raise ValueError(
                    f"query_features must be of shape (num_images, {expected[0]}, {expected[1]}), "
                    f"got {tuple(query_features.shape)}."
                )
            outputs = BaseModelOutputWithPooling(last_hidden_state=query_features)
        else:
            raise ValueError("Give exactly one of `pixel_values` and `query_features`.")
        weight, features = next(self.language_projection.parameters()), outputs.last_hidden_state
        # On meta only while offloaded: then accelerate moves weight and features to where they meet.
        features = features if weight.is_meta else features.to(weight.device)
        # A quantised projection has integer weights: only a floating point dtype may be copied from it.
        features = features.to(weight.dtype) if weight.dtype.is_floating_point else features
        outputs.pooler_output = self.language_projection(features)
        return outputs

    def get_placeholder_mask(
        self, input_ids: torch.LongTensor | None, inputs_embeds: torch.Tensor, image_features: torch.Tensor
    ) -> torch.Tensor:
        """Positions of the image tokens, `bool` of shape `(batch_size, sequence_length, 1)`.

        Raises:
            ValueError: The prompts hold more or fewer image tokens than there are image features.
        """
        if input_ids is None:
            image_token = torch.full((), self.config.image_token_id, dtype=torch.long, device=inputs_embeds.device)
            mask = (inputs_embeds == self.get_input_embeddings()(image_token)).all(-1)
        else:
            mask = input_ids == self.config.image_token_id
        num_tokens, num_features = mask.sum(), image_features.shape[0] * image_features.shape[1]
        torch_compilable_check(
            num_tokens == num_features,
            lambda: (
                f"Image features and image tokens do not match, tokens: {int(num_tokens)}, features: {num_features}. "
                f"The prompts hold {int(num_tokens)} image tokens but the pictures give {num_features} features "
                f"({image_features.shape[0]} pictures of {image_features.shape[1]}): a picture needs its placeholder."
            ),
        )
        return mask.unsqueeze(-1).to(inputs_embeds.device)

    def _check_rows(self, input_ids: torch.LongTensor):
        """Whole pictures in every prompt: totals alone would let one prompt take part of another's picture."""
        counts = (input_ids == self.config.image_token_id).sum(-1)
        torch_compilable_check(
            (counts % self.config.num_query_tokens == 0).all(),
            lambda: (
                f"Every picture stands for {self.config.num_query_tokens} image tokens, "
                f"but the prompts of this batch hold {counts.tolist()}."
            ),
        )

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        query_features: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        cache: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | JMiniGPT4ModelOutputWithPast:
        r"""
        query_features (`torch.Tensor` of shape `(num_images, num_query_tokens, qformer_hidden_size)`, *optional*):
            Output of `get_query_features`, in the place of `pixel_values`.
        past_key_values (`Cache`, *optional*):
            Keys and values of the positions seen before.
        cache (`Cache`, *optional*):
            The same under the name it has since transformers 5.24; both are taken on every version.
        """
        if (input_ids is None) ^ (inputs_embeds is not None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        images = (mm_encoder_outputs or {}).get("image")
        if sum(given is not None for given in (pixel_values, query_features, images)) > 1:
            raise ValueError("Give the pictures once: as pixel_values, query_features or mm_encoder_outputs.")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
            # CODEPATH: Falcon-H1 here, which scales what it looks up itself; all others leave it as it is.
            if self.family.text_scale != 1.0:
                inputs_embeds = inputs_embeds * self.family.text_scale

        if pixel_values is not None or query_features is not None:
            if input_ids is not None:
                self._check_rows(input_ids)
            images = self.get_image_features(
                pixel_values, query_features, interpolate_pos_encoding=interpolate_pos_encoding, return_dict=True
            )
        if images is not None:
            image_features = images.pooler_output.to(inputs_embeds.device, inputs_embeds.dtype)
            mask = self.get_placeholder_mask(input_ids, inputs_embeds, image_features)
            inputs_embeds = inputs_embeds.masked_scatter(mask, image_features)
        elif input_ids is not None and input_ids.shape[1] > 1:
            # One token is a step of decoding, where the image token cannot occur; there no check slows it down.
            num_tokens = (input_ids == self.config.image_token_id).sum()
            torch_compilable_check(
                num_tokens == 0,
                lambda: f"The prompts hold {int(num_tokens)} image tokens but 0 pictures were given.",
            )

        outputs = self.language_model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **{self.family.cache_name: past_key_values if cache is None else cache},
            **kwargs,
        )
        returned = {name: value for name, value in outputs.items() if name in BASE_OUTPUTS}
        returned[CACHE_NAME] = outputs.get(self.family.cache_name)
        image_hidden_states = images.pooler_output if images is not None else None
        return JMiniGPT4ModelOutputWithPast(**returned, image_hidden_states=image_hidden_states, image_outputs=images)


def _text_labels(labels: Any, image_token_id: int) -> Any:
    """Labels in which nothing is to be learnt where a picture stands."""
    return labels.masked_fill(labels == image_token_id, -100)


def _ignore_image_tokens(model: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    names = [name for name in ("labels", "shift_labels") if kwargs.get(name) is not None]
    return args, kwargs | {name: _text_labels(kwargs[name], model.config.image_token_id) for name in names}


@auto_docstring(custom_intro="Japanese MiniGPT-4: the model that answers.")
class JMiniGPT4ForConditionalGeneration(JMiniGPT4PreTrainedModel, GenerationMixin):
    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_in.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: JMiniGPT4Config):
        super().__init__(config)
        self.model = JMiniGPT4Model(config)
        family = self.model.family
        bias = config.lm_head_bias or family.bias
        self.lm_head = nn.Linear(family.in_features, family.out_features, bias=bias)
        self._is_stateful, self._can_compile_fullgraph = family.shell._is_stateful, family.shell._can_compile_fullgraph
        # Every family has its own name for the embeddings that the head may share.
        embeddings = self.model.get_input_embeddings()
        name = next(name for name, module in self.model.named_modules() if module is embeddings)
        self._tied_weights_keys = {"lm_head.weight": f"model.{name}.weight"}
        self.post_init()
        # The mask in `forward` is what forbids the image token; this tells candidate generators of it in advance.
        self.generation_config.suppress_tokens = [config.image_token_id]
        # A trainer that puts a fused head in the place of `forward` (TRL) reads the labels itself.
        self.register_forward_pre_hook(_ignore_image_tokens, with_kwargs=True)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def freeze(self):
        """Leaves the projection as the only thing that learns; see [`JMiniGPT4Model.freeze`]."""
        self.requires_grad_(False)
        self.model.freeze()

    def get_query_features(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False) -> torch.Tensor:
        """Query features of pictures, `(num_images, num_query_tokens, qformer_hidden_size)`, to be kept and given in
        the place of `pixel_values` as often as wanted; see [`JMiniGPT4Model.get_query_features`]."""
        outputs: Any = self.model.get_query_features(pixel_values, interpolate_pos_encoding)
        return outputs.last_hidden_state

    @auto_docstring
    def get_image_features(
        self,
        pixel_values: torch.Tensor | None = None,
        query_features: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | BaseModelOutputWithPooling:
        r"""
        query_features (`torch.Tensor` of shape `(num_images, num_query_tokens, qformer_hidden_size)`, *optional*):
            Output of `get_query_features`, in the place of `pixel_values`.
        """
        return self.model.get_image_features(
            pixel_values, query_features, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs
        )

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        query_features: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        labels: torch.LongTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        cache: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | JMiniGPT4CausalLMOutputWithPast:
        r"""
        query_features (`torch.Tensor` of shape `(num_images, num_query_tokens, qformer_hidden_size)`, *optional*):
            Output of `get_query_features`, in the place of `pixel_values`.
        past_key_values (`Cache`, *optional*):
            Keys and values of the positions seen before.
        cache (`Cache`, *optional*):
            The same under the name it has since transformers 5.24; both are taken on every version.

        Example:

        ```python
        >>> from PIL import Image
        >>> from transformers import AutoModelForImageTextToText, AutoProcessor

        >>> model = AutoModelForImageTextToText.from_pretrained("demo", trust_remote_code=True)
        >>> processor = AutoProcessor.from_pretrained("demo", trust_remote_code=True)
        >>> content = [{"type": "image", "image": Image.open("drawing.png")}, {"type": "text", "text": "何色?"}]
        >>> inputs = processor.apply_chat_template(
        ...     [{"role": "user", "content": content}],
        ...     add_generation_prompt=True,
        ...     tokenize=True,
        ...     return_dict=True,
        ...     return_tensors="pt",
        ... )
        >>> processor.post_process_image_text_to_text(model.generate(**inputs)[:, inputs["input_ids"].shape[1] :])
        ```"""
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            cache=cache,
            inputs_embeds=inputs_embeds,
            query_features=query_features,
            interpolate_pos_encoding=interpolate_pos_encoding,
            mm_encoder_outputs=mm_encoder_outputs,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        hidden_states = outputs.last_hidden_state[:, kept, :]
        if self.model.family.is_plain:
            logits = self.lm_head(hidden_states)
        else:
            logits = self.model.family.logits(hidden_states, self.lm_head, self.model.language_model)
        logits = self._without_image_token(logits)

        loss = None
        if labels is not None:
            # `Module.forward` runs no hook, and peft called it before 0.19.
            labels = _text_labels(labels, self.config.image_token_id)
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1], **kwargs)
        passed_on = {name: value for name, value in outputs.items() if name != "last_hidden_state"}
        return JMiniGPT4CausalLMOutputWithPast(loss=loss, logits=logits, **passed_on)

    def _without_image_token(self, logits: torch.Tensor) -> torch.Tensor:
        """A picture is nothing the model can say. Out of reach, its token also leaves the softmax of the loss, which
        is then that of the language model as it was before the token joined its vocabulary. The lowest number of a
        dtype would do that too, but overflows where a client adds, squares or normalises logits in float16."""
        token = self.config.image_token_id
        if token >= logits.shape[-1]:  # a family's head may leave out what its table is padded with
            return logits
        logits[..., token] = torch.finfo(logits.dtype).min
        logits[..., token] = logits.detach().amax(-1) - IMAGE_TOKEN_BELOW_MAXIMUM
        return logits

    def _prepare_multimodal_encoder_kwargs_for_generation(self, model_kwargs: dict) -> dict:
        """Lets `generate` take query features where it takes pictures: it would drop them unread."""
        query_features = model_kwargs.pop("query_features", None)
        if model_kwargs.get("pixel_values") is None:
            model_kwargs.pop("pixel_values", None)  # `None` would be encoded
        elif query_features is not None:
            raise ValueError("Give the pictures once: as pixel_values or as query_features.")
        prepared: Any = super()._prepare_multimodal_encoder_kwargs_for_generation(model_kwargs)
        if query_features is not None:
            images = self.get_image_features(query_features=query_features, return_dict=True)
            prepared["mm_encoder_outputs"]["image"] = images
        return prepared

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.LongTensor,
        *args,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        is_first_iteration: bool = False,
        cache: Cache | None = None,
        **kwargs,
    ) -> dict:
        """A draft model of assisted generation is never told that its first step is one, and would lose the pictures:
        an empty cache tells it. A cache of states alone has no positions that a mask could hide."""
        cache = past_key_values if cache is None else cache
        may_draft = not self._is_stateful and cache is not None and not is_first_iteration
        if kwargs.get("mm_encoder_outputs") and may_draft:
            is_first_iteration = cache.get_seq_length() == 0
        inputs = super().prepare_inputs_for_generation(
            input_ids,
            *args,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            **{CACHE_NAME: cache},
            **kwargs,
        )
        if self._is_stateful and isinstance(cache, Cache) and all(cache.is_linear) and not is_first_iteration:
            inputs["attention_mask"] = None
        return inputs

    def _supports_default_dynamic_cache(self) -> bool:
        return self.model.family.shell._supports_default_dynamic_cache()

    def generate_batch(self, inputs: list[list[int]], *args, **kwargs):
        """Continuous batching, for text only: it takes token ids and would answer about a picture it never saw.

        Raises:
            ValueError: A prompt holds image tokens.
        """
        for index, ids in enumerate(inputs):
            if self.config.image_token_id in ids:
                raise ValueError(
                    f"Prompt {index} holds image tokens, but generate_batch passes no pictures to the model: "
                    "use generate(), which takes batches with pictures."
                )
        return super().generate_batch(inputs, *args, **kwargs)


__all__ = ["JMiniGPT4ForConditionalGeneration", "JMiniGPT4Model", "JMiniGPT4PreTrainedModel"]
