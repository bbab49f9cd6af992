"""Makes an environment for the tests of this folder, this one with Ray, S3's driver and an S3 server on loopback:
`python tests/scale/environment.py FOLDER`.

About 450 MB and two minutes of downloads: torch, transformers and pyarrow are those of the environment this runs in,
and the package is installed in place. `FOLDER/bin/python -m pytest tests/scale` runs the tests.
"""

import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
ADDED = ("ray[data]>=2.50", "aiohttp", "s3fs", "moto[server]>=5", "boto3")


def make_environment(folder: Path) -> Path:
    """Creates a virtual environment in `folder` that sees the libraries of this one, and returns its interpreter.

    Raises:
        subprocess.CalledProcessError: A package cannot be installed.
    """
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    show = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own = Path(subprocess.run([python, "-c", show], check=True, capture_output=True, text=True).stdout.strip())
    shared = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (own / "shared.pth").write_text("".join(f"{path}\n" for path in shared), encoding="utf-8")
    subprocess.run([python, "-m", "pip", "install", "-q", *ADDED], check=True)
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", "--editable", str(ROOT)], check=True)
    subprocess.run([python, "-c", "import jminigpt4, moto.server, ray.data, s3fs"], check=True)
    return python


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print(make_environment(Path(sys.argv[1])))
