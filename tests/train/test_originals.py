"""The original code's training numbers, reproduced by the packed loss and this room's optimiser and schedule."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, Blip2QFormerConfig, Blip2VisionConfig

from jminigpt4 import JMiniGPT4Config, JMiniGPT4ForConditionalGeneration
from jminigpt4.data.pictures import FilePicture
from jminigpt4.data.rows import caption_row
from jminigpt4.train.augmentation import random_resized_crop
from jminigpt4.train.loss import PackLoss
from jminigpt4.train.packing import EncodedGroup, EncodedRow, Packer
from jminigpt4.train.recipe import Recipe
from jminigpt4.train.schedule import RateSchedule
from jminigpt4.train.steps import RowEncoder
from jminigpt4.train.trainer import make_optimizer

IMAGE, BOS, PAD = 512, 2, 0


@pytest.fixture
def originals_model(reference, expected) -> JMiniGPT4ForConditionalGeneration:
    """The fixtures' language model with a row for the image token, and the projection of their checkpoint."""
    values = json.loads((reference / "llm" / "config.json").read_text())
    text_config = AutoConfig.for_model(**{**values, "vocab_size": 513, "torch_dtype": "float32"})
    config = JMiniGPT4Config(
        vision_config=Blip2VisionConfig(
            hidden_size=64, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64, image_size=56
        ),
        qformer_config=Blip2QFormerConfig(
            hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=80
        ),
        text_config=text_config,
        num_query_tokens=8,
        image_token_id=IMAGE,
    )
    model = JMiniGPT4ForConditionalGeneration(config)
    stored = load_file(reference / "llm" / "model.safetensors")
    layers = {
        name.removeprefix("gpt_neox."): tensor for name, tensor in stored.items() if name.startswith("gpt_neox.")
    }
    ours = model.model.language_model.state_dict()
    with torch.no_grad():
        for name, tensor in layers.items():
            if name in ours:
                ours.pop(name)[: len(tensor)] = tensor
        model.lm_head.weight[:512] = stored["embed_out.weight"]
        projection = torch.load(reference / "checkpoints" / "checkpoint.pth", weights_only=True)["model"]
        model.model.language_projection.weight.copy_(projection["llama_proj.weight"])
        model.model.language_projection.bias.copy_(projection["llama_proj.bias"])
    assert not [name for name in ours if "inv_freq" not in name]
    model.freeze()
    return model


def article_rows(data: dict) -> list[EncodedRow]:
    """The article's rows from the token ids of the fixtures."""
    rows = []
    for ids, mask in zip(data["target_ids"], data["target_mask"], strict=True):
        target = [token for token, kept in zip(ids, mask, strict=True) if kept]
        prompt = [BOS, *data["prompt_start_ids"], *[IMAGE] * 8, *data["prompt_after_ids"]]
        rows.append(EncodedRow(prompt + target, [-100] * len(prompt) + target))
    return rows


def as_groups(rows: list[EncodedRow]) -> list[EncodedGroup]:
    return [EncodedGroup((row,), (picture,)) for picture, row in enumerate(rows)]


@pytest.mark.parametrize("case", ["max8", "max32"])
def test_loss_and_gradient(originals_model, expected, case):
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


def test_eight_adamw_steps(originals_model, expected):
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
def test_segments_give_the_articles_tokens(make_article_processor, expected, case):
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
