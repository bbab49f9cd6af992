"""Stage 7: the article's second stage, on the finished miniature: describe, mend, sort out, train on what is left.

`python refine.py WORK` has `demo/` describe drawings of the training artists with `jminigpt4 refine`, whose editor is
a server in this process that mends by rule (no language model is needed), trains the projection on from there with
`jminigpt4 train --recipe stage2` -> WORK/refine/model, and asks both models about the unseen artists' drawings with
`jminigpt4 evaluate`, and for texts as such data is made of -> WORK/stages.json. `demo/` stays as it is.
"""

import json
import random
import re
import subprocess
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Annotated

import typer
from benchmark import lines_about, questions_about, unseen_places, write_pictures
from drawings import HERE, Drawing, read_drawings
from scenes import TRAINING, UNSEEN
from wordings import DESCRIPTION, NO_PICTURE, SMALL_TALK, UNKNOWN

from jminigpt4.checkpoint import finished_folder
from jminigpt4.japanese_text import health
from jminigpt4.refine.describing import PROMPTS
from jminigpt4.refine.editing import GIVEN_UP

DEMO = HERE.parent.parent / "demo"
BEFORE, AFTER = "the demo before stage 2", "the demo after stage 2"
WORDINGS = [argument for prompt in DESCRIPTION if prompt for argument in ("--prompt", prompt)]
ASKED = ("name", "kind", "description")  # what a second stage must not cost
DRAWINGS = 2  # of a concept, at most: all of them would take six times as long
EXAMINED = 300  # of the drawings of each unseen artist, chosen at random
SHORTEST = 18  # characters: the miniature's descriptions are two short sentences
SENTENCE = re.compile(r"[^。!?！？]+[。!?！？]")
# Sentences that say nothing of a picture, which the model falls into when it is asked to go on.
IDLE = {each for text in (UNKNOWN, NO_PICTURE, *SMALL_TALK.values()) for each in SENTENCE.findall(text)}
SAME_END = 4  # characters by which two sentences say the same kind of thing


def mended(text: str) -> str:
    """What a careful editor would leave of a text of the miniature: whole sentences about the picture, none that
    answers a question that nobody asked, and of those that end alike, which say the same or contradict each other, the
    first."""
    kept: dict[str, str] = {}
    for sentence in SENTENCE.findall(text):
        if sentence not in IDLE:
            kept.setdefault(sentence[:-1][-SAME_END:], sentence)
    return "".join(kept.values()) or GIVEN_UP


