"""Every verb, on the demo: nothing on stderr but its own lines and progress. Libraries have much to say there."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import jminigpt4

# One process for all of them, as importing takes longest; stderr of each is that of the whole process.
PROGRAM = """
import json, os, sys
from pathlib import Path
from jminigpt4.cli import main

said = []
for words in json.loads(sys.argv[1]):
    kept = os.dup(2)
    with open("stderr", "wb") as file:
        os.dup2(file.fileno(), 2)
    sys.argv = ["jminigpt4", *words]
    try:
        main()
        code = 0
    except SystemExit as ended:
        code = ended.code
    sys.stderr.flush()
    os.dup2(kept, 2)
    os.close(kept)
    said.append([words[0], code, Path("stderr").read_text(encoding="utf-8")])
Path("said.json").write_text(json.dumps(said), encoding="utf-8")
"""
# tqdm's, drawn over itself
BAR = re.compile(r"^(query features|train|\w+: pictures|rows|stair-captions|Fetching .*): +\d+%\|")


@pytest.fixture(scope="module")
def said(tmp_path_factory) -> dict[str, tuple[int, list[str]]]:
    """Verb to exit status and lines on stderr."""
    folder, demo = tmp_path_factory.mktemp("quiet"), str(jminigpt4.DEMO)
    pictures = sorted(Path(demo, "samples").glob("*.png"))[:2]
    rows = [{"image": str(each), "question": "何?", "answer": f"{each.stem}の絵です。"} for each in pictures]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "rows.jsonl").write_text(text, encoding="utf-8")
    images = [{"id": number, "file_name": each.name} for number, each in enumerate(pictures)]
    captions = [{"id": number, "image_id": number, "caption": "絵 ."} for number in range(len(pictures))]
    text = json.dumps({"images": images, "annotations": captions}, ensure_ascii=False)
    (folder / "captions.json").write_text(text, encoding="utf-8")
    benchmarks = ["-b", "rows.jsonl", "-b", "stair-captions=captions.json"]
    verbs = [
        ["env"],
        ["chat", demo, "何が写っていますか?", "--image", str(pictures[0]), "--max-new-tokens", "4"],
        ["serve-command", demo],
        ["verify", demo],
        ["data", "rows.jsonl"],
        ["features", demo, "cache", "rows.jsonl"],
        ["train", demo, "rows.jsonl", "--cache", "cache", "--max-steps", "2", "--export", "trained"],
        ["evaluate", demo, *benchmarks, "--images", str(Path(demo, "samples")), "--max-new-tokens", "4", "--json"],
        ["convert", demo, "checkpoint.pth", "--to", "minigpt4"],
    ]
    root = str(Path(jminigpt4.__file__).parent.parent)
    paths = [root if Path(root, "jminigpt4").is_dir() else "", os.getenv("PYTHONPATH")]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(verbs)],
        cwd=folder, env=environment, capture_output=True, text=True, encoding="utf-8",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads((folder / "said.json").read_text(encoding="utf-8"))
    lines = {verb: (code, re.split(r"[\r\n]+", text)) for verb, code, text in found}
    return {verb: (code, [line for line in each if line.strip()]) for verb, (code, each) in lines.items()}


@pytest.mark.parametrize(
    "verb", ["env", "chat", "serve-command", "verify", "data", "features", "train", "evaluate", "convert"]
)
def test_only_its_own_lines(said, verb):
    code, lines = said[verb]
    assert code == 0, lines
    assert [line for line in lines if not BAR.match(line)] == []
