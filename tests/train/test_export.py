"""Exported models load with the new projection, and the frozen weights are not written again."""

import json

import pytest
import torch

from jminigpt4 import JMiniGPT4ForConditionalGeneration
from jminigpt4.checkpoint import save_projection, verify_manifest
from jminigpt4.train.export import export


@pytest.fixture
def trained(make_model, tmp_path):
    """A base model in `base`, another projection in `run`, and the model that has both."""
    model = make_model("llama")
    model.save_pretrained(tmp_path / "base")
    torch.manual_seed(1)
    torch.nn.init.normal_(model.model.language_projection.weight)
    (tmp_path / "run").mkdir()
    save_projection(model, tmp_path / "run", {"text_model_type": "llama"})
    return model


def assert_loads_as(folder, model):
    loaded = JMiniGPT4ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    expected = model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())


def test_a_single_file_is_taken_over_by_hard_link(trained, tmp_path):
    export(tmp_path / "base", tmp_path / "run", tmp_path / "out")
    assert_loads_as(tmp_path / "out", trained)
    base, taken = tmp_path / "base" / "model.safetensors", tmp_path / "out" / "model-frozen.safetensors"
    assert base.stat().st_ino == taken.stat().st_ino
    assert (tmp_path / "base" / "config.json").stat().st_ino != (tmp_path / "out" / "config.json").stat().st_ino
    assert verify_manifest(tmp_path / "out") == []
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())["weight_map"]
    assert index["model.language_projection.weight"] == "model-projection.safetensors"


def test_shards_and_exports_of_exports(trained, make_model, tmp_path):
    trained.save_pretrained(tmp_path / "sharded", max_shard_size="60KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    other = make_model("llama", seed=5)
    save_projection(other, tmp_path / "run")
    export(tmp_path / "sharded", tmp_path / "run", tmp_path / "first")
    with torch.no_grad():
        trained.model.language_projection.load_state_dict(other.model.language_projection.state_dict())
    assert_loads_as(tmp_path / "first", trained)
    save_projection(make_model("llama", seed=6), tmp_path / "run")
    export(tmp_path / "first", tmp_path / "run", tmp_path / "second")
    with torch.no_grad():
        state = make_model("llama", seed=6).model.language_projection.state_dict()
        trained.model.language_projection.load_state_dict(state)
    assert_loads_as(tmp_path / "second", trained)


def test_refusals_leave_nothing_behind(trained, make_model, tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        export(tmp_path / "base", tmp_path / "absent", tmp_path / "out")
    (tmp_path / "small").mkdir()
    save_projection(make_model("llama", hidden_size=16, num_attention_heads=2), tmp_path / "small")
    with pytest.raises(ValueError, match="another language model"):
        export(tmp_path / "base", tmp_path / "small", tmp_path / "out")
    (tmp_path / "run" / "adapter").mkdir()
    with pytest.raises(ValueError, match="adapters"):
        export(tmp_path / "base", tmp_path / "run", tmp_path / "out")
    (tmp_path / "run" / "adapter").rmdir()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="taken"):
        export(tmp_path / "base", tmp_path / "run", tmp_path / "taken")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "run", "small", "taken"]
