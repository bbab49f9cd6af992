"""Where a run's time goes, what it asks of the device, and what the log says of both."""

import json
from datetime import datetime

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from jminigpt4.train import engine, meter, metrics, operations
from jminigpt4.train.engine import _prepare, train
from jminigpt4.train.features import PictureEncoder
from jminigpt4.train.loss import PackLoss
from jminigpt4.train.meter import RunMeter, StageClock
from jminigpt4.train.metrics import expected_end, read_metrics
from jminigpt4.train.operations import count_operations, measured_peak
from jminigpt4.train.recipe import Recipe

RECIPE = Recipe(
    pictures_per_step=4, steps_per_epoch=2, epochs=1, pack_tokens=64, warmup_steps=1, attention="eager", log_steps=1
)
CPU, SIZE = torch.device("cpu"), (28, 28)


class Clock:
    """`time`, with seconds that pass when a test says so."""

    def __init__(self):
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now

    def spending(self, seconds: float, function):
        def spend(*arguments, **named):
            self.now += seconds
            return function(*arguments, **named)

        return spend


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(meter, "time", clock)
    monkeypatch.setattr(meter, "measured_peak", lambda device, dtype: 1000.0)
    return clock


@pytest.mark.parametrize("changes", [{}, {"share_prefix": False}, {"pack_tokens": 4096}])
@pytest.mark.parametrize("family", ["gpt_neox", "llama", "gpt2", "gemma2"])
def test_the_operations_of_a_step_are_those_torch_counts_in_it(make_model, processor, captions, family, changes):
    model = make_model(family)
    model.set_attn_implementation("eager")
    run = _prepare(model, captions, RECIPE.with_(**changes), processor, progress=False)
    step = run.steps[0]
    run.loss(step.packs[0], torch.zeros(4, 4, 32))  # makes the constant prefix's keys and values, once for a run
    with FlopCounterMode(display=False) as counted:
        features = run.encoder.features(None, step.pixel_values)
        for pack in step.packs:
            run.loss(pack, features).sum().backward()
    assert step.packs[0].prefix
    ours = count_operations(model.config, SIZE).step(step.packs, len(step.pixel_values))
    assert ours == counted.get_total_flops() > 1e6


def test_rows_one_by_one_are_counted_with_their_whole_last_layer(make_model, processor, captions):
    model = make_model("llama")
    model.set_attn_implementation("eager")
    run = _prepare(model, captions, RECIPE.with_(share_prefix=False, pack_tokens=1), processor, progress=False)
    run.packer.prefix, run.loss.packed = (), False
    (pack, *_) = run.steps[0].packs
    with FlopCounterMode(display=False) as counted:
        run.loss(pack, torch.zeros(4, 4, 32)).sum().backward()
    operations_ = count_operations(model.config, SIZE)
    assert operations_.step([pack], 0, packed=False) == counted.get_total_flops()
    assert operations_.step([pack], 0, packed=True) < counted.get_total_flops()


def test_the_demo_is_counted_whose_image_encoder_is_timms():
    from jminigpt4 import DEMO
    from jminigpt4.inference.loading import load_checkpoint

    model, processor = load_checkpoint(DEMO, "cpu", "float32")
    size = (processor.image_processor.size["height"], processor.image_processor.size["width"])
    counted = count_operations(model.config, size)
    modules = model.model.language_model.modules()
    linear = sum(each.weight.numel() for each in modules if isinstance(each, torch.nn.Linear))
    assert counted.position + counted.end == 4 * linear
    parameters = sum(each.numel() for each in model.model.vision_model.parameters())
    assert counted.picture > parameters


