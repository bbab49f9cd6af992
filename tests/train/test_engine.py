"""`train` end to end on tiny models: cache, resuming, stages, policies, checks."""

import json
import math
import shutil

import pytest
import torch

from jminigpt4.checkpoint import read_projection, save_projection
from jminigpt4.train import engine
from jminigpt4.train.engine import _prepare, train
from jminigpt4.train.metrics import read_metrics
from jminigpt4.train.recipe import Recipe
from jminigpt4.train.trainer import newest_checkpoint

RECIPE = Recipe(
    learning_rate=1e-2,
    min_learning_rate=1e-3,
    warmup_steps=2,
    steps_per_epoch=6,
    epochs=2,
    pictures_per_step=3,
    pack_tokens=64,
    log_steps=2,
)


def weights(folder) -> torch.Tensor:
    weight, bias, _ = read_projection(folder)
    return torch.cat([weight.flatten(), bias])


def all_steps(steps) -> list:
    return [steps[index] for index in range(len(steps))]


@pytest.fixture
def run(make_model, processor, captions, tmp_path, monkeypatch):
    """`run(name, **changes)`: a training of a fresh tiny model in folder `name`, without its drawing."""
    monkeypatch.setattr(engine, "draw_learning_curve", lambda metrics, picture: None)

    def go(name: str = "run", model=None, data=captions, recipe=RECIPE, **options):
        return train(
            model or make_model(), data, tmp_path / name, recipe, processor=processor, progress=False, **options
        )

    return go


def test_a_run_leaves_what_it_promises(run, tmp_path, monkeypatch):
    monkeypatch.undo()
    result = run(validation=0.3, sample_steps=6)
    names = {path.name for path in result.output.iterdir()}
    assert names == {
        "projection.safetensors",
        "metrics.jsonl",
        "learning_curve.png",
        "recipe.yaml",
        "samples.jsonl",
        "checkpoint-6",
        "checkpoint-12",
    }
    assert (tmp_path / "run" / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    lines = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 10, 12]
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert all(line["tokens_per_second"] > line["rows_per_second"] > 0 for line in lines)
    assert result.eval_loss > 0 and result.steps == 12
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert {sample["step"] for sample in samples} == {6, 12} and all(sample["answer"] for sample in samples)
    assert Recipe.load(tmp_path / "run" / "recipe.yaml").with_(data=[]) == RECIPE.with_(validation=0.3, sample_steps=6)


def test_only_the_projection_changes_and_the_optimizer_holds_nothing_else(run, make_model):
    model = make_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = run(model=model, max_steps=2)
    after = result.model.state_dict()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed == ["model.language_projection.weight", "model.language_projection.bias"]
    state = torch.load(result.output / "checkpoint-2" / "optimizer.pt", weights_only=True)
    assert sum(tensor.numel() for each in state["state"].values() for tensor in each.values()) == 2 * (33 * 32) + 2


def test_cached_training_is_streamed_training(run, tmp_path):
    streamed = weights(run("streamed", max_steps=4).output)
    cached = weights(run("cached", cache=tmp_path / "features", max_steps=4, cache_dtype="float32").output)
    half = weights(run("half", cache=tmp_path / "half", max_steps=4).output)
    assert torch.allclose(cached, streamed, atol=1e-4)
    assert 0 < (half - streamed).norm() < 0.01 * streamed.norm()


@pytest.mark.parametrize("changes", [{"pack_tokens": 4096}, {"share_prefix": False}, {"rows_per_picture": None}])
def test_memory_settings_do_not_change_what_is_learnt(run, changes):
    plain, changed = run("plain", max_steps=3), run("changed", max_steps=3, **changes)
    assert torch.allclose(weights(plain.output), weights(changed.output), atol=1e-4)


@pytest.mark.parametrize("loss", ["token_mean", "answer_mean"])
def test_logged_loss_is_the_loss_over_the_whole_step(run, loss):
    parts = run("parts", pack_tokens=16, loss=loss, log_steps=1, max_steps=1)
    whole = run("whole", pack_tokens=4096, loss=loss, log_steps=1, max_steps=1)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-6)


def test_the_two_losses_differ_on_answers_of_unequal_length(run):
    losses = {loss: run(loss, loss=loss, log_steps=1, max_steps=1).loss for loss in ("token_mean", "answer_mean")}
    assert losses["token_mean"] != pytest.approx(losses["answer_mean"], rel=1e-3)


def test_the_same_run_again_is_bit_equal_whoever_prepares_its_steps(run):
    options = {"augmentation": True, "max_steps": 3, "log_steps": 1}
    first, again, ahead = run("first", **options), run("again", **options), run("ahead", workers=1, **options)
    for other in (again, ahead):
        assert torch.equal(weights(other.output), weights(first.output))
        lines = [read_metrics(each.output / "metrics.jsonl") for each in (first, other)]
        assert [line.get("loss") for line in lines[0]] == [line.get("loss") for line in lines[1]]


