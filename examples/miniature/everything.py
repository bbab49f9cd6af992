"""Control row of the table: everything behind the frozen tower fine-tuned, not the projection alone.

`python everything.py WORK` goes on from the trained projection of seed 0 with Q-Former, projection and language model
all learning -> WORK/everything. What it gains over the one Linear is what the article's economy costs.
"""

import random
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from align import load, query_features, training_rows, with_projection
from pretrain_language import PAD, Sequence, collate, learning_rate
from tqdm import trange

from jminigpt4.checkpoint import finished_folder

STEPS, BATCH, LEARNING_RATE = 120, 64, 5e-4


def sequence(processor: Any, row: Any) -> Sequence:
    """A conversation as token ids and labels, as the package's own training makes them."""
    encoded = processor.encode_segments(row.messages())
    return Sequence(encoded["input_ids"], encoded["labels"])


def loss_of(model: Any, processor: Any, rows: list[Any], maps: torch.Tensor) -> torch.Tensor:
    """Mean loss of rows about the pictures with feature maps `(n, tokens, channels)`."""
    batch = collate([sequence(processor, row) for row in rows])
    return model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"],
        query_features=query_features(model, maps), use_cache=False,
    ).loss  # fmt: skip


def fine_tune(
    work: Annotated[Path, typer.Argument(help="folder for everything the recipe makes")],
    steps: Annotated[int, typer.Option(help="optimizer steps")] = STEPS,
) -> None:
    """Fine-tune all that follows the tower, with AdamW, on the rows that the projection was trained on."""
    target = work / "everything"
    if target.exists():
        print(f"{target} is there already")
        return
    model, processor = load(work / "assembled")
    with_projection(model, work / "run-0").train()
    model.model.vision_model.requires_grad_(False).eval()
    assert processor.tokenizer.pad_token_id == PAD
    rows, maps = training_rows(work), np.load(work / "eyes" / "maps.npy", mmap_mode="r")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], weight_decay=0.05)
    torch.manual_seed(0)
    chance = random.Random(0)
    for step in (progress := trange(steps, desc="everything", mininterval=10)):
        chosen = chance.sample(rows, BATCH)
        shown = torch.from_numpy(maps[[int(Path(row.pictures[0].path).stem) for row in chosen]]).float()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, LEARNING_RATE, warmup=30)
        with torch.autocast("cpu", torch.bfloat16):  # as where these parts were trained
            loss = loss_of(model, processor, chosen, shown)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    with finished_folder(target) as folder:
        model.eval().save_pretrained(folder)
        processor.save_pretrained(folder)


if __name__ == "__main__":
    typer.run(fine_tune)
