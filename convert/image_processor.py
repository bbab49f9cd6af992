"""How pictures are prepared for an image encoder: at what size, with what mean and standard deviation."""

import json
from typing import Any

from PIL import Image
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from ..configuration_jminigpt4 import JMiniGPT4Config
from ..image_processing_jminigpt4 import JMiniGPT4ImageProcessor
from .sources import JMINIGPT4, STOCK_VISION, Source


def image_processor_for(config: JMiniGPT4Config, vision: Source) -> JMiniGPT4ImageProcessor:
    """What the image encoder was trained with: CLIP's mean and standard deviation at its size for BLIP-2's, else what
    the checkpoint, transformers' `preprocessor_config.json` or timm says.

    Raises:
        ValueError: A vision model of transformers comes without that file, or it prepares pictures in another way.
    """
    if config.vision_config.model_type == "blip_2_vision_model":
        size = config.vision_config.image_size
        return JMiniGPT4ImageProcessor(size={"height": size, "width": size})
    if vision.layout is JMINIGPT4:
        stated = vision.need_folder() / "processor_config.json"
        return JMiniGPT4ImageProcessor.from_dict(json.loads(stated.read_text(encoding="utf-8"))["image_processor"])
    return _from_transformers(vision) if vision.layout is STOCK_VISION else _from_timm(config, vision)


def _from_transformers(vision: Source) -> JMiniGPT4ImageProcessor:
    stated = _preprocessor_config(vision)
    size = (stated.get("crop_size") if stated.get("do_center_crop") else None) or stated.get("size")
    if isinstance(size, dict):
        size = (size["height"], size["width"]) if "height" in size else size.get("shortest_edge")
    if size is None or abs(stated.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-6:
        raise ValueError(
            f"preprocessor_config.json of {vision.name} states no size of pictures, or another scale than 1/255: "
            "pictures cannot be prepared as this image encoder was trained."
        )
    height, width = (size, size) if isinstance(size, int) else size
    normed = stated.get("do_normalize", True)
    return JMiniGPT4ImageProcessor(
        size={"height": height, "width": width},
        image_mean=list(stated.get("image_mean", OPENAI_CLIP_MEAN)) if normed else [0.0, 0.0, 0.0],
        image_std=list(stated.get("image_std", OPENAI_CLIP_STD)) if normed else [1.0, 1.0, 1.0],
        resample=stated.get("resample", Image.Resampling.BICUBIC),
    )


def _preprocessor_config(vision: Source) -> dict[str, Any]:
    path = vision.need_folder() / "preprocessor_config.json"
    if not path.is_file():
        raise ValueError(
            f"{vision.name} has no preprocessor_config.json, which says at what size and with what mean and standard "
            "deviation its image encoder was trained: save its image processor beside the model."
        )
    return json.loads(path.read_text(encoding="utf-8"))


def picture_notes(vision: Source) -> list[str]:
    """A sentence where a vision model of transformers was trained on the middle of pictures alone."""
    if not _preprocessor_config(vision).get("do_center_crop"):
        return []
    return [
        f"{vision.public_name} was trained on the middle of pictures, cut out as a square; here the whole picture is "
        "squeezed to that size, as BLIP-2 does it."
    ]


def _from_timm(config: JMiniGPT4Config, vision: Source) -> JMiniGPT4ImageProcessor:
    import timm

    stated = timm.get_pretrained_cfg(config.vision_config.architecture)
    trained = (stated.to_dict() if stated else {}) | (vision.config.get("pretrained_cfg") or {})
    size = (config.vision_config.model_args or {}).get("img_size") or trained.get("input_size", (3, 224, 224))[-2:]
    height, width = (size, size) if isinstance(size, int) else size
    resample = {"bilinear": Image.Resampling.BILINEAR, "nearest": Image.Resampling.NEAREST}
    return JMiniGPT4ImageProcessor(
        size={"height": height, "width": width},
        image_mean=list(trained.get("mean", (0.5, 0.5, 0.5))),
        image_std=list(trained.get("std", (0.5, 0.5, 0.5))),
        resample=resample.get(trained.get("interpolation", "bicubic"), Image.Resampling.BICUBIC),
    )