def test_an_interrupted_run_ends_bit_equal(run, tmp_path, monkeypatch):
    whole = run("whole", save_steps=2)
    step = engine.ProjectionTrainer.training_step

    def dying(self, *arguments):
        if self.state.global_step == 7:
            raise KeyboardInterrupt
        return step(self, *arguments)

    monkeypatch.setattr(engine.ProjectionTrainer, "training_step", dying)
    with pytest.raises(KeyboardInterrupt):
        run("parts", save_steps=2)
    monkeypatch.undo()
    assert newest_checkpoint(tmp_path / "parts").name == "checkpoint-6"
    (tmp_path / "parts" / ".checkpoint-8.unfinished-x").mkdir()  # what SIGKILL in the middle of saving leaves
    parts = run("parts", save_steps=2)
    assert torch.equal(weights(parts.output), weights(whole.output))
    steps = [line["step"] for line in read_metrics(tmp_path / "parts" / "metrics.jsonl") if "loss" in line]
    assert steps == [2, 4, 6, 8, 10, 12]
    assert not list((tmp_path / "parts").glob(".checkpoint*"))


def test_checkpoints_are_small_and_old_ones_go(run):
    result = run(save_steps=3, keep_checkpoints=2)
    assert sorted(path.name for path in result.output.glob("checkpoint-*")) == ["checkpoint-12", "checkpoint-9"]
    files = {path.name for path in (result.output / "checkpoint-12").iterdir()}
    names = {"projection.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}
    assert files == names | {"run.json"}


def test_a_checkpoint_of_another_order_is_not_gone_on_from(run, captions):
    run("run", max_steps=2, save_steps=1)
    with pytest.raises(ValueError, match="pictures_per_step was 3 and is 4"):
        run("run", pictures_per_step=4)
    with pytest.raises(FileExistsError, match="checkpoint-2"):
        run("run", resume=False)
    captions.write_text("".join(captions.read_text().splitlines(True)[3:]))
    with pytest.raises(ValueError, match="groups of each source"):
        run("run")


def test_a_second_stage_begins_with_the_first_ones_projection(run, make_model, processor, captions):
    first = run("first", max_steps=2)
    second = _prepare(make_model(), captions, RECIPE, processor, projection=first.output)
    layer = second.model.model.language_projection
    assert torch.equal(torch.cat([layer.weight.flatten(), layer.bias]), weights(first.output))


def test_a_projection_of_another_size_is_refused(make_model, processor, captions, tmp_path):
    other = make_model("gpt_neox", hidden_size=16, num_attention_heads=2)
    save_projection(other, tmp_path)
    with pytest.raises(ValueError, match="another language model"):
        _prepare(make_model(), captions, RECIPE, processor, projection=tmp_path)


def test_bad_pictures_are_skipped_listed_and_limited(run, captions, tmp_path):
    (captions.parent / "0.png").write_bytes(b"broken")
    for name, cache in (("streamed", None), ("cached", tmp_path / "features")):
        result = run(name, cache=cache, max_bad_share=0.2)
        assert [bad.name for bad in result.bad_pictures] == [str(captions.parent / "0.png")]
        assert "0.png" in (result.output / "bad_pictures.jsonl").read_text()
        with pytest.raises(ValueError, match="0.png"):
            run(f"{name}2", cache=cache, on_bad_picture="raise")
    for number in range(1, 6):
        (captions.parent / f"{number}.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1\.png does not exist: 5 of 8 pictures of captions are missing"):
        run("too-many", max_bad_share=0.2)
    assert not (tmp_path / "too-many").exists()


def test_skipping_bad_pictures_is_training_without_their_rows(run, captions, tmp_path):
    """Nothing of another picture slips in."""
    broken = tmp_path / "broken"
    shutil.copytree(captions.parent, broken)
    (broken / "3.png").write_bytes(b"broken")
    with_bad = run(
        "with",
        data=broken / "captions.jsonl",
        pictures_per_step=8,
        steps_per_epoch=None,
        max_steps=1,
        max_bad_share=0.5,
    )
    kept = [line for line in captions.read_text().splitlines(True) if '"3.png"' not in line]
    captions.write_text("".join(kept))
    without = run("without", pictures_per_step=8, steps_per_epoch=None, max_steps=1)
    assert torch.allclose(weights(with_bad.output), weights(without.output), atol=1e-5)


def test_nan_and_blind_guessing_are_named_before_training(run, make_model, capsys):
    broken = make_model()
    with torch.no_grad():
        broken.lm_head.weight.fill_(math.nan)
    with pytest.raises(ValueError, match="overflows"):
        run("nan", model=broken)
    blind = make_model()
    with torch.no_grad():
        blind.lm_head.weight.zero_()
    run("blind", model=blind, max_steps=1)
    assert "ln(vocabulary)" in capsys.readouterr().out


def test_overfitting_takes_a_few_pictures_and_learns_them(run):
    result = run(overfit=2, max_steps=60)
    losses = [line for line in read_metrics(result.output / "metrics.jsonl") if "loss" in line]
    assert result.steps == 60 and losses[-1]["loss"] < 0.95 * losses[0]["loss"]
    assert Recipe.load(result.output / "recipe.yaml").pictures_per_step == 2


def test_a_dry_run_changes_and_writes_nothing(make_model, processor, captions, tmp_path):
    prepared = _prepare(make_model(), captions, RECIPE, processor, progress=False)
    before = prepared.model.model.language_projection.weight.clone()
    report = prepared.dry_run(None, tmp_path / "run", None)
    assert report["steps"] == 12 and report["rows"] == 9 and report["supervised_tokens_per_row"] > 2
    assert torch.equal(prepared.model.model.language_projection.weight, before)
    assert {path.name for path in tmp_path.iterdir()} == {"data"}


def test_crops_are_drawn_from_seed_and_epoch_alone(make_model, processor, captions):
    captions.write_text("".join(captions.read_text().splitlines(True)[:3]))

    def crops(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        recipe = RECIPE.with_(augmentation=True, seed=seed, steps_per_epoch=None)
        steps = _prepare(make_model(), captions, recipe, processor).steps
        return steps[0].pixel_values, steps[1].pixel_values

    (first, next_epoch), (again, _), (other, _) = crops(1), crops(1), crops(2)
    assert torch.equal(first, again)
    assert not torch.equal(first, next_epoch) and not torch.equal(first, other)


def test_cached_views_are_drawn_anew_in_every_epoch(make_model, processor, captions, tmp_path):
    captions.write_text("".join(captions.read_text().splitlines(True)[:3]))
    recipe = RECIPE.with_(augmentation=True, views=3, steps_per_epoch=None, epochs=12)
    run = _prepare(make_model(), captions, recipe, processor, tmp_path / "features", progress=False)
    picture = run.sources[0].training[0].pictures[0]
    views = [run.pictures.features([picture], view) for view in range(3)]
    drawn = [
        next(view for view in range(3) if torch.equal(step.query_features, views[view]))
        for step in all_steps(run.steps)
    ]
    assert set(drawn) == {0, 1, 2}


def test_validation_pictures_are_never_trained_on(make_model, processor, captions, monkeypatch):
    run = _prepare(make_model(), captions, RECIPE.with_(validation=0.3), processor)
    decode, names = run.encoder.pixel_values, set()
    monkeypatch.setattr(run.encoder, "pixel_values", lambda *given: names.add(given[1]) or decode(*given))
    assert sum(step.rows for step in all_steps(run.validation)) == 3 * len(names)
    held = set(names)
    names.clear()
    assert all(step.rows for step in all_steps(run.steps))
    assert held and names and not held & names and len(held | names) == 8


def test_samples_are_generated_in_eval_mode(run, make_model):
    model, modes = make_model(), []
    model.register_forward_pre_hook(lambda module, given: modes.append((torch.is_grad_enabled(), module.training)))
    run(model=model, sample_steps=1, max_steps=2)
    # What is compared before the first step is in eval mode as well, with gradients.
    assert {(True, True), (False, False)} <= set(modes) and (False, True) not in modes


def test_loss_per_source_is_logged(run, captions, tmp_path):
    other = captions.with_name("other.jsonl")
    other.write_text(captions.read_text().replace("犬", "青い花"))
    sources = [{"path": str(captions), "name": "one", "weight": 3}, {"path": str(other), "name": "two", "weight": 1}]
    result = run(data=sources, max_steps=4)
    (line, _) = [line for line in read_metrics(result.output / "metrics.jsonl") if "loss/one" in line]
    assert line["loss/one"] != line["loss/two"]
    assert min(line["loss/one"], line["loss/two"]) < line["loss"] < max(line["loss/one"], line["loss/two"])


def test_unknown_recipe_keys_and_values_are_named():
    with pytest.raises(ValueError, match="learing_rate"):
        Recipe.load("stage1", learing_rate=1)
    with pytest.raises(ValueError, match="schedule"):
        Recipe.load("stage1", schedule="linear")
    with pytest.raises(FileNotFoundError, match="article-stair-vg, auto, small, stage1, stage2"):
        Recipe.load("stage3")
    assert Recipe.load("stage1", learning_rate="1e-4").learning_rate == 1e-4
