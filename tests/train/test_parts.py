"""More than the projection learns when a recipe asks for it: what, how, and that nothing else changes."""

import json

import pytest
import torch
from safetensors.torch import load_file

from jminigpt4.train import engine
from jminigpt4.train.encoder_gradient import encode_with_gradient
from jminigpt4.train.engine import _prepare, dry_run, train
from jminigpt4.train.features import PictureEncoder
from jminigpt4.train.frozen import TRAINED_PARTS, load_model
from jminigpt4.train.parts import PARTS, part_of
from jminigpt4.train.recipe import Recipe
from jminigpt4.train.schedule import RateSchedule
from jminigpt4.train.trainer import make_optimizer

RECIPE = Recipe(
    learning_rate=1e-2,
    min_learning_rate=1e-3,
    warmup_steps=1,
    steps_per_epoch=3,
    epochs=2,
    pictures_per_step=3,
    pack_tokens=64,
    log_steps=1,
    save_steps=1,
    keep_checkpoints=9,
)
EVERYTHING = ["projection", "qformer", "vision", "language"]


def without_dropout(model):
    for layer in model.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0
        for name in ("attention_dropout", "dropout"):  # of attention functions, which take it as a number
            if isinstance(getattr(layer, name, None), float):
                setattr(layer, name, 0.0)
    return model


def parts_that_differ(before: dict, after: dict) -> set[str]:
    return {part_of(name) for name in before if not torch.equal(before[name], after[name])}


def state(model) -> dict:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.fixture
def run(make_model, processor, captions, tmp_path, monkeypatch):
    """`run(name, model, **changes)`: a training in folder `name`."""
    monkeypatch.setattr(engine, "draw_learning_curve", lambda metrics, picture: None)

    def go(name: str = "run", model=None, recipe=RECIPE, **options):
        return train(
            model or make_model("llama"), captions, tmp_path / name, recipe, processor=processor, progress=False,
            **options,
        )  # fmt: skip

    return go


@pytest.fixture
def step_gradients(run, monkeypatch):
    """`step_gradients(model, **changes)`: gradients that the optimiser of a run is given in its first step."""

    def go(model, **changes) -> dict[str, torch.Tensor]:
        found = {}
        step = engine.ProjectionTrainer.training_step

        def noting(self, *arguments):
            loss = step(self, *arguments)
            found.update({name: each.grad.clone() for name, each in model.named_parameters() if each.requires_grad})
            return loss

        with monkeypatch.context() as patch:
            patch.setattr(engine.ProjectionTrainer, "training_step", noting)
            run("gradients", model, Recipe(**changes), max_steps=1)
        return found

    return go


def gradients_of_rows(model, processor, captions, recipe) -> dict[str, torch.Tensor]:
    """The same by the model's own loss: every row by itself, with its picture."""
    run = _prepare(model, captions, recipe, processor, progress=False)
    model.eval()
    total, count = 0.0, 0
    for source, number in run.steps.order.step(0, 0, 1):
        for row in run.sources[source].training[number].rows:
            encoded = run.rows.encode(row)
            ids, labels = torch.tensor([encoded.input_ids]), torch.tensor([encoded.labels])
            views = [run.encoder.pixel_values(each.read(), each.name, [None]) for each in row.pictures]
            loss = model(
                ids, attention_mask=torch.ones_like(ids), pixel_values=torch.cat(views), labels=labels, use_cache=False
            ).loss
            learnt = int((labels != -100).sum())
            total, count = total + loss * learnt, count + learnt
    model.zero_grad()
    (total / count).backward()
    return {name: each.grad.clone() for name, each in model.named_parameters() if each.requires_grad}


def differences(ours: dict, theirs: dict) -> dict[str, float]:
    """Relative difference of the gradient of every part, and of the query tokens."""
    assert ours.keys() == theirs.keys()
    groups = {part: [name for name in ours if part_of(name) == part] for part in PARTS}
    groups["query tokens"] = [name for name in ours if name.endswith("query_tokens")]
    result = {}
    for group, names in groups.items():
        if names:
            mine, other = (torch.cat([each[name].flatten() for name in names]) for each in (ours, theirs))
            assert other.norm() > 1e-6, group
            result[group] = float((mine - other).norm() / other.norm())
    return result


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gpt2", "opt", "gemma2"])
@pytest.mark.parametrize("packing", ["packed", "plain"])
def test_the_gradient_of_everything_is_that_of_separate_rows(
    make_model, processor, captions, step_gradients, family, packing
):
    """Of all parts together, through shared prompts, several packs a step, and features shared by rows."""
    recipe = RECIPE.with_(learn=EVERYTHING, share_prefix=packing == "packed", learning_rates={"vision": 1e-9})
    expected = gradients_of_rows(without_dropout(make_model(family)), processor, captions, recipe)
    ours = step_gradients(without_dropout(make_model(family)), **dict(recipe))
    found = differences(ours, expected)
    assert found.keys() == {*EVERYTHING, "query tokens"}
    assert max(found.values()) < 1e-4, found


