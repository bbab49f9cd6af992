"""The originals' one augmentation: a random crop, resized (MiniGPT-4, `Blip2ImageTrainProcessor`)."""

from typing import Any

import torch
from PIL import Image

SCALE = (0.5, 1.0)
RATIO = (3 / 4, 4 / 3)


def random_resized_crop(image: Image.Image, size: tuple[int, int], seed: int | None = None) -> Image.Image:
    """A crop of 0.5 to 1.0 of the area and 3/4 to 4/3 of the aspect ratio, resized with PIL's bicubic filter; the
    same pixels as torchvision's `RandomResizedCrop(size, scale=(0.5, 1.0), interpolation=BICUBIC)`, no flip.

    Args:
        image: A PIL image of mode RGB.
        size: Height and width of the result.
        seed: What the crop is drawn from; `None` draws from torch's global generator, as the originals did.
    """
    from torchvision.transforms import RandomResizedCrop
    from torchvision.transforms.functional import crop

    picture: Any = image  # torchvision takes PIL images, though its annotations name tensors alone
    if seed is None:
        top, left, height, width = RandomResizedCrop.get_params(picture, list(SCALE), list(RATIO))
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            top, left, height, width = RandomResizedCrop.get_params(picture, list(SCALE), list(RATIO))
    return crop(picture, top, left, height, width).resize((size[1], size[0]), Image.Resampling.BICUBIC)
