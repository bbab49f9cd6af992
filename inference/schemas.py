"""What the JSON files of a checkpoint may state. A checkpoint may be a stranger's: no code of its own is run, nothing
outside its folder is opened, and no number in it makes the machine work without end."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

from ..checkpoint import read_json_object
from ..configuration_jminigpt4 import AUTO_MAP
from ..schema import explain

# Integers of config.json: sizes and counts, and what may be larger. The widest layers of published models are below
# 60,000; each number of layers or labels costs the machine a loop and memory before a weight is looked at.
LARGEST_COUNT = 100_000
MAY_BE_LARGER = re.compile(r".*(_id|_ids|_index|vocab|position|window|length|theta|ctx|base|seq).*")
LARGEST_NUMBER = 2**31 - 1

Count = Annotated[int, Field(ge=0, le=LARGEST_COUNT)]
TokenId = Annotated[int, Field(ge=-1, le=LARGEST_NUMBER)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, le=1e6)]
Mean = Annotated[float, Field(ge=-1e3, le=1e3)]
Level = Annotated[int, Field(ge=0, le=255)]
Side = Annotated[int, Field(ge=1, le=4096)]
Off = Literal[False]
Code = dict[str, Any]


class File(BaseModel):
    """Fields that a file may have; one that is null counts as left out."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @field_validator("auto_map", check_fields=False)
    @classmethod
    def is_ours(cls, auto_map: Code) -> Code:
        foreign = [reference for name, reference in auto_map.items() if AUTO_MAP.get(name) != reference]
        if foreign:
            raise ValueError(
                f"names code of its own ({foreign[0]}), and no code of a checkpoint is run: remove the entry, or make "
                "the folder anew with `jminigpt4 convert`"
            )
        return auto_map


class ImageProcessorFile(File):
    image_processor_type: Literal["JMiniGPT4ImageProcessor"] = "JMiniGPT4ImageProcessor"
    processor_class: Literal["JMiniGPT4Processor"] = "JMiniGPT4Processor"
    auto_map: Code = {}
    background: Annotated[list[Level], Field(min_length=3, max_length=3)] = [255] * 3
    data_format: Literal["channels_first"] = "channels_first"
    default_to_square: bool = True
    do_center_crop: Off = False
    do_convert_rgb: bool = True
    do_normalize: bool = True
    do_pad: Off = False
    do_rescale: bool = True
    do_resize: bool = True
    image_mean: Annotated[list[Annotated[float, Field(ge=-1e3, le=1e3)]], Field(min_length=3, max_length=3)] = [
        0.0
    ] * 3
    image_std: Annotated[list[Positive], Field(min_length=3, max_length=3)] = [1.0] * 3
    # Whoever opens larger pictures raises the limit in his own code; a checkpoint may only lower it.
    max_pixels: Annotated[int, Field(ge=1, le=50_000_000)] = 50_000_000
    plain_rgb: bool = False
    resample: Annotated[int, Field(ge=0, le=5)] = 3
    rescale_factor: Positive = 1 / 255
    size: dict[Literal["height", "width"], Side] = {}


class ProcessorFile(File):
    processor_class: Literal["JMiniGPT4Processor"] = "JMiniGPT4Processor"
    auto_map: Code = {}
    image_processor: dict[str, Any] = {}
    num_query_tokens: Annotated[int, Field(ge=1, le=LARGEST_COUNT)] = 32
    newline: str = ""
    stop_strings: list[Annotated[str, Field(min_length=1)]] = []


class TokenizerFile(File):
    # Every family of tokenizers has settings of its own.
    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

    auto_map: Code = {}
    tokenizer_class: str = "TokenizersBackend"
    processor_class: Literal["JMiniGPT4Processor"] = "JMiniGPT4Processor"
    model_max_length: Annotated[float, Field(ge=1)] = 1e30
    padding_side: Literal["left", "right"] = "left"
    truncation_side: Literal["left", "right"] = "right"
    clean_up_tokenization_spaces: bool = False
    model_input_names: list[str] = []

    @field_validator("tokenizer_class")
    @classmethod
    def is_known(cls, name: str) -> str:
        if tokenizer_class_from_name(name) is None:
            raise ValueError(f"{name!r} is no tokenizer of transformers, and no code of a checkpoint is run")
        return name