@pytest.mark.parametrize("changes", [{"gradient_checkpointing": True}, {"attention": "eager"}, {"pack_tokens": 20}])
def test_settings_of_memory_change_no_gradient(make_model, processor, captions, step_gradients, changes, monkeypatch):
    """Also where the encoder is gone through a few pictures at a time, and computed again for its gradient."""
    recipe = RECIPE.with_(learn=EVERYTHING)
    expected = gradients_of_rows(without_dropout(make_model("llama")), processor, captions, recipe)
    monkeypatch.setattr(PictureEncoder.__init__, "__defaults__", (0, 2))
    ours = step_gradients(without_dropout(make_model("llama")), **dict(recipe.with_(**changes)))
    assert max(differences(ours, expected).values()) < 1e-4


def test_recomputed_pictures_have_the_dropout_they_had(make_model, processor, captions, monkeypatch):
    """The Q-Former's dropout is drawn once a step: a picture's activations, computed again, are those that were."""
    run = _prepare(make_model("llama"), captions, RECIPE.with_(learn=["vision", "qformer"]), processor, progress=False)
    run.loss.train()
    assert run.model.model.qformer.training and not run.model.model.language_model.training
    run.encoder.batch_size, pixels = 1, run.steps[0].pixel_values
    weights = torch.randn(len(pixels), 4, 32, generator=torch.Generator().manual_seed(0))
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(0)
        made = encode_with_gradient(run.encoder, pixels, recompute)
        torch.manual_seed(1)
        (made * weights).sum().backward()
        gradients.append(run.model.model.query_tokens.grad.clone())
        run.model.zero_grad()
    assert torch.equal(*gradients)
    torch.manual_seed(2)
    assert not torch.equal(encode_with_gradient(run.encoder, pixels, False), made)


@pytest.mark.parametrize("learn", [["projection"], ["qformer"], ["projection", "vision"], ["language"], EVERYTHING])
def test_what_is_named_changes_and_nothing_else(run, make_model, learn):
    model = make_model("llama")
    before = state(model)
    result = run(model=model, learn=learn, max_steps=2)
    assert parts_that_differ(before, state(result.model)) == set(learn)
    optimizer = torch.load(result.output / "checkpoint-2" / "optimizer.pt", weights_only=True)
    names = [name for name, _ in model.named_parameters() if part_of(name) in learn]
    assert len(optimizer["state"]) == len(names)
    others = {name for name in names if part_of(name) != "projection"}
    path = result.output / TRAINED_PARTS
    assert path.is_file() == bool(others) and (not others or load_file(path).keys() == others)


def test_old_recipes_say_what_they_said():
    """Runs begun before there was a choice go on, and write the files that they wrote."""
    values = Recipe.load("stage1").values()
    assert not {"learn", "learning_rates", "projection"} & values.keys()
    assert Recipe(learn=["qformer"], projection=None).values()["learn"] == ["qformer"]
    assert Recipe.from_values({"learn": "projection"}).values() == Recipe().values()


def test_a_run_of_the_projection_alone_is_what_it_was(run):
    result = run(max_steps=1)
    assert {path.name for path in (result.output / "checkpoint-1").iterdir()} == {
        "projection.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "run.json",
    }  # fmt: skip
    optimizer = torch.load(result.output / "checkpoint-1" / "optimizer.pt", weights_only=True)
    assert [len(group["params"]) for group in optimizer["param_groups"]] == [1, 1]
    assert not {"share", "own_rate"} & optimizer["param_groups"][0].keys()


