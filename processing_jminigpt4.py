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
"""Pictures and text of Japanese MiniGPT-4 on their way into the model: one image processor, one processor.

What a user typed is data. Only the chat template and the author of a prompt can write control tokens and image slots.
"""

import base64
import binascii
import io
import itertools
import re
import warnings
from collections.abc import Iterator
from os.path import isfile
from typing import Any, BinaryIO, cast

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers import BatchFeature, ProcessorMixin
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, ChannelDimension, PILImageResampling
from transformers.processing_utils import ImagesKwargs, MultiModalData
from transformers.utils import auto_docstring

# A Unicode noncharacter, "for process-internal use" (Unicode 15, section 23.7): set inside the spelling of a control
# token it keeps the tokenizer from reading one there; the tokenizer's normalizer then removes it without a trace.
GUARD = "\ufdd0"
IMAGE_TOKEN = "<ImageHere>"

PictureSource = Image.Image | np.ndarray | torch.Tensor | bytes | BinaryIO


class JMiniGPT4ImageProcessorKwargs(ImagesKwargs, total=False):
    r"""
    background (`list[int]`, *optional*, defaults to `[255, 255, 255]`):
        Red, green and blue (0-255) of what shows through transparent parts of a picture.
    plain_rgb (`bool`, *optional*, defaults to `False`):
        Whether to do what the original code did and nothing else, `Image.convert("RGB")`: transparent parts show
        whatever colour is stored under them, EXIF orientation is ignored, 16 bits are clipped to 8.
    max_pixels (`int`, *optional*, defaults to 50000000):
        Largest picture, width times height, that is decoded.
    """

    background: list[int]
    plain_rgb: bool
    max_pixels: int


