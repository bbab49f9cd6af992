"""The verbs, as a user types them."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM
from typer import Typer
from typer.testing import CliRunner

from jminigpt4.convert import assemble, verify_folder
from jminigpt4.convert.commands import convert, publish, verify
from jminigpt4.convert.recognition import PRESETS
from jminigpt4.convert.verification import _manifest_problems

app = Typer(pretty_exceptions_enable=False)
for verb in (convert, verify, publish):
    app.command()(verb)


def run(*arguments):
    return CliRunner().invoke(app, [str(each) for each in arguments])


def arguments_for(reference):
    files = reference / "checkpoints"
    arguments = ["--vision", files / "eva_vit_g.pth", "--qformer", files / "blip2_pretrained_flant5xxl.pth"]
    arguments += ["--language", reference / "llm", "--projection", files / "checkpoint.pth"]
    return [*map(str, arguments), "--vision-heads", "4", "--qformer-heads", "4"]


def test_convert_prints_its_proof(reference, tmp_path):
    picture = reference / "images" / "a_97x131_rgb.png"
    done = run("convert", tmp_path / "out", *arguments_for(reference), "--image", picture, "--format", "article-3.6b")
    assert done.exit_code == 0, done.output
    for stage in ("pixel values", "image encoder", "Q-Former", "projection", "whole prompt", "tokenizer"):
        assert stage in done.output
    assert "note: The embedding table of llm is full" in done.output
    assert run("verify", tmp_path / "out").exit_code == 0


def test_convert_back(converted, tmp_path):
    done = run("convert", "--to", "minigpt4", converted.folder, tmp_path / "checkpoint.pth")
    assert done.exit_code == 0
    state = torch.load(tmp_path / "checkpoint.pth", weights_only=True)["model"]
    assert torch.equal(state["llama_proj.bias"], converted.model.model.language_projection.bias)
    with pytest.raises(ValueError, match="--to minigpt4 DIR checkpoint.pth"):
        CliRunner().invoke(app, ["convert", "--to", "lavis", "a", "b"], catch_exceptions=False)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["out"], "Give --vision and --language, or a --preset"),
        (["out", "--preset", "nonsense"], "no preset 'nonsense': choose one of rinna-3.6b"),
        (["out", "--swap-language", "d"], "needs --language"),
        (["out", "--swap-language", "d", "--vision", "v", "--language", "l"], "takes everything but"),
        (["a", "b", "--vision", "v", "--language", "l"], "One folder is made at a time"),
    ],
)
def test_what_cannot_be_meant_is_said_at_once(arguments, match, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=match):
        CliRunner().invoke(app, ["convert", *arguments], catch_exceptions=False)
    assert not list(tmp_path.iterdir())


def test_what_is_given_beside_a_preset_wins(monkeypatch, tmp_path):
    seen = {}
    monkeypatch.setattr("jminigpt4.convert.assembly.assemble", lambda **given: seen.update(given) or sys.exit(0))
    arguments = ["--preset", "rinna-4b-minigpt4", "--vision", "mine", "--no-prove", "--trust-language-code", "me/llm"]
    run("convert", tmp_path / "out", *arguments)
    assert seen["vision"] == "mine" and seen["language"] == "rinna/bilingual-gpt-neox-4b"
    assert seen["projection"].endswith("/checkpoint.pth") and seen["prompt_format"] == "rinna-4b"
    assert seen["prove_equal"] is False and seen["trust_language_code"] == "me/llm"


def test_presets_name_known_formats():
    from jminigpt4.convert.formats import prompt_format

    for parts in PRESETS.values():
        assert prompt_format(parts["prompt_format"]).name == parts["prompt_format"]
        assert parts["vision"] and parts["language"]


def test_an_existing_folder_is_not_touched(originals, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="exists already"):
        assemble(**originals, out=tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_a_full_disk_is_seen_before_anything_is_written(originals, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1_000_000})())
    with pytest.raises(OSError, match="0.0 GB free; the folder takes 0.1 GB"):
        assemble(**originals, out=tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_verify_finds_every_changed_byte(folder):
    assert verify_folder(folder) == []
    chance = random.Random(0)
    for path in sorted(folder.iterdir()):
        if path.name == "SHA256SUMS":
            continue
        good = path.read_bytes()
        place = chance.randrange(len(good))
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        assert any(path.name in problem for problem in verify_folder(folder)), path.name
        path.write_bytes(good)
    done = run("verify", folder)
    assert done.exit_code == 0
    (folder / "added.txt").write_text("x")
    done = run("verify", folder)
    assert done.exit_code == 1 and "added.txt is not listed" in done.output


def test_verify_finds_every_changed_byte_of_its_list(folder):
    """One bit at a time, a byte less and a byte more, at every place of two lines and the end."""
    manifest = folder / "SHA256SUMS"
    for path in folder.iterdir():  # the list is what is looked at; large files would only be hashed again and again
        if path.suffix == ".safetensors":
            path.unlink()
    lines = [line for line in manifest.read_bytes().splitlines(keepends=True) if b".safetensors" not in line]
    good = b"".join(lines)
    manifest.write_bytes(good)
    baseline = _manifest_problems(folder)
    assert baseline == []
    for place in [*range(len(lines[0]) + len(lines[1])), len(good) - 1]:
        for bit in (1, 4, 128):
            bad = good[:place] + bytes([good[place] ^ bit]) + good[place + 1 :]
            manifest.write_bytes(bad)
            assert _manifest_problems(folder), (place, bit)
    for bad in (good[:-1], good[1:], good + b"\n", good.replace(b"\n", b"\r\n"), b"", good[: len(good) // 2]):
        manifest.write_bytes(bad)
        assert _manifest_problems(folder), bad[-20:]
    manifest.write_bytes(good)
    assert _manifest_problems(folder) == []


def test_verify_finds_parts_that_do_not_fit(folder):
    from jminigpt4.checkpoint import write_manifest

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"image_token_id": 7, "num_query_tokens": 4}))
    write_manifest(folder)
    problems = " ".join(verify_folder(folder))
    assert "image token is 512 in the tokenizer, 7 in config.json" in problems
    assert "8 tokens for the processor, 4 in the model" in problems
    assert "model.query_tokens is (1, 8, 32); the configuration says (1, 4, 32)" in problems


# Imports torch once, then forks a child for every conversion. A conversion is a row of steps; asked to, a child stands
# still before one of them, to be killed there.
FORKED = """
import os, signal, sys
import torch
torch.set_num_threads(1)
from jminigpt4 import checkpoint
from jminigpt4.convert import assemble, assembly, writing
steps = stop = 0
def counted(original):
    def step(*arguments, **options):
        global steps
        steps += 1
        if steps == stop:
            print("standing", flush=True)
            signal.pause()
        return original(*arguments, **options)
    return step
