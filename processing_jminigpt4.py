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
"""Prompts of Japanese MiniGPT-4 on their way into the model, and answers on their way out.

What a user typed is data. Only the chat template and the author of a prompt can write control tokens and image slots.
"""

import re
from contextvars import ContextVar
from typing import Any

from transformers import BatchFeature, ProcessorMixin
from transformers.processing_utils import MultiModalData
from transformers.utils import auto_docstring

from .image_processing_jminigpt4 import JMiniGPT4ImageProcessor, flat_list

# A Unicode noncharacter, "for process-internal use" (Unicode 15, section 23.7): set inside the spelling of a control
# token it keeps the tokenizer from reading one there; the tokenizer's normalizer then removes it without a trace.
GUARD = "\ufdd0"
IMAGE_TOKEN = "<ImageHere>"
# Whether a prompt comes from the chat template, which has guarded what users typed, and not from a caller.
_RENDERED: ContextVar[bool] = ContextVar("rendered", default=False)


@auto_docstring(custom_intro="Image processor and tokenizer as one: prompts with pictures in, model inputs out.")
class JMiniGPT4Processor(ProcessorMixin):
    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        num_query_tokens: int = 32,
        chat_template: str | None = None,
        newline: str | None = None,
        stop_strings: list[str] | None = None,
    ):
        r"""
        num_query_tokens (`int`, *optional*, defaults to 32):
            Number of image tokens that stand for one picture.
        newline (`str`, *optional*):
            How the prompt format writes a line break, where the tokenizer knows none (`<NL>` for rinna's 3.6b).
        stop_strings (`list[str]`, *optional*):
            Marks of the prompt format at which an answer ends, next to the end-of-sequence token.
        """
        self.num_query_tokens = num_query_tokens
        self.newline = newline
        self.stop_strings = list(stop_strings or [])
        self.image_token = getattr(tokenizer, "image_token", None) or IMAGE_TOKEN
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    def apply_chat_template(self, conversation: Any, *args: Any, **kwargs: Any) -> Any:
        """As of every processor; see [`~ProcessorMixin.apply_chat_template`]."""
        before = _RENDERED.set(True)
        try:
            return super().apply_chat_template(conversation, *args, **kwargs)
        finally:
            _RENDERED.reset(before)

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs: Any) -> str:
        return self.image_token * self.num_query_tokens

    def _get_num_multimodal_tokens(self, image_sizes: list[list[int]] | None = None, **kwargs: Any) -> MultiModalData:
        """How many tokens each picture takes: serving engines plan with it before they see one."""
        count = len(image_sizes or [])
        return MultiModalData(num_image_tokens=[self.num_query_tokens] * count, num_image_patches=[1] * count)

    def prepare_inputs_layout(self, images=None, text=None, videos=None, audio=None, **kwargs: Any):
        if isinstance(images, list | tuple) and not flat_list(images):
            images = None  # a batch of prompts without pictures
        images, text, videos, audio = super().prepare_inputs_layout(images, text, videos, audio, **kwargs)
        if text is not None and all(isinstance(prompt, str) for prompt in text):
            text = [self._guard(prompt) for prompt in text]
        return images, text, videos, audio

    def _guard(self, prompt: str) -> str:
        """Makes control tokens that no prompt of this format contains plain text: of what stands spelt in a prompt,
        only a BOS at its very start, the end of a finished answer at its very end or where the template puts it, the
        image token, and what the chat template itself writes are tokens."""
        template = self.chat_template or ""
        eos = self.tokenizer.eos_token
        stop = len(prompt) - (len(eos) if eos and prompt.endswith(eos) and "open_end" in template else 0)
        bos = self.tokenizer.bos_token
        start = len(bos) if bos and prompt.startswith(bos) and ("bos_token" in template or bos in template) else 0
        special = [token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        written = (self.image_token, eos if _RENDERED.get() and "open_end" in template else None)
        spelt = [token for token in special if len(token) > 1 and token not in written and token not in template]
        if not spelt:
            return prompt
        pattern = "|".join(re.escape(token) for token in sorted(spelt, key=len, reverse=True))
        guarded = re.sub(pattern, lambda match: match[0][0] + GUARD + match[0][1:], prompt[start:stop])
        return prompt[:start] + guarded + prompt[stop:]

    def validate_inputs(self, images=None, text=None, videos=None, audio=None, **kwargs: Any):
        """Raises `ValueError` when the pictures of a prompt are not as many as its placeholders, prompt by prompt
        where the pictures are given so, else in total."""
        if text is not None and all(isinstance(prompt, str) for prompt in text):
            placeholders = [prompt.count(self.image_token) for prompt in text]
            if isinstance(images, list) and any(isinstance(group, list) for group in images):
                groups = [len(flat_list(group)) for group in images]
                if len(groups) != len(text):
                    raise ValueError(f"{len(text)} prompts but {len(groups)} lists of pictures were given.")
                pairs = [(f"Prompt {i}", *pair) for i, pair in enumerate(zip(placeholders, groups, strict=True))]
            else:
                given = 0 if images is None else len(flat_list(images))
                name = "The prompt" if len(text) == 1 else f"The batch of {len(text)} prompts"
                pairs = [(name, sum(placeholders), given)]
            for name, expected, given in pairs:
                if expected != given:
                    raise ValueError(
                        f"{name} has {expected} placeholders {self.image_token} but {given} pictures were given: "
                        f"write one placeholder for every picture. The total number of {self.image_token} tokens in "
                        "the prompts should be the same as the number of images passed."
                    )
        super().validate_inputs(images=images, text=text, videos=videos, audio=audio, **kwargs)

    def encode_segments(self, messages: list[dict[str, Any]], add_generation_prompt: bool = False) -> BatchFeature:
        """One conversation to token ids and training labels, segment by segment (prompt | answer | prompt | …), each
        tokenised by itself: exactly what the model read and generated, where an answer begins behind a
        finished prompt. Tokenising the joined text would merge pieces across the seam.

        Args:
            messages: Turns in the format of [`~ProcessorMixin.apply_chat_template`]; pictures in them are not opened.
            add_generation_prompt: Whether to end with the opening of the next answer.

        Returns:
            [`BatchFeature`]: `input_ids` and `labels`, lists of `int` of equal length. Labels are -100 but for the
            tokens of answers and, right behind each, the end-of-sequence token. A conversation continues without that
            token, so there its label stands on the first token of the next prompt; a last answer is followed by it.

        Raises:
            ValueError: The template does not render a conversation as a continuation of its beginning.
        """
        text, input_ids, labels = "", [], []
        owes_end = False
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = self.render_segment(messages[:index], text, add_generation_prompt=True)
            answer = self.render_segment(messages[: index + 1], text + prompt)
            text += prompt + answer
            prompt_ids, answer_ids = self.tokenize_segment(prompt), self.tokenize_segment(answer)
            input_ids += prompt_ids + answer_ids
            labels += self._prompt_labels(prompt_ids, owes_end) + answer_ids
            owes_end = not any(answer.endswith(stop) for stop in self.stop_strings)
        if messages[-1]["role"] != "assistant" or add_generation_prompt:
            prompt_ids = self.tokenize_segment(
                self.render_segment(messages, text, add_generation_prompt=add_generation_prompt)
            )
            input_ids += prompt_ids
            labels += self._prompt_labels(prompt_ids, owes_end)
        elif owes_end:
            input_ids.append(self.tokenizer.eos_token_id)
            labels.append(self.tokenizer.eos_token_id)
        return BatchFeature({"input_ids": input_ids, "labels": labels})

    def render_segment(
        self, messages: list[dict[str, Any]], before: str = "", add_generation_prompt: bool = False
    ) -> str:
        """The text by which a conversation is longer than its beginning: the next prompt, or an answer.

        Args:
            messages: Turns in the format of [`~ProcessorMixin.apply_chat_template`]; pictures in them are not opened.
            before: The beginning, as rendered before.
            add_generation_prompt: Whether to end with the opening of the next answer.

        Raises:
            ValueError: The template does not render the conversation as a continuation of `before`.
        """
        # A template without an end to leave out would hand the word on to the tokenizer.
        options: dict[str, Any] = {"open_end": True} if "open_end" in str(self.chat_template) else {}
        text = self.apply_chat_template(messages, add_generation_prompt=add_generation_prompt, **options)
        if not text.startswith(before):
            raise ValueError(
                "The chat template rewrites earlier turns when a conversation goes on; segments need it not to."
            )
        return text[len(before) :]

    def tokenize_segment(self, text: str) -> list[int]:
        """Token ids of a rendered segment by itself, `num_query_tokens` image tokens for each picture; only what is
        spelt in it becomes a control token, nothing is added."""
        expanded = text.replace(self.image_token, self.image_token * self.num_query_tokens)
        return self.tokenizer(expanded, add_special_tokens=False)["input_ids"]

    def _prompt_labels(self, prompt_ids: list[int], owes_end: bool) -> list[int]:
        labels = [-100] * len(prompt_ids)
        if owes_end:
            labels[0] = self.tokenizer.eos_token_id
        return labels

    def trim_answer(self, text: str) -> str:
        """Decoded new tokens to the answer as a person reads it: cut at the format's stop strings, line breaks put
        back, white space at both ends removed."""
        for stop in self.stop_strings:
            text = text.split(stop, 1)[0]
        return self._with_line_breaks(text).strip()

    def post_process_image_text_to_text(self, generated_outputs, skip_special_tokens: bool = True, **kwargs: Any):
        """Generated ids, `(batch, length)` or a list of them, to `list[str]`, with line breaks put back."""
        texts = super().post_process_image_text_to_text(
            generated_outputs, skip_special_tokens=skip_special_tokens, **kwargs
        )
        return [self._with_line_breaks(text) for text in texts]

    def _with_line_breaks(self, text: str) -> str:
        return text.replace(self.newline, "\n") if self.newline else text


__all__ = ["JMiniGPT4ImageProcessor", "JMiniGPT4Processor"]
