"""The original code's training numbers, reproduced by the packed loss and this room's optimiser and schedule."""

import pytest
import torch

from jminigpt4 import JMiniGPT4ForConditionalGeneration
from jminigpt4.data.pictures import FilePicture
from jminigpt4.data.rows import caption_row
from jminigpt4.train.augmentation import random_resized_crop
from jminigpt4.train.loss import PackLoss
from jminigpt4.train.packing import EncodedGroup, EncodedRow, Packer
from jminigpt4.train.recipe import Recipe
from jminigpt4.train.schedule import RateSchedule
from jminigpt4.train.steps import RowEncoder
from jminigpt4.train.trainer import make_optimizer

IMAGE = 512


@pytest.fixture
def originals_model(make_originals_model) -> JMiniGPT4ForConditionalGeneration:
    return make_originals_model()


def as_groups(rows: list[EncodedRow]) -> list[EncodedGroup]:
    return [EncodedGroup((row,), (picture,)) for picture, row in enumerate(rows)]


@pytest.mark.parametrize("case", ["max8", "max32"])
def test_loss_and_gradient(originals_model, expected, article_rows, case):
    rows = article_rows(expected["meta"][f"train_{case}"])
    prefix = tuple(rows[0].input_ids[:7])
    (pack,) = Packer(IMAGE, 8, prefix=prefix).pack(as_groups(rows))
    assert pack.prefix == prefix
    loss = PackLoss(originals_model)(pack, expected["forward"]["qformer.out"]).mean()
    loss.backward()
    numbers, layer = expected["train"], originals_model.model.language_projection
    assert loss.item() == pytest.approx(numbers[f"{case}.loss"].item(), rel=1e-6)
    for ours, name in ((layer.weight.grad, "weight"), (layer.bias.grad, "bias")):
        theirs = numbers[f"{case}.grad.llama_proj.{name}"]
        assert (ours - theirs).norm() / theirs.norm() < 1e-5


def test_eight_adamw_steps(originals_model, expected, article_rows):
    run = expected["meta"]["train_8steps"]
    recipe = Recipe(
        learning_rate=run["init_lr"],
        min_learning_rate=run["min_lr"],
        warmup_learning_rate=run["warmup_lr"],
        warmup_steps=run["warmup_steps"],
        epochs=run["max_epoch"],
        steps_per_epoch=run["iters_per_epoch"],
        schedule="originals",
    )
    (pack,) = Packer(IMAGE, 8).pack(as_groups(article_rows(expected["meta"]["train_max32"])))
    loss_of = PackLoss(originals_model)
    optimizer = make_optimizer(loss_of, recipe)
    schedule = RateSchedule(optimizer, recipe.rates(recipe.steps_per_epoch))
    losses, rates = [], []
    for _ in range(8):
        loss = loss_of(pack, expected["forward"]["qformer.out"]).mean()
        loss.backward()
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert rates == run["lrs"]
    assert losses == pytest.approx(run["losses"], rel=1e-5)
    assert [group["weight_decay"] for group in optimizer.param_groups] == run["weight_decay"]
    layer = originals_model.model.language_projection
    for ours, name in ((layer.weight, "weight"), (layer.bias, "bias")):
        theirs = expected["train"][f"steps8.llama_proj.{name}"]
        assert (ours - theirs).norm() / theirs.norm() < 1e-5


@pytest.mark.parametrize("case", ["max8", "max32"])
def test_segments_give_the_articles_tokens(make_article_processor, expected, article_rows, case):
    data = expected["meta"][f"train_{case}"]
    encoder = RowEncoder(make_article_processor(), data["max_txt_len"])
    for target, expected_row in zip(data["targets"], article_rows(data), strict=True):
        row = caption_row(target.rstrip(), FilePicture("a.png"), "coco:1", "stair")
        assert encoder.encode(row) == expected_row


@pytest.mark.parametrize("seed", [0, 1])
def test_the_originals_random_crop(expected, reference, seed):
    from PIL import Image

    from jminigpt4 import JMiniGPT4ImageProcessor

    image = Image.open(reference / "images" / "a_97x131_rgb.png").convert("RGB")
    cropped = random_resized_crop(image, (56, 56), seed)
    pixels = JMiniGPT4ImageProcessor(size={"height": 56, "width": 56})(cropped, return_tensors="pt")["pixel_values"][0]
    assert torch.equal(pixels, expected["forward"][f"train_aug.seed{seed}.a"])
