"""What TensorBoard and Weights & Biases are told of a run; with the real packages, where they are installed."""

import importlib.util
import json
import struct

import pytest

from jminigpt4.train import engine
from jminigpt4.train.engine import train
from jminigpt4.train.recipe import Recipe

RECIPE = Recipe(
    pictures_per_step=4, steps_per_epoch=2, epochs=2, warmup_steps=1, log_steps=1, validation=0.3, max_grad_norm=1.0
)
NAMES = ("train/loss/one", "train/loss/two", "train/learning_rate", "train/mfu", "train/time/decode", "eval/loss")


@pytest.fixture
def go(make_model, processor, captions, tmp_path, monkeypatch):
    """`go(report_to, name, **changes)`: a run over two sources; its folder, metrics and samples."""
    monkeypatch.setattr(engine, "draw_learning_curve", lambda metrics, picture: None)
    other = captions.with_name("other.jsonl")
    other.write_text(captions.read_text().replace("犬", "青い花"))
    sources = [{"path": str(captions), "name": "one"}, {"path": str(other), "name": "two"}]

    def run(report_to: str, name: str = "run", **changes):
        output = tmp_path / name
        train(
            make_model(), sources, output, RECIPE, processor=processor, progress=False, report_to=report_to, **changes
        )
        files = [output / "metrics.jsonl", output / "samples.jsonl"]
        return output, *[[json.loads(line) for line in path.read_text().splitlines()] for path in files]

    return run


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="needs tensorboard")
def test_tensorboard_shows_losses_of_sources_rates_and_samples(go):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    output, metrics, samples = go("tensorboard")
    (folder,) = (output / "runs").iterdir()
    board = EventAccumulator(str(folder), {"images": 0, "tensors": 0, "scalars": 0}).Reload()
    logged = {name: [(event.step, event.value) for event in board.Scalars(name)] for name in board.Tags()["scalars"]}
    assert set(NAMES) <= set(logged)
    for name in NAMES:
        ours = name.removeprefix("train/").replace("eval/", "eval_")
        expected = [(line["step"], line[ours]) for line in metrics if ours in line]
        assert logged[name] == [(step, pytest.approx(value, rel=1e-6)) for step, value in expected], name
    assert len(logged["train/learning_rate"]) == 4
    assert set(board.Tags()["images"]) == {f"samples/{number}" for number in range(4)}
    # No `sample_steps` was given: at the end of each epoch. A picture is 40 x 32.
    images = board.Images("samples/0")
    assert [(image.step, image.width, image.height) for image in images] == [(2, 40, 32), (4, 40, 32)]
    texts = [event.tensor_proto.string_val[0].decode() for event in board.Tensors("samples/0/text_summary")]
    assert texts == [f"answer: {line['answer']}  \nexpected: {line['expected']}" for line in (samples[0], samples[4])]
    assert "learning_rate: 0.0001" in board.Tensors("recipe/text_summary")[0].tensor_proto.string_val[0].decode()


def records(path) -> list:
    """What lies in a file of wandb's: records in blocks of 32 KiB, in LevelDB's format of logs."""
    from wandb.proto import wandb_internal_pb2

    content, place, whole, found = path.read_bytes(), 7, b"", []
    while place < len(content):
        if 32768 - place % 32768 < 7:  # no room for a header: zeros
            place += 32768 - place % 32768
            continue
        length, kind = struct.unpack_from("<HB", content, place + 4)
        whole += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            found.append(wandb_internal_pb2.Record.FromString(whole))
            whole = b""
    return found


def items(updates) -> dict:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in updates}


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="needs wandb")
def test_wandb_shows_losses_of_sources_rates_and_samples(go, monkeypatch, tmp_path):
    """Offline: what would be sent lies in a file."""
    import wandb

    for name, value in {"WANDB_MODE": "offline", "WANDB_DIR": tmp_path, "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, str(value))
    _, metrics, samples = go("wandb")
    assert wandb.run is None  # the next run of this process is one of its own
    go("wandb", "second", max_steps=1)
    folders = sorted((tmp_path / "wandb").glob("offline-run-*"), key=lambda folder: folder.stat().st_mtime)
    assert len(folders) == 2
    stored = records(next(folders[0].glob("*.wandb")))
    history = [items(each.history.item) for each in stored if each.WhichOneof("record_type") == "history"]
    for name in NAMES:
        ours = name.removeprefix("train/").replace("eval/", "eval_")
        expected = [(line["step"], line[ours]) for line in metrics if ours in line]
        found = [(line["train/global_step"], line[name]) for line in history if name in line]
        assert found == [(step, pytest.approx(value)) for step, value in expected], name
    shown = [line for line in history if "samples" in line or "samples/captions" in line]
    assert [line["train/global_step"] for line in shown] == [2, 4]
    captions = shown[0]["samples"]["captions"] if "samples" in shown[0] else shown[0]["samples/captions"]
    assert captions[0] == f"answer: {samples[0]['answer']}  \nexpected: {samples[0]['expected']}"
    pictures = {tuple(line["image_ids"]) for line in samples}  # of which both sources show some; one file each
    assert len(list(folders[0].glob("files/media/images/*.png"))) == 2 * len(pictures)
    configs = [items(each.config.update) for each in stored if each.WhichOneof("record_type") == "config"]
    (recipe,) = [each["recipe"] for each in configs if "recipe" in each]
    assert recipe["pictures_per_step"] == 4


@pytest.mark.parametrize("place", ["tensorboard", "wandb"])
def test_a_missing_package_is_named_before_anything_is_loaded(place, monkeypatch, tmp_path):
    monkeypatch.setattr("jminigpt4.train.reporting.get_available_reporting_integrations", lambda: ["mlflow"])
    monkeypatch.setattr(engine, "_prepare", lambda *given, **named: pytest.fail("loaded"))
    with pytest.raises(ImportError) as refused:
        train("model", output=tmp_path / "run", report_to=place)
    assert str(refused.value) == (
        f"Nothing can be reported to '{place}', whose package is not installed: `pip install {place}` brings it, and "
        "here there are none, mlflow."
    )
    assert not (tmp_path / "run").exists()
