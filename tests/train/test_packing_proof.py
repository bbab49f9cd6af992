"""Whether its language model can be packed, a run finds out: packs that are exact, or plain rows and a line."""

import math

import pytest
import torch

from jminigpt4.checkpoint import read_projection
from jminigpt4.train import engine, packing_proof
from jminigpt4.train.engine import _prepare, dry_run, train
from jminigpt4.train.packing_proof import longest_groups
from jminigpt4.train.recipe import Recipe

RECIPE = Recipe(pictures_per_step=4, steps_per_epoch=2, epochs=1, pack_tokens=128, max_answer_tokens=None)
LFM2 = {"intermediate_size": 64, "num_key_value_heads": 2, "layer_types": ["conv", "full_attention"]}
ALIBI_FALCON = {"alibi": True, "new_decoder_architecture": False, "multi_query": True}
FALL_BACK = {
    "mpt": {},
    "bloom": {},
    "falcon": ALIBI_FALCON,
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    "lfm2": LFM2,
    "mamba2": {"num_heads": 4, "head_dim": 16, "n_groups": 1, "state_size": 8, "chunk_size": 8},
}
PACK = {
    "gpt_neox": {},
    "llama": {},
    "mistral": {"sliding_window": 8},
    "qwen2": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    "gemma2": {"sliding_window": 8},
}
FAMILIES = FALL_BACK | PACK


@pytest.fixture
def prepare(make_model, processor, captions):
    def make(family: str, **changes) -> engine.Run:
        model = make_model(family, **FAMILIES[family])
        return _prepare(model, captions, RECIPE, processor, progress=False, **changes)

    return make


def first_gradient(run) -> torch.Tensor:
    """Gradient of the projection over the first step as the run takes it, a mean over tokens."""
    step = run.steps[0]
    features = run.encoder.features(step.query_features, step.pixel_values)
    losses = torch.cat([run.loss(pack, features) for pack in step.packs])
    return flat_gradient(run.model, losses.mean())


def gradient_of_rows(run) -> torch.Tensor:
    """The same by the model's own loss, row by row."""
    total, count = 0.0, 0
    for source, number in run.steps.order.step(0, 0, 1):
        for row in run.sources[source].training[number].rows:
            encoded = run.rows.encode(row)
            ids, labels = torch.tensor([encoded.input_ids]), torch.tensor([encoded.labels])
            views = [run.encoder.pixel_values(each.read(), each.name, [None]) for each in row.pictures]
            features = run.encoder.encode(torch.cat(views))
            loss = run.model(
                ids, attention_mask=torch.ones_like(ids), query_features=features, labels=labels, use_cache=False
            ).loss
            learnt = int((labels != -100).sum())
            total, count = total + loss * learnt, count + learnt
    return flat_gradient(run.model, total / count)


def flat_gradient(model, loss) -> torch.Tensor:
    gradients = torch.autograd.grad(loss, list(model.model.language_projection.parameters()))
    return torch.cat([each.flatten() for each in gradients])


def difference(run) -> float:
    expected = gradient_of_rows(run)
    return float((first_gradient(run) - expected).norm() / expected.norm())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_step_is_that_of_plain_rows(prepare, capsys, family):
    run = prepare(family)
    capsys.readouterr()
    run._prove_packing()
    lines = capsys.readouterr().out.splitlines()
    assert difference(run) < 1e-4
    rows, packs = run.steps[0].rows, len(run.steps[0].packs)
    if family in PACK:
        assert not lines and packs < rows
    else:
        (line,) = lines
        assert line.startswith(f"Rows are trained one by one: packs are not exact with the language model {family}, ")
        assert packs == rows == 12


@pytest.mark.parametrize("family", FALL_BACK)
def test_without_the_comparison_it_would_be_another(prepare, family):
    """The control: what is compared above differs, or is not computed at all, where packs stay packs."""
    run = prepare(family)
    try:
        found = difference(run)
    except (AttributeError, IndexError, RuntimeError, ValueError):
        found = math.inf
    assert found > 1e-2


def test_a_window_shows_in_long_rows_only_and_those_are_compared(prepare, captions, monkeypatch):
    """One caption in 24 is longer than the window; without windows in the mask the run is one of plain rows."""
    monkeypatch.setitem(FAMILIES, "mistral", {"sliding_window": 24})
    monkeypatch.setattr("jminigpt4.train.loss._within", lambda pack, window: True)
    run = prepare("mistral")
    run._prove_packing()
    assert run.loss.packed
    lines = captions.read_text(encoding="utf-8").splitlines()
    lines[13] = lines[13].replace("猫がいます", "猫がいます" * 6)
    captions.write_text("\n".join(lines), encoding="utf-8")
    run = prepare("mistral")
    longest = longest_groups(run.sources, run.rows, 1)[0]
    assert max(len(row.input_ids) for row in longest.rows) > 24
    run._prove_packing()
    assert not run.loss.packed


def test_every_picture_is_encoded_once_and_the_order_stays(prepare):
    packed, plain = prepare("llama"), prepare("mpt")
    plain._prove_packing()
    for index in range(2):
        step, expected = plain.steps[index], packed.steps[index]
        assert len(step.pixel_values) == 4 and torch.equal(step.pixel_values, expected.pixel_values)
        assert sorted(torch.cat([pack.targets for pack in step.packs]).tolist()) == sorted(
            torch.cat([pack.targets for pack in expected.packs]).tolist()
        )


def test_one_process_that_differs_is_enough(prepare, monkeypatch, capsys):
    run = prepare("llama")
    monkeypatch.setattr(packing_proof, "from_all", lambda own: [*own, "it raises Trouble"])
    run._prove_packing()
    assert not run.loss.packed
    assert capsys.readouterr().out.endswith("language model llama, it raises Trouble.\n")


def test_training_resumes_in_plain_rows(make_model, processor, captions, tmp_path, monkeypatch, capsys):
    """Stopped after one step or not, the weights are the same to the bit, and both runs say the line."""
    monkeypatch.setattr(engine, "draw_learning_curve", lambda metrics, picture: None)

    def go(name: str, **options) -> torch.Tensor:
        result = train(
            make_model("mpt"), captions, tmp_path / name, RECIPE, processor=processor, progress=False, save_steps=1,
            validation=0.3, learning_rate=1e-2, **options,
        )  # fmt: skip
        weight, bias, _ = read_projection(result.output)
        return torch.cat([weight.flatten(), bias])

    whole = go("whole")
    go("parts", max_steps=1)
    assert torch.equal(go("parts"), whole)
    assert capsys.readouterr().out.count("Rows are trained one by one") == 3


def test_a_dry_run_says_it_too(make_model, processor, captions, capsys):
    found = dry_run(make_model("mpt"), captions, RECIPE, processor=processor, progress=False)
    assert found["packs"] == found["rows"] == 12
    assert "language model mpt" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "mpt", "lfm2"])
def test_half_precision_is_no_difference(prepare, dtype, family):
    run = prepare(family)
    run.model.to(dtype).model.language_projection.float()
    run._prove_packing()
    assert run.loss.packed == (family in PACK)
