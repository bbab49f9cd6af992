"""What a file with a trained projection holds besides it. Originals leave out of a training checkpoint what was frozen
(LAVIS, runner_base.py `_save_checkpoint`): what is there was trained, or is a copy of what was given, or is refused.
"""

import re

import torch

from .sources import EVA, LAVIS, LAVIS_IGNORABLE, LEGACY_BUFFERS, Source

ADAPTER = re.compile(r".*(lora_|\.modules_to_save\.|\.base_layer\.|adapter)")
LANGUAGE_MODEL = re.compile(r"(t5_model|opt_model|llm_model|llama_model|gpt_neox_model)\.")
# Of the Q-Former's own names; its text branch is of no use in any file.
USELESS = [*LEGACY_BUFFERS, *(pattern for pattern in LAVIS_IGNORABLE if not pattern.endswith(r"_model)\."))]


def check_beside_projection(sources: dict[str, Source]):
    """Stops a conversion that would leave trained tensors behind.

    Raises:
        ValueError: The projection's file holds adapters (LoRA), weights of a language model, or parts of an image
            encoder or Q-Former that are not those of the sources given for them.
    """
    source = sources.get("projection")
    if source is None or source.layout is not LAVIS:
        return
    left = [key for key in source.weights.names() if key not in source.weights.taken]
    left = [key for key in left if not any(re.match(pattern, key) for pattern in USELESS)]
    if adapters := [key for key in left if ADAPTER.match(key)]:
        raise ValueError(
            f"{source.name} holds {len(adapters)} tensors of an adapter beside its projection, {adapters[0]} first: "
            "without them the projection is not what was trained. The file does not say how they are scaled: merge "
            "them into the language model (`merge_and_unload` of peft), give that as the language model, and the file "
            "without them as the projection."
        )
    for part, option in (("qformer", "--qformer"), ("vision", "--vision")):
        keys = [key for key in left if re.match(LAVIS.parts[part], key)]
        if keys and not all(_is_copy(source, key, sources[part]) for key in keys):
            raise ValueError(
                f"{source.name} holds {len(keys)} tensors of the {part} beside its projection, {keys[0]} first, other "
                f"than those of {sources[part].name}: trained together with it. Give the file as {option} too, or "
                "take a projection without them."
            )
    keys = [key for key in left if LANGUAGE_MODEL.match(key)]
    other = [key for key in keys if not _is_copy(source, key, sources["language"])]
    if other:
        raise ValueError(
            f"{source.name} holds {len(other)} weights of a language model beside its projection, {other[0]} first, "
            f"other than those of {sources['language'].name}: give the language model that was trained with it."
        )


def _is_copy(source: Source, key: str, given: Source) -> bool:
    """Whether a tensor of the projection's file is the same in the source that was given for its part."""
    name = LANGUAGE_MODEL.sub("", key, count=1)
    if given.layout is EVA:
        name = name.removeprefix("visual_encoder.")
    # GPT-NeoX's head has another name since transformers 5.14.
    names = {name, re.sub(r"^embed_out\.", "lm_head.", name)}
    found = next((each for each in names if each in given.weights), None)
    if found is None:
        return False
    ours, theirs = source.weights.read(key), given.weights.read(found)
    # One of the two may have been saved in half precision.
    narrow = min(ours.dtype, theirs.dtype, key=lambda dtype: dtype.itemsize)
    return ours.shape == theirs.shape and torch.equal(ours.to(narrow), theirs.to(narrow))