for module, name in ((writing, "_raw_bytes"), (assembly, "_write_small_files"), (assembly, "write_card"),
                     (assembly, "write_manifest"), (checkpoint, "_flush"), (checkpoint, "_rename_over")):
    setattr(module, name, counted(getattr(module, name)))
files, out = sys.argv[1] + "/checkpoints/", sys.argv[2]
while line := sys.stdin.readline():
    stop = int(line)
    child = os.fork()
    if child == 0:
        print(os.getpid(), flush=True)
        assemble(vision=files + "eva_vit_g.pth", qformer=files + "blip2_pretrained_flant5xxl.pth",
                 language=sys.argv[1] + "/llm", projection=files + "checkpoint.pth", out=out + "/out",
                 vision_heads=4, qformer_heads=4, progress=False, prove_equal=False)
        print(steps, flush=True)
        os._exit(0)
    os.waitpid(child, 0)
    print("over", flush=True)
"""


def test_killed_at_any_moment_nothing_looks_finished(originals, reference, tmp_path):
    """One process after another is killed at another step of its conversion; what is there is whole or hidden."""
    arguments = [sys.executable, "-c", FORKED, str(reference), str(tmp_path)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:

        def convert_until(stop: int) -> str:
            """What a conversion says at its end, or standing before a step, where it is killed."""
            process.stdin.write(f"{stop}\n")
            pid, state = int(process.stdout.readline()), process.stdout.readline().strip()
            if state == "standing":
                os.kill(pid, signal.SIGKILL)
            assert process.stdout.readline() == "over\n"
            return state

        steps = int(convert_until(0))
        shutil.rmtree(tmp_path / "out")
        finished = []
        # Tensors make up most of the steps: a few kills among them, and one before each of the last ones.
        stops = [*range(1, steps, steps // 4), *range(steps - 4, steps + 1)]
        for stop in stops:
            assert convert_until(stop) == "standing"
            finished.append((tmp_path / "out").exists())
            for path in tmp_path.iterdir():
                assert path.name.startswith(".out.unfinished-") or verify_folder(path) == []
                if path.name == "out":
                    shutil.rmtree(path)
            assert len(list(tmp_path.iterdir())) == 1 - finished[-1]  # the next run removes what the last one left
        assert finished == [False] * (len(stops) - 1) + [True]
        process.stdin.close()
    assemble(**originals, out=tmp_path / "out", prove_equal=False)
    assert verify_folder(tmp_path / "out") == []
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == ["out"]


MEASURED = """
import gc, json, re, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from jminigpt4.convert import assemble, weights
weights.MAPPED_BYTES = int(sys.argv[2])
def peak():
    return int(re.findall(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[0]) * 1024
for arguments in json.loads(sys.argv[1]):
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = peak()
    assemble(**arguments, vision_heads=4, qformer_heads=4, progress=False, prove_equal=False)
    print(peak() - before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="the peak of a process is read from /proc")
def test_memory_does_not_grow_with_the_model(originals, reference, tmp_path):
    """A language model passes through less than half its size: three of its tensors and the mapped pages, of
    safetensors and of a pickle."""
    width, layers, mapped = 640, 20, 32 * 2**20
    config = json.loads((reference / "llm" / "config.json").read_text(encoding="utf-8"))
    config |= {"hidden_size": width, "intermediate_size": 1280, "num_hidden_layers": layers, "num_attention_heads": 8}
    with torch.device("meta"):
        shapes = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).state_dict()
    state = {name: torch.full(tensor.shape, 0.01) for name, tensor in shapes.items()}
    state["embed_out.weight"] = state.pop("lm_head.weight")
    size = sum(tensor.nbytes for tensor in state.values())
    largest = max(tensor.nbytes for tensor in state.values())
    runs = []
    for kind, file in (("safetensors", "model.safetensors"), ("pickle", "pytorch_model.bin")):
        folder = tmp_path / kind
        folder.mkdir()
        for name in ("spiece.model", "tokenizer_config.json"):
            shutil.copyfile(reference / "llm" / name, folder / name)
        (folder / "config.json").write_text(json.dumps(config))
        save_file(state, folder / file) if kind == "safetensors" else torch.save(state, folder / file)
        parts = {part: str(originals[part]) for part in ("vision", "qformer")}
        runs.append({**parts, "language": str(folder), "out": str(tmp_path / f"{kind}-out")})
    arguments = [sys.executable, "-c", MEASURED, json.dumps(runs), str(mapped)]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert size > 240 * 2**20
    for used in map(int, done.stdout.split()):
        assert used < 3 * largest + mapped + 64 * 2**20 < size / 2
