"""Any causal language model of transformers as a part of the model."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto import CONFIG_MAPPING

from ..configuration_jminigpt4 import JMiniGPT4Config, check_language_model
from ..inference.stored_weights import Place, StoredNames
from ..language_jminigpt4 import Family, check_models, model_without_head
from .language_code import register_language_code
from .parts import Part, Read
from .sources import JMINIGPT4, LANGUAGE, Source

LANGUAGE_PREFIX = "model.language_model."


def language_config(source: Source, trusted_code: str | None = None) -> tuple[PreTrainedConfig, dict[str, str]]:
    """Configuration of the language model, and the classes of its own code if it needs any (see
    [`jminigpt4.convert.language_code`]).

    Raises:
        ValueError: The source is no causal language model or more than one, or needs code that the user did not allow.
    """
    source.parts.add("language")
    if source.layout is JMINIGPT4:
        own: Any = JMiniGPT4Config.from_dict(source.config)
        return own.text_config, {}
    if source.layout is not LANGUAGE:
        raise ValueError(
            f"{source.name} ({source.layout.name}) is no language model: give a folder or a Hub repository that "
            "AutoModelForCausalLM loads."
        )
    unknown = source.config["model_type"] not in CONFIG_MAPPING
    code = register_language_code(source, trusted_code) if unknown else {}
    config = AutoConfig.from_pretrained(source.need_folder(), trust_remote_code=False)
    check_language_model(config)
    check_models(config)
    config.name_or_path = source.public_name  # what is published says nothing of this machine's folders
    if hasattr(config, "auto_map"):
        del config.auto_map  # code that is not run needs no mention, and the rest is registered
    return config, code


def language_part(source: Source, config: PreTrainedConfig, vocab_size: int) -> Part:
    """The language model, headless as the whole model holds it, and its head.

    Its tensors stay as they lie in the source, one by one, where transformers finds them so behind the whole model as
    well, and merges experts itself while it loads. What it would not find there is converted here by its own mapping,
    in the memory of the tensors that are merged or split together.

    Args:
        config: From [`language_config`]; its `vocab_size` becomes the one given.
        vocab_size: Rows the embedding table is to have. New rows are the mean of the old ones; ids never move.

    Raises:
        ValueError: The language model is of a family that cannot stand here, or a tensor belongs to nothing in it.
    """
    rows, config.vocab_size = config.vocab_size, vocab_size
    if vocab_size > rows:
        config = type(config).from_dict(
            config.to_dict()
        )  # whatever else follows from the size (Moshi's depth decoder)
    with torch.device("meta"):
        headless = model_without_head(config)
    family = Family(config, headless)
    # Moshi's table is longer than its vocabulary; Inkling 2's head is shorter than its table.
    tables = {f"{LANGUAGE_PREFIX}{_embedding_name(headless)}": headless.get_input_embeddings().weight.shape[0]}
    if family.out_features == vocab_size:
        tables |= dict.fromkeys(("lm_head.weight", "lm_head.bias"), vocab_size)
    found = _whole_model(source) if source.layout is JMINIGPT4 else _Tensors(source, config, headless, family).placed()
    tensors = {
        name: _grown(read, vocab_size - rows, tables[name]) if name in tables and vocab_size > rows else read
        for name, read in found.items()
    }
    if getattr(config, "tie_word_embeddings", False) and "lm_head.weight" in tensors:
        _check_tied(source, tensors[f"{LANGUAGE_PREFIX}{_embedding_name(headless)}"], tensors.pop("lm_head.weight"))
    notes = []
    if vocab_size > rows:
        notes.append(
            f"The embedding table of {source.public_name} is full ({rows} rows): {vocab_size - rows} row is appended "
            "for the image token."
        )
    return Part(config, tensors, notes)


def _embedding_name(headless: PreTrainedModel) -> str:
    embeddings = headless.get_input_embeddings()
    return next(f"{name}.weight" for name, module in headless.named_modules() if module is embeddings)


def _whole_model(source: Source) -> dict[str, Read]:
    return {key: source.weights.take(key) for key in source.weights.matching(source.layout.parts["language"])}


class _Tensors:
    """Tensors of a causal language model, and the names they are to have in the whole model."""

    def __init__(self, source: Source, config: PreTrainedConfig, headless: PreTrainedModel, family: Family):
        with torch.device("meta"):
            causal = AutoModelForCausalLM.from_config(config)
        self.source, self.family = source, family
        self.own, self.behind = StoredNames(causal), StoredNames(headless, is_part=True)

    def placed(self) -> dict[str, Read]:
        """What reads each tensor, by its name in the whole model. Tensors that belong to nothing are not taken."""
        tensors: dict[str, Read] = {}
        for place, keys in self.own.groups(sorted(self.source.weights.names())).items():
            if not self.own.state.keys() >= set(place.names):
                continue
            if place.pattern is None:  # two for one place cannot both be right: the second is not taken
                tensors[self._target(place.names[0])] = self.source.weights.take(keys[0])
                continue
            reads = {key: self.source.weights.take(key) for key in keys}
            if self._found_unchanged(place, keys):
                tensors |= {f"{LANGUAGE_PREFIX}{self._bare(key)}": reads[key] for key in keys}
            else:
                tensors |= {self._target(name): self._converted(name, reads) for name in place.names}
        return tensors

    def _bare(self, name: str) -> str:
        return name.removeprefix(f"{self.family.base_name}.")

    def _target(self, name: str) -> str:
        head = f"{self.family.head_name}."
        return (
            f"lm_head.{name.removeprefix(head)}" if name.startswith(head) else f"{LANGUAGE_PREFIX}{self._bare(name)}"
        )

    def _found_unchanged(self, place: Place, keys: list[str]) -> bool:
        """Whether transformers makes the same of these tensors when they lie behind the whole model."""
        names, found = tuple(map(self._bare, place.names)), [self.behind.place(self._bare(key)) for key in keys]
        return all(each.names == names and each.pattern is not None for each in found)

    def _converted(self, name: str, reads: dict[str, Read]) -> Read:
        return lambda: self.own.convert({key: read() for key, read in reads.items()})[name]


def _grown(read: Read, count: int, total: int) -> Read:
    def grow() -> torch.Tensor:
        table = read()
        if table.shape[0] != total - count:  # not what the configuration says, which is said when it is written
            return table
        mean = table.float().mean(0, keepdim=True).to(table.dtype)
        return torch.cat([table, mean.expand(count, *table.shape[1:])])

    return grow


def _check_tied(source: Source, embeddings: Read, head: Read):
    if not torch.equal(embeddings(), head()):
        raise ValueError(
            f"{source.name} says that its head shares the embeddings (tie_word_embeddings), but it holds two "
            "different tables. Correct its config.json."
        )
