"""What is exact in float32 on the CPU is the same, to rounding, on the device and in its precisions."""

import json
import math

import pytest
import torch

from jminigpt4.inference.loading import load_checkpoint
from jminigpt4.train.engine import train
from jminigpt4.train.loss import PackLoss
from jminigpt4.train.packing import EncodedGroup, Packer
from jminigpt4.train.recipe import Recipe

IMAGE = 512
# Half precision rounds every layer: measured on CPUs, the differences are below half of these.
TOLERANCES = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 8e-2}


def relative(value: torch.Tensor, expected: torch.Tensor) -> float:
    value, expected = value.detach().double().cpu(), expected.detach().double().cpu()
    return float((value - expected).norm() / expected.norm())


def gradient(model) -> torch.Tensor:
    layer = model.model.language_projection
    flat = torch.cat([layer.weight.grad.flatten(), layer.bias.grad])
    model.zero_grad(set_to_none=True)
    return flat


def cast(model, dtype: torch.dtype, device: str):
    """Frozen parts in `dtype`, the projection in float32."""
    model.to(device, dtype).model.language_projection.float()
    return model


@pytest.mark.parametrize("dtype", TOLERANCES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_loss_logits_and_gradient_of_the_originals(make_originals_model, article_rows, expected, device, dtype, note):
    """Of the reference fixtures: the numbers that the original code computed in float32 on a CPU."""
    model, numbers = cast(make_originals_model(), dtype, device), expected["train"]
    data = article_rows(expected["meta"]["train_max32"])
    features = expected["forward"]["qformer.out"].to(device)
    for number, row in enumerate(data):
        ids = torch.tensor([row.input_ids], device=device)
        logits = model(input_ids=ids, query_features=features[number : number + 1]).logits[0, :, :512]
        theirs = numbers["max32.logits"][number][: len(row.input_ids)]
        assert logits.shape == theirs.shape and relative(logits, theirs) < TOLERANCES[dtype]
    packer = Packer(IMAGE, 8, prefix=tuple(data[0].input_ids[:7]))
    (pack,) = packer.pack([EncodedGroup((row,), (picture,)) for picture, row in enumerate(data)])
    # Small gradients are none in float16: scaled, as training scales them.
    (1024 * PackLoss(model)(pack.to(device), features).mean()).backward()
    theirs = torch.cat([numbers[f"max32.grad.llama_proj.{name}"].flatten() for name in ("weight", "bias")])
    off = relative(gradient(model) / 1024, theirs)
    name = str(dtype).removeprefix("torch.")
    note(f"logits of the originals, {name}", relative(logits, numbers["max32.logits"][number][: len(row.input_ids)]))
    note(f"gradient of the originals, {name}", off)
    assert off < TOLERANCES[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("attention", ["sdpa", "eager", "flex_attention"])
def test_attention_in_packs(gpu, device, attention, dtype, note):
    """Loss and gradient of packs by every way to compute attention; flex attention, whose block mask transformers'
    own call compiles on GPUs, forward and backward there. At the language model's true width on a GPU: two layers."""
    sizes = {"cpu": (64, 2, 2), "cuda": (2816, 2, 22)}[device]
    config = gpu.small_config((32, 1, 2), (32, 1, 2), sizes, image_size=28)
    groups = gpu.make_rows("captions", 2, config, seed=0)
    features = torch.randn(2, 32, 32, generator=torch.Generator().manual_seed(0))

    def losses(place: str, kind: str, precision: torch.dtype) -> tuple[torch.Tensor, torch.Tensor | None]:
        model = gpu.make_model(config, precision, place).eval()
        model.set_attn_implementation({"text_config": kind})
        (pack,) = Packer(config.image_token_id, 32, 1024, tuple(groups[0].rows[0].input_ids[:7])).pack(groups)
        loss, given = PackLoss(model), features.to(place)
        if kind == "flex_attention" and place == "cpu":  # torch has no backward of it there, and compiling takes long
            with torch.no_grad(), torch.compiler.set_stance("force_eager"):
                return loss(pack.to(place), given), None
        result = loss(pack.to(place), given)
        result.mean().backward()
        return result, gradient(model)

    expected_losses, expected_gradient = losses("cpu", "sdpa", torch.float32)
    own_losses, own_gradient = losses(device, attention, dtype)
    assert relative(own_losses, expected_losses) < TOLERANCES[dtype]
    if own_gradient is not None:
        off = relative(own_gradient, expected_gradient)
        note(f"gradient of packs by {attention}, {str(dtype).removeprefix('torch.')}", off)
        assert off < TOLERANCES[dtype]


def test_flash_attention_answers_as_sdpa(make_model, device, note):
    """In rows, as packs need a mask of their own."""
    if device == "cpu":
        pytest.skip("flash attention is for GPUs")
    pytest.importorskip("flash_attn")
    config = {"hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 256}
    ids = torch.arange(100, 140)[None]
    model = make_model("llama", **config)
    expected = model(input_ids=ids).logits
    model = model.to(device, torch.bfloat16)
    model.set_attn_implementation({"text_config": "flash_attention_2"})
    off = relative(model(input_ids=ids.to(device)).logits, expected)
    note("logits by flash attention, bfloat16", off)
    assert off < TOLERANCES[torch.bfloat16]


def test_training_in_float16_scales_its_gradient(make_model, processor, captions, device, tmp_path, monkeypatch, note):
    monkeypatch.setattr("jminigpt4.train.engine.draw_learning_curve", lambda metrics, picture: None)
    make_model().save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    recipe = Recipe(
        learning_rate=1e-2, min_learning_rate=1e-3, warmup_steps=1, steps_per_epoch=2, epochs=3, pictures_per_step=4,
        log_steps=1, max_grad_norm=1.0,
    )  # fmt: skip
    if device == "cpu" and torch.cuda.is_available():
        pytest.skip("accelerate trains on the GPU where there is one")

    def losses(dtype: str) -> list[float]:
        output = tmp_path / dtype
        train(tmp_path / "model", captions, output, recipe.with_(dtype=dtype), progress=False)
        lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
        return [line["loss"] for line in lines if "loss" in line]

    half, whole = losses("float16"), losses("float32")
    scaler = tmp_path / "float16" / "checkpoint-6" / "scaler.pt"
    assert scaler.is_file() == (device == "cuda")
    if device == "cuda":
        assert torch.load(scaler, weights_only=True)["scale"] > 1
    assert len(half) == 6 and all(map(math.isfinite, half)) and half[-1] < half[0]
    off = max(abs(one - other) / other for one, other in zip(half, whole, strict=True))
    note("losses of six steps in float16 with scaling", off)
    assert off < 0.05


@pytest.mark.parametrize(("quantize", "tolerance"), [("8bit", 0.1), ("nf4", 0.5)])
def test_bitsandbytes_on_the_device(make_model, processor, device, tmp_path, quantize, tolerance, note):
    pytest.importorskip("bitsandbytes")
    make_model("llama", hidden_size=128, intermediate_size=256).save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    ids = torch.arange(100, 140)[None]
    exact, _ = load_checkpoint(tmp_path / "model", "cpu", "float32")
    small, _ = load_checkpoint(tmp_path / "model", device, "float32", quantize=quantize)
    with torch.no_grad():
        off = relative(small(input_ids=ids.to(device)).logits, exact(input_ids=ids).logits)
    note(f"logits, {quantize}", off)
    assert 0 < off < tolerance


def test_compiled_decoding_with_a_static_cache_says_the_same(gpu, make_model, device, monkeypatch):
    compiled_for = []
    compile_ = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda *given, **named: compiled_for.append(named) or compile_(*given, **named)
    )
    model = make_model(hidden_size=64, intermediate_size=128).to(device)
    ids = torch.arange(100, 120, device=device)[None]
    plain, compiled = (
        model.generate(input_ids=ids, max_new_tokens=12, do_sample=False, **options)
        for options in gpu.routes(device).values()
    )
    assert len(compiled_for) == 1 and plain.shape[1] >= 12 and torch.equal(plain, compiled)