@pytest.mark.parametrize(
    "changes",
    [
        {"learn": ["projection", "qformer"], "learning_rates": {"qformer": 1e-3}},
        {"learn": ["language"], "validation": 0.3, "sample_steps": 2},
        {"recipe": RECIPE.with_(learn=EVERYTHING, projection="mlp")},
        {"learn": ["projection", "language"], "lora": 2},
    ],
)
def test_an_interrupted_run_ends_bit_equal(run, make_model, monkeypatch, changes):
    """Dropout of the Q-Former and of the language model included: the models here have both."""
    whole = run("whole", make_model("gpt_neox"), **changes)
    step = engine.ProjectionTrainer.training_step

    def dying(self, *arguments):
        if self.state.global_step == 4:
            raise KeyboardInterrupt
        return step(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(engine.ProjectionTrainer, "training_step", dying)
        run("parts", make_model("gpt_neox"), **changes)
    parts = run("parts", make_model("gpt_neox"), **changes)
    assert parts.steps == whole.steps == 6
    ours, theirs = state(parts.model), state(whole.model)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_every_part_has_its_rate_and_its_decay(make_model):
    recipe = RECIPE.with_(learn=EVERYTHING, learning_rates={"qformer": 1e-4, "projection": 5e-3}, weight_decay=0.5)
    model, _ = load_model(make_model("gpt2", tie_word_embeddings=True), object(), recipe)
    optimizer = make_optimizer(engine.PackLoss(model), recipe)
    names = {id(each): name for name, each in model.named_parameters()}
    rates = dict.fromkeys(PARTS, 1e-2) | {"qformer": 1e-4, "projection": 5e-3}
    schedule = RateSchedule(optimizer, recipe.rates(3))
    optimizer.step()
    schedule.step()  # the end of the warm-up, which is the peak
    decayed = {}
    for group in optimizer.param_groups:
        for each in group["params"]:
            name = names[id(each)]
            assert group["lr"] == pytest.approx(rates[part_of(name)], rel=1e-12), name
            decayed[name] = group["weight_decay"] == 0.5
    assert decayed.keys() == {name for name, each in model.named_parameters() if each.requires_grad}
    no_decay = {name.removeprefix("model.") for name, decays in decayed.items() if not decays}
    tables = {"query_tokens", "language_model.wte.weight", "language_model.wpe.weight"}
    tables |= {f"vision_model.embeddings.{kind}_embedding" for kind in ("class", "position")}
    assert tables <= no_decay
    others = [name for name in no_decay - tables if not name.endswith("bias")]
    assert others and all("norm" in name.lower() or ".ln_" in name for name in others), others
    assert all(model.get_parameter(name).ndim >= 2 for name, decays in decayed.items() if decays)


def test_muon_is_for_the_projection_and_adamw_for_the_rest(make_model):
    recipe = Recipe(
        optimizer="muon", learning_rate=0.04, weight_decay=1.0, learn=["projection", "qformer"], projection="mlp",
        learning_rates={"qformer": 1e-3}, warmup_steps=0,
    )  # fmt: skip
    model, _ = load_model(make_model("llama"), object(), recipe)
    optimizer = make_optimizer(engine.PackLoss(model), recipe)
    names = {id(each): name for name, each in model.named_parameters()}
    by_muon = {names[id(each)] for group in optimizer.param_groups if "momentum" in group for each in group["params"]}
    assert by_muon == {f"model.language_projection.linear_{number}.weight" for number in (1, 2)}
    before = model.model.query_tokens.detach().clone()
    for each in model.parameters():
        each.grad = torch.ones_like(each)
    RateSchedule(optimizer, recipe.rates(3))
    optimizer.step()
    # AdamW's first step moves every entry by its rate.
    assert torch.allclose((before - model.model.query_tokens), torch.full_like(before, 1e-3), rtol=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learn": []}, "`learn`"),
        ({"learn": ["eyes"]}, "`learn.0` must be 'projection', 'qformer', 'vision' or 'language'"),
        ({"learn": ["qformer", "qformer"]}, "names a part twice"),
        ({"learning_rates": {"qformer": 1e-5}}, "learning_rates has qformer, which does not learn"),
        ({"learning_rates": {"eyes": 1e-5}}, "`learning_rates.eyes"),
        ({"learn": ["projection", "qformer"], "learning_rates": {"qformer": 0}}, "greater than 0"),
        ({"learn": ["language"], "load_in_8bit": True}, "not load_in_8bit"),
        ({"learn": ["language"], "shard_language": True}, "not with language in learn"),
        ({"learn": ["vision"], "load_in_8bit": True}, "not load_in_8bit"),
        ({"learn": ["vision"], "shard_language": True}, "not shard_language"),
        ({"learn": ["vision"], "dtype": "float16"}, "bfloat16 or float32"),
        ({"learn": ["qformer"], "projection": "mlp"}, "name projection in learn as well"),
        ({"learn": ["projection", "qformer"], "optimizer": "muon"}, "a rate of its own"),
        ({"learn": ["qformer"], "optimizer": "muon"}, "not in learn"),
        ({"optimizer": "muon", "lora": 2}, "not for adapters"),
    ],
)
def test_contradictions_are_refused_in_a_sentence(changes, message):
    with pytest.raises(ValueError) as raised:
        RECIPE.with_(**changes)
    assert message in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("learn", ["qformer", "vision"])