class _Editor(BaseHTTPRequestHandler):
    """OpenAI's chat completions, answered by [`mended`]; tokens are counted as characters."""

    def do_GET(self):
        self._send({"object": "list", "data": [{"id": "rules", "object": "model"}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        text = body["messages"][-1]["content"]
        message = {"role": "assistant", "content": mended(text)}
        usage = {"prompt_tokens": len(text), "completion_tokens": len(message["content"])}
        self._send({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage})

    def _send(self, answer: dict):
        content = json.dumps(answer, ensure_ascii=False).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args):
        """Nothing: a line for each text is too much."""


@contextmanager
def editor() -> Generator[str]:
    """The editor on a free port of this machine; gives its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Editor)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()


def jminigpt4(*arguments: str | Path):
    """A verb of the package.

    Raises:
        SystemExit: It did not end well.
    """
    command = [sys.executable, "-m", "jminigpt4.cli", *map(str, arguments)]
    if subprocess.run(command, check=False).returncode:
        raise SystemExit(f"stopped in: jminigpt4 {arguments[0]}. The same command goes on from there.")


def write_training_pictures(work: Path, folder: Path):
    """Some of the training artists' drawings of each listed concept, on white."""
    if folder.exists():
        return
    of_concept: dict[str, list[Drawing]] = {}
    for drawing in read_drawings(work / "drawings.jsonl"):
        if drawing.artist in TRAINING and drawing.listed:
            of_concept.setdefault(drawing.concept, []).append(drawing)
    chance = random.Random(0)
    chosen = [each for own in of_concept.values() for each in chance.sample(own, min(DRAWINGS, len(own)))]
    with finished_folder(folder) as unfinished:
        for _ in write_pictures(chosen, unfinished):
            pass


def write_questions(work: Path, folder: Path) -> dict[str, list[Path]]:
    """Two benchmarks an unseen artist: names, kinds and descriptions; descriptions, asked for as [`refine`] asks."""
    drawings = read_drawings(work / "drawings.jsonl")
    questions, files = questions_about(unseen_places(drawings), drawings), {}
    for artist in UNSEEN:
        places = [place for place in questions if drawings[place].artist == artist]
        places = sorted(random.Random(0).sample(places, min(EXAMINED, len(places))))
        pictures = write_pictures([drawings[place] for place in places], folder / artist)
        asked: list[str] = []
        described: list[str] = []
        for number, (place, (drawing, picture)) in enumerate(zip(places, pictures, strict=True)):
            about = [each for each in questions[place] if each[0] in ASKED]
            asked += lines_about(drawing, picture, about)
            prompt = PROMPTS[number % len(PROMPTS)]
            reworded = [(exam, prompt, answer) for exam, _, answer in about if exam == "description"]
            described += lines_about(drawing, picture, reworded)
        files[artist] = [folder / f"{artist}-asked.jsonl", folder / f"{artist}-described.jsonl"]
        for file, lines in zip(files[artist], (asked, described), strict=True):
            file.write_text("".join(lines), encoding="utf-8")
    return files


def examined(model: Path, files: dict[str, list[Path]], output: Path) -> dict[str, dict]:
    """What `evaluate` says of a model about each artist: exact names and categories, chrF of descriptions in the
    miniature's wording and in `refine`'s (`described`), and the health of the latter."""
    benchmarks = [argument for pair in files.values() for file in pair for argument in ("-b", file)]
    jminigpt4("evaluate", model, *benchmarks, "-o", output, "--controls", "0")
    scores = json.loads((output / "scores.json").read_text(encoding="utf-8"))
    result = {}
    for artist, (asked, described) in files.items():
        kinds = scores["categories"][asked.stem]["category"]
        result[artist] = {
            **{kind: [value / 100 for value in _cell(kinds[kind], "exact match")] for kind in ("name", "kind")},
            "description": _cell(kinds["description"], "chrF"),
            "described": _cell([row for row in scores["benchmarks"] if row["name"] == described.stem], "chrF"),
            "health": scores["health"][described.stem],
        }
    return result


def _cell(scores: list[dict], metric: str) -> list[float]:
    """Value and interval of the score whose name begins so."""
    score = next(each for each in scores if each["metric"].startswith(metric))
    return [score["value"], score["low"], score["high"]]


def asked_to_go_on(model: Path, folders: list[Path], output: Path) -> dict[str, dict]:
    """Health of the texts of each folder's pictures as stage-2 data begins: sampled, and asked to go on."""
    jminigpt4("refine", model, *folders, "--output", output, *WORDINGS)
    texts = [json.loads(line) for line in (output / "described.jsonl").read_text(encoding="utf-8").splitlines()]
    return {
        folder.name: health(
            [text["text"] for text in texts if Path(text["picture"]).parent == folder],
            [text["cut_off"] for text in texts if Path(text["picture"]).parent == folder],
        ).as_dict()
        for folder in folders
    }


def second_stage(work: Annotated[Path, typer.Argument(help="folder for everything the recipe makes")]) -> None:
    """Make stage-2 data, train on it, and compare both models."""
    folder = work / "refine"
    folder.mkdir(exist_ok=True)
    write_training_pictures(work, folder / "pictures")
    refined, model = folder / "refined", folder / "model"
    with editor() as address:
        jminigpt4(
            "refine", DEMO, folder / "pictures", "--output", refined, "--editor", address, "--editor-model", "rules",
            "--min-characters", str(SHORTEST), *WORDINGS,
        )  # fmt: skip
    if not model.exists():
        # Each text with the wording that it answers; the drawings as they are, which the recipe would crop as it does
        # photographs, for four times the encoding.
        jminigpt4(
            "train", DEMO, refined / "rows.jsonl", "--recipe", "stage2", "--set", "augmentation=false",
            "--output", folder / "run", "--cache", folder / "features", "--export", model,
        )  # fmt: skip
    files = write_questions(work, folder)
    stages = {}
    for name, which in ((BEFORE, DEMO), (AFTER, model)):
        stages[name] = examined(which, files, folder / f"{which.name}-examined")
        longer = asked_to_go_on(which, [folder / artist for artist in UNSEEN], folder / f"{which.name}-longer")
        for artist, cells in stages[name].items():
            cells["longer"] = longer[artist]
    (work / "stages.json").write_text(json.dumps(stages, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(second_stage)