class GenerationFile(File):
    transformers_version: str = ""
    bos_token_id: TokenId = 0
    eos_token_id: TokenId | list[TokenId] = 0
    pad_token_id: TokenId = 0
    decoder_start_token_id: TokenId = 0
    suppress_tokens: list[TokenId] = []
    begin_suppress_tokens: list[TokenId] = []
    bad_words_ids: list[list[TokenId]] = []
    stop_strings: str | list[str] = []
    do_sample: bool = False
    temperature: Annotated[float, Field(ge=0, le=1e6)] = 1.0
    top_k: Count = 50
    top_p: Share = 1.0
    min_p: Share = 0.0
    typical_p: Share = 1.0
    epsilon_cutoff: Share = 0.0
    eta_cutoff: Share = 0.0
    repetition_penalty: Positive = 1.0
    encoder_repetition_penalty: Positive = 1.0
    no_repeat_ngram_size: Count = 0
    length_penalty: Annotated[float, Field(ge=-1e6, le=1e6)] = 1.0
    early_stopping: bool | Literal["never"] = False
    num_beams: Annotated[int, Field(ge=1, le=64)] = 1
    num_return_sequences: Literal[1] = 1
    max_new_tokens: Annotated[int, Field(ge=1, le=LARGEST_COUNT)] = 1
    min_new_tokens: Count = 0
    max_length: Annotated[int, Field(ge=1, le=LARGEST_NUMBER)] = 1
    min_length: Count = 0
    max_time: Positive = 1.0
    renormalize_logits: bool = False
    remove_invalid_values: bool = False
    use_cache: bool = True
    output_attentions: Off = False
    output_hidden_states: Off = False
    output_logits: Off = False
    output_scores: Off = False
    return_dict_in_generate: Off = False


FILES: dict[str, type[File]] = {
    "preprocessor_config.json": ImageProcessorFile,
    "processor_config.json": ProcessorFile,
    "tokenizer_config.json": TokenizerFile,
    "generation_config.json": GenerationFile,
}


def check_files(folder: Path):
    """Refuses a checkpoint whose files, beside its config.json, state anything but what they may.

    Raises:
        ValueError: A field is of another type or out of range, or names code of the checkpoint's own; the sentence
            names file and field.
    """
    for name, schema in FILES.items():
        path = folder / name
        if not path.exists():
            continue
        stated = read_json_object(path)
        _check(schema, stated, str(path))
        if schema is ProcessorFile:
            _check(ImageProcessorFile, stated.get("image_processor") or {}, f"{path}, image_processor")
        if schema is TokenizerFile:
            _check_file_names(stated, path)


def _check(schema: type[File], stated: dict[str, Any], where: str):
    fields = {name: value for name, value in stated.items() if value is not None and name != "_from_model_config"}
    try:
        schema.model_validate(fields)
    except ValidationError as error:
        raise explain(error, where) from None


def _check_file_names(stated: dict[str, Any], path: Path):
    """A tokenizer is read from its own folder: transformers would take a path from here before it looks there."""
    for name, value in stated.items():
        if name.endswith("_file") and name != "special_tokens_map_file" and value is not None:
            raise ValueError(f"{path}: `{name}` names a file, {value!r}; a tokenizer is read from its own folder.")


def check_config(stated: dict[str, Any], path: Path):
    """Refuses a config.json of another kind of model, or whose numbers are out of all proportion.

    Raises:
        ValueError: The sentence names the field.
    """
    kind = stated.get("model_type")
    if kind != "jminigpt4":
        raise ValueError(f"{path.parent} is a {kind} checkpoint, not one of Japanese MiniGPT-4; its code is not run.")
    if (quantized := stated.get("quantization_config")) is not None:
        raise ValueError(
            f"{path}: `quantization_config` {str(quantized)[:60]} is not supported: give the full weights, and "
            "quantise them while they are loaded, with --quantize."
        )
    _check_numbers(stated, path, "")


def _check_numbers(value: Any, path: Path, field: str):
    if isinstance(value, dict):
        for key, each in value.items():
            _check_numbers(each, path, f"{field}.{key}" if field else key)
    elif isinstance(value, list):
        for each in value:
            _check_numbers(each, path, field)
    elif isinstance(value, int):
        largest = LARGEST_NUMBER if MAY_BE_LARGER.fullmatch(field.rpartition(".")[2]) else LARGEST_COUNT
        if abs(value) > largest:
            raise ValueError(f"{path}: `{field}` is {str(value)[:30]}; no such model has more than {largest:,}.")
