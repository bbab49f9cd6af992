"""Whether a folder is what was written: every byte by its SHA-256, and that its files belong together."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoProcessor

from ..checkpoint import MANIFEST, verify_manifest
from ..configuration_jminigpt4 import JMiniGPT4Config
from ..modeling_jminigpt4 import JMiniGPT4ForConditionalGeneration
from .answer_end import end_problem, stated_ends
from .stock_vision import StoredNames
from .weights import Weights
from .writing import check_finite

UNLISTED = f"is not listed in {MANIFEST}."
TELLING = ("config.json", "safetensors", "tokenizer.json", MANIFEST)


def verify_folder(folder: Path) -> list[str]:
    """Problems of a checkpoint folder, one sentence each; none if it is whole.

    Checks the SHA-256 of every file, that the weights are exactly the tensors of the configured model and finite, and
    that tokenizer, image token and embedding table fit one another.

    Raises:
        FileNotFoundError: There is no such folder, or it has no `SHA256SUMS`.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder.")
    problems = _manifest_problems(folder)
    if any(name in problem for problem in problems for name in TELLING if not problem.endswith(UNLISTED)):
        return problems  # what is not the written file has nothing to say about the others
    return problems + _weight_problems(folder) + _tokenizer_problems(folder)


def _manifest_problems(folder: Path) -> list[str]:
    try:
        problems = verify_manifest(folder)
    except ValueError:  # a line of another form, or bytes that are no text
        return [f"{MANIFEST} has changed: it is not a list of sha256sum any more."]
    # Python ends lines at more characters than sha256sum writes.
    text = (folder / MANIFEST).read_bytes()
    if text.count(b"\n") != len(text.decode().splitlines()) or b"\r" in text:
        problems.append(f"{MANIFEST} has changed: its lines do not end as sha256sum ends them.")
    return problems


def _weight_problems(folder: Path) -> list[str]:
    config = JMiniGPT4Config.from_pretrained(folder)
    with torch.device("meta"):
        model = JMiniGPT4ForConditionalGeneration(config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        expected.pop("lm_head.weight")
    stored = StoredNames(model)
    try:
        weights = Weights.from_folder(lambda name: path if (path := folder / name).is_file() else None, str(folder))
        found = {name: stored.in_memory(name) for name in weights.names()}
        problems = [f"The weights lack {name}." for name in expected if name not in found.values()]
        for name, in_memory in found.items():
            if in_memory not in expected:
                problems.append(f"The weights hold {name}, which the configured model does not have.")
            elif weights.shape(name) != expected[in_memory]:
                problems.append(f"{name} is {weights.shape(name)}; the configuration says {expected[in_memory]}.")
            else:
                problems += _finite_problems(name, weights)
    except (SafetensorError, ValueError, FileNotFoundError) as error:
        return [str(error)]
    return problems


def _finite_problems(name: str, weights: Weights) -> list[str]:
    try:
        check_finite(name, weights.read(name))
    except ValueError as error:
        return [str(error)]
    return []


def _tokenizer_problems(folder: Path) -> list[str]:
    config = JMiniGPT4Config.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    problems = []
    if processor.image_token_id != config.image_token_id:
        problems.append(
            f"The image token is {processor.image_token_id} in the tokenizer, {config.image_token_id} in config.json."
        )
    if len(processor.tokenizer) > config.text_config.vocab_size:
        rows = config.text_config.vocab_size
        problems.append(f"The tokenizer has {len(processor.tokenizer)} tokens, the embedding table {rows} rows.")
    if processor.num_query_tokens != config.num_query_tokens:
        problems.append(
            f"A picture is {processor.num_query_tokens} tokens for the processor, "
            f"{config.num_query_tokens} in the model."
        )
    if not processor.chat_template:
        problems.append("chat_template.jinja is missing or empty.")
    elif problem := end_problem(processor, stated_ends(folder)):
        problems.append(problem)
    return problems