def test_the_peak_is_a_product_of_matrices_over_its_time(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(operations, "time", clock)
    monkeypatch.setattr(torch, "mm", clock.spending(0.01, torch.mm))
    operations._peak.cache_clear()
    assert measured_peak(CPU, torch.float32) == pytest.approx(2 * 512**3 / 0.01)
    operations._peak.cache_clear()


@pytest.mark.parametrize("world", [1, 2])
def test_shares_rates_and_use_are_over_all_processes(make_model, clock, world):
    """Each of `world` equal processes spends 10 seconds; counts are of all of them."""
    own = RunMeter(make_model(), SIZE, CPU, lambda *values: [world * value for value in values], world)
    own.begin(step=10, steps=30)
    for stage, seconds in (("decode", 1), ("encode", 2), ("language_model", 4), ("optimiser", 1)):
        with own.clock.stage(stage):
            clock.now += seconds
    clock.now += 2
    counts = {"rows": 20, "tokens": 300, "supervised_tokens": 100, "row_tokens": 900, "computed_tokens": 400}
    own.counts.update(counts, operations=3000)
    values = own.since_last(step=15)
    shares = {"decode": 0.1, "encode": 0.2, "language_model": 0.4, "optimiser": 0.1, "other": 0.2}
    expected = {f"time/{name}": share for name, share in shares.items()} | {
        "rows_per_second": 2.0,
        "tokens_per_second": 30.0,
        "supervised_tokens_per_row": 5.0,
        "packing_efficiency": 0.75,
        "row_tokens_per_token": 2.25,
        "mfu": 3000 / (10 * 1000 * world),
        "hours_left": 15 * 2 / 3600,
    }
    assert values == pytest.approx(expected)
    clock.now += 10
    assert own.since_last(step=15)["time/other"] == 1.0
    whole = own.whole()
    assert whole["time/other"] == pytest.approx(0.6) and whole["rows_per_second"] == 1.0
    lines = own.summary(whole)
    assert lines[0] == "Time: decode 5%, encode 10%, language model 20%, optimiser 5%, other 60%."
    assert lines[1].startswith(f"Use: {15 / world:.1f}% of the {world}e-06 GFLOP/s measured in float32; 1 rows/s, ")


def test_a_run_says_where_its_time_went(make_model, processor, captions, tmp_path, monkeypatch, capsys, clock):
    """Decoding a picture takes a second, encoding a batch four, a pack two, an update one: 4 + 4 + 2 n + 1 a step."""
    monkeypatch.setattr(engine, "draw_learning_curve", lambda metrics, picture: None)
    monkeypatch.setattr(engine.Run, "_prove_packing", lambda self: None)
    monkeypatch.setattr(engine.Run, "first_loss", lambda self: None)
    monkeypatch.setattr(PictureEncoder, "pixel_values", clock.spending(1, PictureEncoder.pixel_values))
    monkeypatch.setattr(PictureEncoder, "encode", clock.spending(4, PictureEncoder.encode))
    monkeypatch.setattr(PackLoss, "forward", clock.spending(2, PackLoss.forward))
    monkeypatch.setattr(torch.optim.AdamW, "step", clock.spending(1, torch.optim.AdamW.step))
    # Given to the counters before the clock's stages, so that it is nobody's.
    monkeypatch.setattr(metrics, "peak_memory_gb", clock.spending(3, lambda: 1.0))
    recipe = RECIPE.with_(pack_tokens=4096)
    train(make_model(), captions, tmp_path / "run", recipe, processor=processor, progress=False, workers=0)
    first, second, last = read_metrics(tmp_path / "run" / "metrics.jsonl")
    for line, other in ((first, 0), (second, 3)):
        shares = {"decode": 4, "encode": 4, "language_model": 2, "optimiser": 1, "other": other}
        for stage, seconds in shares.items():
            assert line[f"time/{stage}"] == pytest.approx(seconds / (11 + other)), stage
        assert line["rows_per_second"] == pytest.approx(12 / (11 + other))
        assert line["packing_efficiency"] == 1.0 and line["row_tokens_per_token"] > 1.5
    assert first["hours_left"] == pytest.approx(11 / 3600) and second["hours_left"] == 0
    wall = 11 + 3 + 11 + 3
    assert last["time/decode"] == pytest.approx(8 / wall) and last["time/other"] == pytest.approx(6 / wall)
    assert last["mfu"] == pytest.approx(last["total_flos"] / (wall * 1000))
    assert first["mfu"] * 11 + second["mfu"] * 14 == pytest.approx(last["mfu"] * wall)
    printed = capsys.readouterr().out
    assert "Time: decode 29%, encode 29%, language model 14%, optimiser 7%, other 21%." in printed
    assert "measured in float32" in printed


def test_what_resumes_goes_on_counting(make_model, processor, captions, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "draw_learning_curve", lambda metrics, picture: None)

    def total(name: str, **options) -> float:
        train(make_model(), captions, tmp_path / name, RECIPE, processor=processor, progress=False, **options)
        return json.loads((tmp_path / name / "checkpoint-2" / "trainer_state.json").read_text())["total_flos"]

    with pytest.raises(FileNotFoundError):
        total("parts", max_steps=1)
    assert total("parts") == total("whole") > 0


def test_a_family_that_cannot_be_counted_trains_as_well(
    make_model, processor, captions, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(engine, "draw_learning_curve", lambda metrics, picture: None)

    def refuse(config, size):
        raise RuntimeError("no content\nand more")

    monkeypatch.setattr(meter, "count_operations", refuse)
    train(make_model(), captions, tmp_path / "run", RECIPE, processor=processor, progress=False, max_steps=1)
    assert not any("mfu" in line for line in read_metrics(tmp_path / "run" / "metrics.jsonl"))
    assert "operations are not counted (RuntimeError: no content)" in capsys.readouterr().out


class Event:
    """What `torch.cuda.Event` is to the clock, on a stream that finishes something every second."""

    log: list[str] = []

    def __init__(self, enable_timing: bool):
        assert enable_timing

    def record(self):
        self.time = len(Event.log)
        Event.log.append("record")

    def synchronize(self):
        Event.log.append("wait")

    def elapsed_time(self, end: "Event") -> float:
        return 1000.0 * (end.time - self.time)


def test_on_cuda_nothing_waits_before_it_is_asked(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(Event, "log", [])
    clock = StageClock(torch.device("cuda"))
    for stage in ("decode", "language_model", "language_model"):
        with clock.stage(stage):
            pass
    assert Event.log == ["record"] * 6
    assert clock.seconds() == [1.0, 0.0, 2.0, 0.0] and Event.log[6:] == ["wait"]
    assert clock.seconds() == [1.0, 0.0, 2.0, 0.0] and len(Event.log) == 7
    monkeypatch.setattr(meter, "PENDING", 2)
    for _ in range(4):
        with clock.stage("encode"):
            pass
    assert Event.log.count("wait") == 3 and not clock._pending


def test_the_end_has_a_date_when_it_is_far():
    assert len(expected_end(1.0)) == 5
    assert expected_end(48.0) > datetime.now().strftime("%Y-%m-%d %H:%M")
