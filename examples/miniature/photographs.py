"""What the model says about photographs, which no stage after the image encoder has seen.

`python photographs.py WORK` asks the projections of all seeds about the photographs of listed things that come with
scikit-image (CC0 or in the public domain) -> WORK/photographs.json. Seven are no measure; they are shown as they are.
"""

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from align import SEEDS
from examine import CANDIDATES
from PIL import Image
from questions import NAME, Asked, name_answer
from skimage import data

# The name of the picture in `skimage.data` -> what it shows.
SHOWN = {
    "chelsea": "猫", "coffee": "コーヒー", "rocket": "ロケット", "horse": "馬", "clock": "時計", "coins": "コイン",
    "moon": "満月",
}  # fmt: skip


def photograph(name: str) -> Image.Image:
    """One of scikit-image's pictures in RGB; that of the horse is a silhouette of two values."""
    pixels = np.asarray(getattr(data, name)())
    return Image.fromarray(pixels if pixels.dtype == np.uint8 else pixels.astype(np.uint8) * 255).convert("RGB")


@torch.no_grad()
def ask(work: Annotated[Path, typer.Argument(help="folder for everything the recipe makes")]) -> None:
    """Ask all seeds for the name of what each photograph shows."""
    said: dict[str, dict] = {name: {"shown": shown, "said": []} for name, shown in SHOWN.items()}
    asked = [Asked(number, (NAME,), (name_answer(shown),)) for number, shown in enumerate(SHOWN.values())]
    for seed in SEEDS:
        speaker = CANDIDATES[f"trained projection, seed {seed}"].speaker(work)
        pixels = speaker.processor.image_processor([photograph(name) for name in SHOWN], return_tensors="pt")
        features = speaker.model.get_query_features(pixels["pixel_values"])
        answers = speaker.hold(asked, dict(enumerate(features))).answers
        for name, answer in zip(SHOWN, answers, strict=True):
            said[name]["said"].append(answer[-1])
    (work / "photographs.json").write_text(json.dumps(said, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(ask)
