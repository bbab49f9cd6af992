"""Image encoders of transformers' own families: which configurations mean one, and how their tensors are called.

Some families keep other names on disk than in memory (ViT, DINOv2); transformers renames them while it loads, also
inside a checkpoint of this package. So a checkpoint has the names that the source has on disk.
"""

from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.models.auto import CONFIG_MAPPING, MODEL_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)


def stock_vision_config(stated: dict[str, Any]) -> PreTrainedConfig | None:
    """Configuration of the image encoder that a `config.json` describes: the model itself (ViT, DINOv2 …) or the
    vision tower of a dual model (CLIP, SigLIP); `None` where it describes neither."""
    model_type = stated.get("model_type", "")
    generates = (
        model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    )
    if model_type not in CONFIG_MAPPING or generates:
        return None
    config = CONFIG_MAPPING[model_type].from_dict(stated)
    if isinstance(tower := getattr(config, "vision_config", None), PreTrainedConfig):
        config = tower
    if type(config) not in MODEL_MAPPING or config.model_type == "blip_2_vision_model":
        return None
    # Text models have `input_ids` here, also those of a dual model.
    return config if stock_class(config).main_input_name == "pixel_values" else None


def stock_class(config: PreTrainedConfig) -> Any:
    """transformers' own model, without any head, of a configuration that it knows."""
    found: Any = MODEL_MAPPING[type(config)]
    return found[0] if isinstance(found, tuple) else found


class StoredNames:
    """Names that transformers finds on disk, as names of a model in memory."""

    def __init__(self, model: PreTrainedModel):
        transforms = get_model_conversion_mapping(model)
        self.names = set(model.state_dict())
        self.renamings = [each for each in transforms if isinstance(each, WeightRenaming)]
        self.converters = [each for each in transforms if isinstance(each, WeightConverter)]

    def in_memory(self, name: str) -> str:
        """Name in memory of a tensor on disk; one that the model does not have stays one that it does not have."""
        return self.place(name)[0]

    def place(self, name: str) -> tuple[str, bool]:
        """The same, and whether it is changed or merged with others while it is loaded, as experts are."""
        if name in self.names:
            return name, False
        target, merged = rename_source_key(name, self.renamings, self.converters)
        return target, merged is not None