def test_a_cache_of_features_that_change_is_refused_before_anything_is_written(run, tmp_path, learn):
    with pytest.raises(ValueError, match=f"here {learn} learns: leave the cache out"):
        run(learn=["projection", learn], cache=tmp_path / "features")
    assert {path.name for path in tmp_path.iterdir()} == {"data"}


def test_text_without_pictures_teaches_a_language_model_alone(run, make_model, captions):
    with captions.open("a", encoding="utf-8") as file:
        file.write('{"messages": [{"role": "user", "content": "犬"}, {"role": "assistant", "content": "猫"}]}\n')
    steps = {"steps_per_epoch": None, "epochs": 1, "pictures_per_step": 100, "save_steps": None}
    losses = {learn: run(learn, learn=[learn], **steps) for learn in ("projection", "language")}
    rows = {name: result.model for name, result in losses.items()}
    assert rows.keys() == {"projection", "language"}
    groups = {learn: _rows(losses[learn].output) for learn in losses}
    assert groups["language"] == groups["projection"] + 1


def _rows(output) -> int:
    stored = json.loads((output / "checkpoint-1" / "run.json").read_text())
    return stored["order"]["groups of each source"][0]


def test_a_dry_run_says_the_memory_and_learns_nothing(make_model, processor, captions, capsys):
    model = make_model("llama")
    before = state(model)
    found = dry_run(model, captions, RECIPE, processor=processor, progress=False, learn=["projection", "qformer"])
    count = sum(each.numel() for name, each in model.named_parameters() if each.requires_grad)
    assert found["optimizer_memory_gb"] == pytest.approx(8e-9 * count)
    assert not parts_that_differ(before, state(model))
    assert all(each.grad is None for each in model.parameters())
    qformer = sum(each.numel() for name, each in model.named_parameters() if part_of(name) == "qformer")
    assert f"Parameters that learn: projection 1,056, qformer {qformer:,}." in capsys.readouterr().out


def test_samples_are_of_the_pictures_as_they_are_encoded_now(run, make_model, monkeypatch):
    encoded = []
    encode = PictureEncoder.encode
    monkeypatch.setattr(PictureEncoder, "encode", lambda self, pixels: encoded.append(1) or encode(self, pixels))
    run("frozen", sample_steps=1, max_steps=2)
    frozen = len(encoded)
    encoded.clear()
    run("learning", sample_steps=1, max_steps=2, learn=["projection", "qformer"])
    # The steps' own pictures come with a gradient, by another way: what is left is the first loss and the samples.
    assert len(encoded) == 1 + 2 * 4 and frozen == 1 + 2 + 4