@auto_docstring
class JMiniGPT4ImageProcessor(PilBackend):
    r"""Pictures of any kind to `pixel_values`.

    A picture may be a PIL image of any mode, a numpy array or torch tensor (`(height, width)`, `(height, width,
    channels)` or `(channels, height, width)`; integers, or floats in [0, 1]), the bytes of a picture file, or an open
    binary file. It is turned as its EXIF orientation says, laid on a white background where it is transparent, reduced
    to 8 bits, squeezed to `size` with PIL's bicubic filter and normalised with CLIP's mean and standard deviation.
    Apart from the first three steps this is `Blip2ImageEvalProcessor` of LAVIS, bit for bit.
    """

    valid_kwargs = JMiniGPT4ImageProcessorKwargs
    model_input_names = ["pixel_values"]
    resample = PILImageResampling.BICUBIC
    image_mean = OPENAI_CLIP_MEAN
    image_std = OPENAI_CLIP_STD
    size = {"height": 224, "width": 224}
    default_to_square = True
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    background = [255, 255, 255]
    plain_rgb = False
    max_pixels = 50_000_000

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Opens what is not yet a picture: bytes, open files, and the strings that transformers' own `load_image`
        takes. Nothing is decoded here. The nesting stays as it is.

        Raises:
            ValueError: Something is no picture; the message names its position.
        """
        return self._fetch(image_url_or_urls, itertools.count(1))

    def _fetch(self, source: Any, positions: Iterator[int]) -> Any:
        if isinstance(source, list | tuple):
            return [self._fetch(each, positions) for each in source]
        name = f"picture {next(positions)}"
        if isinstance(source, str):
            return self._fetch_string(source, name)
        if isinstance(source, bytes) or hasattr(source, "read"):
            return _open(source, name)
        if not isinstance(source, Image.Image | np.ndarray | torch.Tensor):
            raise ValueError(
                f"{name} is a {type(source).__name__}: give a PIL image, an array, bytes or an open file."
            )
        return source

    def _fetch_string(self, source: str, name: str) -> Image.Image:
        # `load_image` decodes before any limit can be checked, and drops transparency: a path must not give another
        # result than the picture it leads to.
        if isfile(source):
            with open(source, "rb") as file:
                return _open(file.read(), source)
        if source.startswith("data:image/"):
            try:
                return _open(base64.b64decode(source.partition(",")[2], validate=True), name)
            except binascii.Error:
                raise ValueError(f"{name} is not valid base64.") from None
        return super().fetch_images(source)

    def _prepare_image_like_inputs(
        self, images: Any, *args: Any, expected_ndims: int = 3, **kwargs: Any
    ) -> list[np.ndarray]:
        pictures = _flat(self.fetch_images(images))
        if not pictures:
            raise ValueError("The list of pictures is empty.")
        return [self.process_image(picture, name=f"picture {i}", **kwargs) for i, picture in enumerate(pictures, 1)]

    def process_image(
        self,
        image: PictureSource,
        name: str = "picture",
        do_convert_rgb: bool | None = None,
        input_data_format: str | None = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """One picture to an array of `uint8`, `(3, height, width)`.

        Everything passes [`to_rgb`], but for a PIL image of mode RGB with `do_convert_rgb=False`: the caller has
        converted it. Its size is checked all the same.
        """
        if do_convert_rgb is False and isinstance(image, Image.Image) and image.mode == "RGB":
            _check_size(image.width, image.height, kwargs.get("max_pixels") or self.max_pixels, name)
            rgb = _decode(image, name)
        else:
            rgb = self.to_rgb(image, name, input_data_format=input_data_format, **kwargs)
        return np.moveaxis(np.asarray(rgb), -1, 0)

    def to_rgb(
        self,
        image: PictureSource,
        name: str = "picture",
        background: list[int] | None = None,
        plain_rgb: bool | None = None,
        max_pixels: int | None = None,
        input_data_format: str | None = None,
        **kwargs: Any,
    ) -> Image.Image:
        """One picture to a PIL image of mode RGB, before resizing.

        Args:
            image: A PIL image, array, tensor, the bytes of a picture file or an open binary file.
            name: What error messages call the picture.
            background, plain_rgb, max_pixels: As in [`JMiniGPT4ImageProcessorKwargs`]; the processor's own by default.
            input_data_format: `"channels_first"` or `"channels_last"`, for arrays whose shape does not tell.

        Raises:
            ValueError: The picture is empty, damaged, larger than `max_pixels` or of a shape no picture has. Sizes are
                read from the header, before anything is decoded.
        """
        background = self.background if background is None else background
        plain_rgb = self.plain_rgb if plain_rgb is None else plain_rgb
        max_pixels = self.max_pixels if max_pixels is None else max_pixels
        if isinstance(image, bytes) or hasattr(image, "read"):
            image = _open(cast("bytes | BinaryIO", image), name)
        if not isinstance(image, Image.Image):
            image = _from_array(image, name, max_pixels, input_data_format)
        _check_size(image.width, image.height, max_pixels, name)
        image = _decode(image, name)
        if plain_rgb:
            return image.convert("RGB")
        image = _upright(image)
        if image.mode.startswith("I") or image.mode == "F":
            image = _eight_bits(np.asarray(image), name)
        if image.mode == "La":
            image = image.convert("LA")  # the only way out of this mode that Pillow knows
        if image.has_transparency_data:
            backdrop = Image.new("RGBA", image.size, (*background, 255))
            image = Image.alpha_composite(backdrop, image.convert("RGBA"))
        return image.convert("RGB")


def _flat(images: Any) -> list[Any]:
    if isinstance(images, list | tuple):
        return [picture for each in images for picture in _flat(each)]
    return [images]


def _open(source: bytes | BinaryIO, name: str) -> Image.Image:
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    if isinstance(source, bytes) and not source:
        raise ValueError(f"{name} is empty (0 bytes).")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `max_pixels` decides, not a warning
            return Image.open(file)
    except Image.DecompressionBombError:
        raise ValueError(f"{name} has more pixels than Pillow opens: shrink it.") from None
    except Exception:
        # Pillow's own words name memory addresses and differ by plug-in; they are for its developers.
        raise ValueError(f"{name} is not a picture that Pillow can read.") from None


def _check_size(width: int, height: int, max_pixels: int, name: str):
    if width < 1 or height < 1:
        raise ValueError(f"{name} is empty ({width} x {height} pixels).")
    if width * height > max_pixels:
        raise ValueError(
            f"{name} has {width} x {height} = {width * height:,} pixels; at most {max_pixels:,} are decoded. "
            "Shrink it, or raise the image processor's `max_pixels`."
        )


def _decode(image: Image.Image, name: str) -> Image.Image:
    try:
        if getattr(image, "is_animated", False):
            image.seek(0)
        image.load()
    except Exception:
        raise ValueError(f"{name} is damaged or cut off: it cannot be decoded to its end.") from None
    return image


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF says nothing about the orientation; the pixels are fine
        return image


def _from_array(array: Any, name: str, max_pixels: int, layout: str | None) -> Image.Image:
    is_tensor = isinstance(array, torch.Tensor)
    array = array.detach().cpu().numpy() if is_tensor else np.asarray(array)
    channels = (1, 2, 3, 4)
    if array.ndim == 3:
        last = array.shape[-1] in channels
        first = array.shape[0] in channels
        if layout is None:
            # Where both ends could be the channels, a tensor has them first and an array last.
            channels_first = first and (is_tensor or not last)
        else:
            channels_first = ChannelDimension(layout) == ChannelDimension.FIRST
        array = np.moveaxis(array, 0, -1) if channels_first else array
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in channels):
        raise ValueError(
            f"{name} has shape {array.shape}: give (height, width), or 1, 2, 3 or 4 channels first or last."
        )
    _check_size(array.shape[1], array.shape[0], max_pixels, name)
    return _eight_bits(array, name)


def _eight_bits(array: np.ndarray, name: str) -> Image.Image:
    """Grey levels or channels of any type to 8 bits each: scaled, not clipped.

    The type says how bright white is: 255 for `uint8`, 65535 for `uint16`, 1 for floats and `bool`. Where the type is
    wider than any picture (`int32`, or floats above 1), the values say it: 255 as long as none is larger, else 65535.
    """
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.dtype != np.uint8:
        if not np.isfinite(array).all():
            raise ValueError(f"{name} holds values that are not finite.")
        brightest = array.max()
        if array.dtype == np.uint16:
            white = 65535
        elif array.dtype == bool or (np.issubdtype(array.dtype, np.floating) and brightest <= 1):
            white = 1
        else:
            white = 255 if brightest <= 255 else 65535
        array = np.rint(np.clip(array.astype(np.float64) / white, 0, 1) * 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(array))


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

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs: Any) -> str:
        return self.image_token * self.num_query_tokens

    def _get_num_multimodal_tokens(self, image_sizes: list[list[int]] | None = None, **kwargs: Any) -> MultiModalData:
        """How many tokens each picture takes: serving engines plan with it before they see one."""
        count = len(image_sizes or [])
        return MultiModalData(num_image_tokens=[self.num_query_tokens] * count, num_image_patches=[1] * count)

    def prepare_inputs_layout(self, images=None, text=None, videos=None, audio=None, **kwargs: Any):
        if isinstance(images, list | tuple) and not _flat(images):
            images = None  # a batch of prompts without pictures
        images, text, videos, audio = super().prepare_inputs_layout(images, text, videos, audio, **kwargs)
        if text is not None and all(isinstance(prompt, str) for prompt in text):
            text = [self._guard(prompt) for prompt in text]
        return images, text, videos, audio

    def _guard(self, prompt: str) -> str:
        """Makes control tokens that no prompt of this format contains plain text: of what stands spelt in a prompt,
        only a BOS at its very start, the end of a finished answer at its very end, the image token, and what the chat
        template itself writes are tokens."""
        template = self.chat_template or ""
        eos = self.tokenizer.eos_token
        stop = len(prompt) - (len(eos) if eos and prompt.endswith(eos) and "open_end" in template else 0)
        bos = self.tokenizer.bos_token
        start = len(bos) if bos and prompt.startswith(bos) and ("bos_token" in template or bos in template) else 0
        special = [token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        spelt = [token for token in special if len(token) > 1 and token != self.image_token and token not in template]
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
                groups = [len(_flat(group)) for group in images]
                if len(groups) != len(text):
                    raise ValueError(f"{len(text)} prompts but {len(groups)} lists of pictures were given.")
                pairs = [(f"Prompt {i}", *pair) for i, pair in enumerate(zip(placeholders, groups, strict=True))]
            else:
                given = 0 if images is None else len(_flat(images))
                name = "The prompt" if len(text) == 1 else f"The batch of {len(text)} prompts"
                pairs = [(name, sum(placeholders), given)]
            for name, expected, given in pairs:
                if expected != given:
                    raise ValueError(
                        f"{name} has {expected} placeholders {self.image_token} but {given} pictures were given: "
                        "write one placeholder for every picture."
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
        text = self.apply_chat_template(messages, add_generation_prompt=add_generation_prompt, open_end=True)
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
