"""Makes an environment for the tests of this folder, this one with TRL: `python tests/trainers/environment.py FOLDER`.

TRL is all that is downloaded: torch, transformers, peft and datasets are those of the environment this runs in, and
the package is installed in place. `FOLDER/bin/python -m pytest tests/trainers` runs the tests.
"""

import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
# Without dependencies, which this environment has: none of its libraries is to be replaced.
ADDED = ("trl>=1.16,<2", "--editable", str(ROOT))


def make_environment(folder: Path) -> Path:
    """Creates a virtual environment in `folder` that sees the libraries of this one, and returns its interpreter.

    Raises:
        subprocess.CalledProcessError: A package cannot be installed, or TRL does not take the libraries as they are.
    """
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    show = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own = Path(subprocess.run([python, "-c", show], check=True, capture_output=True, text=True).stdout.strip())
    shared = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (own / "shared.pth").write_text("".join(f"{path}\n" for path in shared), encoding="utf-8")
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", *ADDED], check=True)
    subprocess.run([python, "-c", "from trl import DPOTrainer, GRPOTrainer, SFTTrainer"], check=True)
    return python


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print(make_environment(Path(sys.argv[1])))
