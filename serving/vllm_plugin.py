"""All that this package knows of vLLM's internals: nothing else in it imports them.

vLLM computes the model with its Transformers modelling backend, below a head of its own. What that backend cannot know
of itself stands here: which class has no head, that the image token is nothing to say, how requests that name no
setting are answered, where an answer ends and how its format writes a line break.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from PIL import Image
from transformers import AutoModel
from vllm.config import ModelConfig
from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.parse import MultiModalDataParser
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.detokenizer import FastIncrementalDetokenizer, IncrementalDetokenizer, uses_fast_detokenizer

from .. import JMiniGPT4Config, JMiniGPT4ForConditionalGeneration, JMiniGPT4Model, JMiniGPT4Processor
from . import ARCHITECTURE

# vLLM's head multiplies by `logit_scale` and caps at `final_logit_softcapping`; of these traits it knows nothing.
UNKNOWN_TO_THE_HEAD = ("logits_scaling", "logits_soft_cap", "lm_head_multiplier")

_ordinary_detokenizer = IncrementalDetokenizer.from_new_request


def install():
    """Puts [`ServingDefaults`] and [`AnswerDetokenizer`] in their places; a second time changes nothing."""
    MODELS_CONFIG_MAP[ARCHITECTURE] = ServingDefaults
    # There is no hook for stop strings of a server, nor for the text of answers.
    IncrementalDetokenizer.from_new_request = staticmethod(_detokenizer)


def __getattr__(name: str) -> Any:
    if name == "JMiniGPT4ForVLLM":
        return _model_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@lru_cache
def _model_class() -> type:
    """The model. vLLM asks for it by name and only where it computes or prepares pictures: its layers must not be
    imported in a process before that forks."""
    from vllm.model_executor.models import transformers as backend

    class PictureInfo(backend.MultiModalProcessingInfo):
        def get_data_parser(self) -> MultiModalDataParser:
            return PictureParser(self.get_hf_processor().image_processor.to_rgb)

    class JMiniGPT4ForVLLM(backend.TransformersMultiModalForCausalLM):
        def __init__(self, *, vllm_config: Any, prefix: str = ""):
            # The backend builds what AutoModel names, where this package registers the class with a head.
            AutoModel.register(JMiniGPT4Config, JMiniGPT4Model, exist_ok=True)
            try:
                super().__init__(vllm_config=vllm_config, prefix=prefix)
            finally:
                AutoModel.register(JMiniGPT4Config, JMiniGPT4ForConditionalGeneration, exist_ok=True)

        def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
            logits = super().compute_logits(hidden_states)
            if logits is not None:
                logits[..., self.config.image_token_id] = torch.finfo(logits.dtype).min
            return logits

    register = MULTIMODAL_REGISTRY.register_processor(
        backend.MultiModalProcessor, info=PictureInfo, dummy_inputs=backend.MultiModalDummyInputsBuilder
    )
    return register(JMiniGPT4ForVLLM)


class PictureParser(MultiModalDataParser):
    """Pictures to RGB as the image processor does it: vLLM's own way would clip 16 bits to 8."""

    def __init__(self, to_rgb: Callable[[Image.Image], Image.Image]):
        super().__init__()
        self._to_rgb = to_rgb

    def _parse_image_data(self, data: Any) -> Any:
        data = [data] if isinstance(data, Image.Image) else data
        if isinstance(data, list):
            data = [self._to_rgb(each) if isinstance(each, Image.Image) else each for each in data]
        return super()._parse_image_data(data)


class ServingDefaults(VerifyAndUpdateConfig):
    """What vLLM asks of each architecture before a model is loaded, in every process."""

    @staticmethod
    def verify_and_update_model_config(model_config: ModelConfig):
        """Sets what requests get that name nothing: greedy decoding where the checkpoint's generation config has
        `do_sample: false`, of which vLLM reads the numbers only (options of `vllm serve` come first); and pictures as
        they are stored, for [`PictureParser`].

        Raises:
            ValueError: The head of the language model does what vLLM's own does not.
        """
        _check_head(model_config.hf_text_config)
        if model_config.generation_config != "vllm" and not model_config.try_get_generation_config().get("do_sample"):
            model_config.override_generation_config.setdefault("temperature", 0.0)
        if model_config.multimodal_config is not None:
            image_options = model_config.multimodal_config.media_io_kwargs.setdefault("image", {})
            image_options.setdefault("image_mode", None)


def _check_head(config: Any):
    for trait in UNKNOWN_TO_THE_HEAD:
        if (value := getattr(config, trait, None)) not in (None, 1):
            raise ValueError(
                f"The head of {config.model_type} computes with {trait} {value}, vLLM's does not: its answers would "
                "be others. Remedy: jminigpt4 serve"
            )
    if getattr(config, "word_embed_proj_dim", config.hidden_size) != config.hidden_size:
        raise ValueError(
            f"The head of this {config.model_type} is narrower than its layers, which vLLM's is not. "
            "Remedy: jminigpt4 serve"
        )


def _detokenizer(tokenizer: Any, request: EngineCoreRequest) -> IncrementalDetokenizer:
    is_ours = getattr(tokenizer, "init_kwargs", {}).get("processor_class") == JMiniGPT4Processor.__name__
    if is_ours and uses_fast_detokenizer(tokenizer):
        return AnswerDetokenizer(tokenizer, request)
    return _ordinary_detokenizer(tokenizer, request)


class AnswerDetokenizer(FastIncrementalDetokenizer):
    """Tokens of an answer to text, with line breaks where the prompt format writes a mark for them. The answer also
    ends at the format's stop strings, beside those of the request, unless that has `ignore_eos`."""

    def __init__(self, tokenizer: Any, request: EngineCoreRequest):
        super().__init__(tokenizer, request)
        stop_strings, self._newline = answer_format(tokenizer.name_or_path)
        params: Any = request.sampling_params
        stops = [*self.stop, *(() if params.ignore_eos else stop_strings)]
        self.stop = [stop.replace(self._newline, "\n") if self._newline else stop for stop in stops]
        if self.stop and not self.include_stop_str_in_output:
            self.stop_buffer_length = max(map(len, self.stop)) - 1
        self._held_back = ""  # what may become a line break with the tokens behind it

    def decode_next(self, next_token_id: int) -> str:
        text = super().decode_next(next_token_id)
        if not self._newline:
            return text
        text = (self._held_back + text).replace(self._newline, "\n")
        begun = (self._newline[:length] for length in range(len(self._newline) - 1, 0, -1))
        self._held_back = next((start for start in begun if text.endswith(start)), "")
        return text.removesuffix(self._held_back)

    def update(self, new_token_ids: list[int], stop_terminated: bool) -> str | None:
        stop_string = super().update(new_token_ids, stop_terminated)
        if stop_string is not None:
            self._held_back = ""
        return stop_string

    def get_next_output_text(self, finished: bool, delta: bool) -> str:
        if finished:
            self.output_text += self._held_back
            self._held_back = ""
        return super().get_next_output_text(finished, delta)


@lru_cache
def answer_format(model: str) -> tuple[tuple[str, ...], str | None]:
    """Stop strings of a checkpoint's prompt format, and how it writes a line break."""
    settings = JMiniGPT4Processor.get_processor_dict(model)[0]
    return tuple(settings.get("stop_strings") or ()), settings.get("newline")
