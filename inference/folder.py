"""The folder of a checkpoint as a user names it, and what is checked in it before anything of it is loaded. It may be
a stranger's: every file is looked at first, no code of its own is run, and each fault is one sentence."""

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from .. import JMiniGPT4Config, JMiniGPT4Processor
from ..checkpoint import check_not_pointer, is_hub_id, read_json_object, user_path
from .schemas import check_config, check_files

SMALL_FILES = ("*.json", "*.jinja", "*.txt", "*.model", "SHA256SUMS")
WEIGHTS = ("model.safetensors", "model-*.safetensors")
LONGEST_REASON = 300


def checkpoint_folder(model: str | Path, weights: bool = True) -> Path:
    """The folder a user means: on this machine, or fetched from the Hub. What looks like a path is never sought there.

    Args:
        model: A folder, or a repository `user/name` on the Hub.
        weights: Whether its weights are needed too; else they are not fetched.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: It is a file.
        OSError: The repository cannot be reached.
    """
    path = user_path(model)
    if path.is_dir():
        return path
    if path.exists():
        raise ValueError(f"{path} is a file: name the folder of the checkpoint.")
    if not is_hub_id(str(model)):
        raise FileNotFoundError(f"No folder {path}: name a checkpoint folder, or user/name on the Hub.")
    try:
        return Path(snapshot_download(str(model), allow_patterns=[*SMALL_FILES, *(WEIGHTS if weights else ())]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise OSError(
            f"{model} is no folder here, and the Hub does not give it ({type(error).__name__}): check the spelling, "
            "the connection, and for a private one `hf auth login`."
        ) from None


def read_config(folder: Path) -> JMiniGPT4Config:
    """Configuration of a checkpoint, after all its JSON files were checked.

    Raises:
        ValueError: The folder holds no checkpoint of Japanese MiniGPT-4, or a file states what it may not.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder} holds no config.json: it is no checkpoint. `jminigpt4 convert` makes one.")
    stated = read_json_object(path)
    check_config(stated, path)
    check_files(folder)
    with readable(path):
        config: Any = JMiniGPT4Config.from_dict(stated)
    config.name_or_path = str(folder)
    return config


def read_processor(folder: Path) -> JMiniGPT4Processor:
    """Processor of a checkpoint; its chat template renders.

    Raises:
        ValueError: One of its files is missing or damaged.
    """
    for name in ("processor_config.json", "tokenizer.json", "chat_template.jinja"):
        if (folder / name).exists():
            check_not_pointer(folder / name)
    with readable(folder, "tokenizer or image processor"):
        processor = JMiniGPT4Processor.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    if processor.chat_template:
        question: Any = [{"role": "user", "content": [{"type": "text", "text": "?"}]}]
        with readable(folder / "chat_template.jinja"):
            processor.apply_chat_template(question, add_generation_prompt=True)
    return processor


def processor_problems(processor: JMiniGPT4Processor, config: JMiniGPT4Config) -> list[str]:
    """Where tokenizer and processor do not fit the model, one sentence each."""
    problems = []
    if processor.image_token_id != config.image_token_id:
        problems.append(
            f"The image token is {processor.image_token_id} in the tokenizer, {config.image_token_id} in config.json."
        )
    rows = config.get_text_config().vocab_size
    if len(processor.tokenizer) > rows:
        problems.append(f"The tokenizer has {len(processor.tokenizer)} tokens, the embedding table {rows} rows.")
    if processor.num_query_tokens != config.num_query_tokens:
        problems.append(
            f"A picture is {processor.num_query_tokens} tokens for the processor, "
            f"{config.num_query_tokens} in the model."
        )
    return problems


def refusal(folder: Path, problems: Iterable[str]) -> str:
    """One sentence of how many faults a checkpoint has, which, and what to do."""
    problems = list(problems)
    more = f" … and {len(problems) - 3} more" if len(problems) > 3 else ""
    return (
        f"{folder} is not whole, {len(problems)} of its parts do not fit: {' '.join(problems[:3])}{more} "
        "Get it anew; `jminigpt4 verify` lists all."
    )


@contextmanager
def readable(path: Path, what: str = "") -> Generator[None]:
    """Whatever the libraries make of a damaged or hostile file becomes one sentence that names it.

    Raises:
        ValueError: Anything was raised within, whatever it was.
    """
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:LONGEST_REASON].removesuffix(".") or type(error).__name__
        of = f"The {what} of {path}" if what else str(path)
        raise ValueError(f"{of} cannot be used: {reason}. Get it anew.") from None