def test_what_learns_is_held_in_float32_and_computed_as_asked(make_model, processor, captions, tmp_path, capsys):
    make_model("llama").bfloat16().save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    recipe = RECIPE.with_(learn=EVERYTHING, dtype="bfloat16")
    run = _prepare(tmp_path / "model", captions, recipe, progress=False)
    assert {each.dtype for each in run.model.parameters()} == {torch.float32}
    seen = []
    layer = run.model.model.language_model.layers[0].mlp
    layer.register_forward_hook(lambda module, given, output: seen.append(output.dtype))
    run.model.model.vision_model.encoder.layers[0].mlp.register_forward_hook(
        lambda module, given, output: seen.append(output.dtype)
    )
    run._prove_packing()
    assert run.loss.packed and "Rows are trained one by one" not in capsys.readouterr().out
    run.first_loss()
    assert set(seen) == {torch.bfloat16}
    exact = _prepare(tmp_path / "model", captions, recipe.with_(dtype="auto"), progress=False)
    assert exact.first_loss() == pytest.approx(run.first_loss(), rel=0.05)
    make_model("llama").save_pretrained(tmp_path / "exact")
    processor.save_pretrained(tmp_path / "exact")
    masters, _ = load_model(tmp_path / "exact", None, recipe)
    stored = make_model("llama").state_dict()
    assert all(torch.equal(tensor, stored[name]) for name, tensor in masters.state_dict().items())
    frozen = _prepare(tmp_path / "model", captions, recipe.with_(learn=["language"]), progress=False).model
    assert frozen.model.vision_model.dtype == torch.bfloat16 and frozen.dtype == torch.float32
    assert frozen.model.query_tokens.dtype == torch.float32


def test_statistics_of_batch_norms_stay(run, make_model):
    model = make_model("llama")
    model.model.vision_model.extra = torch.nn.BatchNorm2d(2)
    loss = engine.PackLoss(model.requires_grad_(True)).train()
    assert model.model.vision_model.training and not model.model.vision_model.extra.training
    assert model.model.qformer.training and loss.training


@pytest.mark.parametrize(
    ("learn", "fault"),
    [("language", "gate_proj"), ("qformer", None), ("projection", "language_projection"), ("language", None)],
)
def test_packs_that_teach_one_part_otherwise_are_not_trained(
    make_model, processor, captions, monkeypatch, capsys, learn, fault
):
    """The comparison before the first step is of everything that learns: one weight's gradient alone, or that of the
    features, a hundredth longer in a pack than in rows, ends in plain rows."""
    model = make_model("llama")
    run = _prepare(model, captions, RECIPE.with_(learn=[learn]), processor, progress=False)
    if learn == "qformer":
        forward = engine.PackLoss.forward

        def off(self, pack, features, gradient=None):
            features = features + 0.01 * (features - features.detach()) if self.packed else features
            return forward(self, pack, features, gradient)

        monkeypatch.setattr(engine.PackLoss, "forward", off)
    for name, each in model.named_parameters():
        if fault is not None and fault in name:
            each.register_hook(lambda gradient: gradient * (1.01 if run.loss.packed else 1.0))
    run._prove_packing()
    is_exact = learn == "language" and fault is None
    assert run.loss.packed == is_exact
    assert ("Rows are trained one by one" in capsys.readouterr().out) != is_exact


def test_the_prefix_before_the_picture_is_computed_anew_where_the_language_model_learns(
    make_model, processor, captions
):
    kept = {
        learn: bool(_prepare(make_model(), captions, RECIPE.with_(learn=[learn]), processor).packer.prefix)
        for learn in ("projection", "qformer", "language")
    }
    assert kept == {"projection": True, "qformer": True, "language": False}


def test_a_projection_of_two_layers_is_made_learnt_and_resumed(run, make_model, capsys):
    recipe = RECIPE.with_(projection="mlp")
    whole = run("whole", recipe=recipe)
    assert "The model's own projection is left out: `projection: mlp` is another kind" in capsys.readouterr().out
    layer = whole.model.model.language_projection
    stored = load_file(whole.output / "projection.safetensors")
    assert stored.keys() == dict(layer.named_parameters()).keys()
    run("parts", recipe=recipe, max_steps=2)
    again = load_file(run("parts", recipe=recipe).output / "projection.safetensors")
    assert all(torch.equal(again[name], stored[name]) for name in stored)
    with pytest.raises(ValueError, match='projection was "mlp" and is null'):
        run("parts")
    next_ = run("next", recipe=recipe, projection=whole.output, max_steps=1, learning_rate=1e-9,
                min_learning_rate=0.0, warmup_learning_rate=0.0)  # fmt: skip
    begun = load_file(next_.output / "projection.safetensors")
    assert all(torch.allclose(begun[name], stored[name], atol=1e-6) for name in stored)


def test_a_projection_of_the_models_own_kind_is_kept(make_model, processor, captions, capsys):
    model = make_model()
    before = model.model.language_projection.weight.clone()
    run = _prepare(model, captions, RECIPE.with_(projection="linear"), processor, progress=False)
    assert torch.equal(run.model.model.language_projection.weight, before)
    assert "left out" not in capsys.readouterr().out
