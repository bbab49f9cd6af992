"""A saved folder in the hands of a stranger: a fresh process, offline, that has never heard of the package."""

import json
import os
import subprocess
import sys
import textwrap

import pytest
import torch
from PIL import Image
from transformers.dynamic_module_utils import get_imports, get_relative_imports

from jminigpt4.checkpoint import CODE_FILES

PROGRAM = """
    import importlib.util, json, sys
    from pathlib import Path

    if sys.argv[2] == "stranger":
        # An editable install answers through a finder; without it the package does not exist here.
        sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
        sys.path = [
            path for path in sys.path if not path.startswith("__editable__") and not Path(path, "jminigpt4").is_dir()
        ]
        assert importlib.util.find_spec("jminigpt4") is None
    else:
        import jminigpt4

    import torch
    from PIL import Image
    from safetensors.torch import load_file
    from transformers import (
        AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, pipeline,
    )

    folder = sys.argv[1]
    trust = {"trust_remote_code": True}
    config = AutoConfig.from_pretrained(folder, **trust)
    processor = AutoProcessor.from_pretrained(folder, **trust)
    models = [
        cls.from_pretrained(folder, **trust)
        for cls in (AutoModel, AutoModelForImageTextToText, AutoModelForCausalLM)
    ]
    expected = load_file(Path(folder).parent / "expected.safetensors")
    picture = Image.new("RGB", (40, 30), "orange")
    messages = [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "何色?"}]}]
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert torch.equal(inputs["input_ids"], expected["input_ids"])
    for model in models:
        assert model.config.model_type == config.model_type == "jminigpt4"
        assert torch.equal(model(**inputs).logits, expected["logits"])
        buffers = dict(model.named_buffers())
        assert {f"buffer.{name}" for name in buffers} == {name for name in expected if name.startswith("buffer.")}
        assert all(torch.equal(buffer, expected[f"buffer.{name}"]) for name, buffer in buffers.items())

    answer = processor.post_process_image_text_to_text(
        models[1].generate(**inputs, max_new_tokens=5)[:, inputs["input_ids"].shape[1]:]
    )[0]
    pipe = pipeline("image-text-to-text", model=folder, **trust)
    options = {"max_new_tokens": 5, "return_full_text": False}
    prompt = "<s>ユーザー: <IMG><ImageHere></IMG> 何色?<NL>システム: "
    spoken = [
        pipe(text=messages, **options)[0]["generated_text"],
        pipe(text=prompt, images=picture, **options)[0]["generated_text"],
        *(each[0]["generated_text"] for each in pipe(text=[messages, messages], batch_size=2, **options)),
    ]
    assert spoken == [answer] * 4, (answer, spoken)
    print(json.dumps({"answer": answer}))
"""


@pytest.fixture(scope="module")
def folder(make_model, processor, tmp_path_factory):
    from safetensors.torch import save_file

    path = tmp_path_factory.mktemp("stranger") / "checkpoint"
    model = make_model()
    model.save_pretrained(path)
    processor.save_pretrained(path)
    picture = Image.new("RGB", (40, 30), "orange")
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "何色?"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    tensors = {f"buffer.{name}": buffer for name, buffer in model.named_buffers()}
    with torch.no_grad():
        tensors |= {"input_ids": inputs["input_ids"], "logits": model(**inputs).logits}
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path.parent / "expected.safetensors")
    return path


def test_folder_is_complete(folder):
    assert {path.name for path in folder.iterdir()} == {
        "chat_template.jinja",
        "config.json",
        "configuration_jminigpt4.py",
        "generation_config.json",
        "image_processing_jminigpt4.py",
        "language_jminigpt4.py",
        "model.safetensors",
        "modeling_jminigpt4.py",
        "processing_jminigpt4.py",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vision_jminigpt4.py",
    }
    auto_map = json.loads((folder / "config.json").read_text())["auto_map"]
    assert set(auto_map) == {
        "AutoConfig",
        "AutoImageProcessor",
        "AutoModel",
        "AutoModelForCausalLM",
        "AutoModelForImageTextToText",
        "AutoModelForMultimodalLM",
        "AutoProcessor",
    }


def test_hub_files_need_nothing_but_transformers_torch_and_pillow(folder):
    allowed = {"torch", "transformers", "PIL", "numpy", "huggingface_hub"}
    taken = {f"{part}_jminigpt4" for part in ("configuration", "image_processing", "language", "vision")}
    for name in CODE_FILES:
        assert set(get_imports(folder / name)) <= allowed | set(sys.stdlib_module_names)
        assert set(get_relative_imports(folder / name)) <= taken


@pytest.mark.parametrize("reader", ["stranger", "friend"])
def test_loads_in_a_fresh_process(folder, tmp_path, reader):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH" or "jminigpt4" not in value}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules"), "OMP_NUM_THREADS": "1"}
    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), str(folder), reader],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stderr[-3000:]
    assert json.loads(child.stdout.splitlines()[-1])["answer"]
