"""Where a part comes from: a local file, a local folder or the Hub, and which of the known layouts its weights have.

Every tensor of a source is used, or on the list of those known to be of no use, or the conversion stops and names it:
a tensor left behind in silence is a model that is wrong in silence.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from ..checkpoint import is_hub_id, read_json_object, user_path
from .licences import LICENCE_TEXTS
from .stock_vision import stock_vision_config
from .weights import Weights

WEIGHT_FILES = (".pth", ".pt", ".bin", ".safetensors")
# What a folder holds besides its weights: small, and fetched at once.
SOURCE_FILES = ["*.json", "*.model", "*.txt", "*.jinja", "README.md", *LICENCE_TEXTS]

# Buffers that old versions of transformers saved with every attention; today's compute them.
LEGACY_BUFFERS = {
    r"(.*\.)?(attn|attention)\.(bias|masked_bias)$": "causal mask of an attention",
    r"(.*\.)?(rotary_emb\.)?inv_freq$": "frequencies of the rotary embedding",
    r"(.*\.)?position_ids$": "0, 1, 2, …",
}
# BLIP-2 was pre-trained with a text branch in the Q-Former and with heads (LAVIS, blip2_qformer.py); MiniGPT-4 removes
# them before loading (mini_gpt4.py, `init_Qformer`).
LAVIS_IGNORABLE = {
    r"Qformer\.bert\.embeddings\.(word_embeddings|position_embeddings)\.weight$": "text branch",
    r"Qformer\.bert\.encoder\.layer\.\d+\.(intermediate|output)\.": "text branch",
    r"Qformer\.cls\.": "head of the text branch",
    r"(vision_proj|text_proj|itm_head)\.": "head of the pre-training",
    r"temp$": "temperature of the pre-training",
    r"(t5_proj|opt_proj|llm_proj)\.": "projection for another language model",
    r"(t5_model|opt_model|llm_model|llama_model|gpt_neox_model)\.": "another language model",
}
EVA_IGNORABLE = {
    r"(visual_encoder\.)?(norm|fc_norm)\.": "last norm, which BLIP-2 leaves out",
    r"(visual_encoder\.)?(head|lm_head|mask_token)": "head of the pre-training",
    r"(logit_scale|text\.|visual\.head)": "text tower of CLIP",
}
BLIP2_IGNORABLE = {
    r"language_projection\.": "projection for another language model",
    r"language_model\.": "another language model",
    r"qformer\.encoder\.layer\.\d+\.(intermediate|output)\.": "text branch",
    r"(qformer\.)?embeddings\.": "text branch",
    r"(vision_projection|text_projection|itm_head)\.": "head of the pre-training",
}
STOCK_VISION_IGNORABLE = {
    r"(text_model|text_projection)\.": "text tower",
    r"logit_(scale|bias)$": "temperature of the pre-training",
    r"(visual_projection|classifier|decoder)\.": "head of the pre-training",
}


@dataclass(frozen=True, eq=False)
class Layout:
    """Names of one kind of checkpoint: which tensors belong to which part, and which are of no use and why."""

    name: str
    parts: dict[str, str]
    ignorable: dict[str, str]


EVA = Layout("EVA", {"vision": r"(cls_token$|pos_embed$|patch_embed\.|blocks\.)"}, EVA_IGNORABLE)
LAVIS = Layout(
    "LAVIS",
    {
        "vision": r"visual_encoder\.",
        "qformer": r"(Qformer\.bert\.|query_tokens$|ln_vision\.)",
        "projection": r".*llama_proj\.",
    },
    {**LEGACY_BUFFERS, **LAVIS_IGNORABLE, **EVA_IGNORABLE},
)
BLIP2 = Layout(
    "BLIP-2 of transformers",
    {"vision": r"vision_model\.", "qformer": r"(qformer\.|query_tokens$)"},
    {**LEGACY_BUFFERS, **BLIP2_IGNORABLE},
)
BLIP2_VISION = Layout("image encoder of BLIP-2", {"vision": ""}, LEGACY_BUFFERS)
QFORMER = Layout("Q-Former", {"qformer": ""}, {})
TIMM = Layout("timm", {"vision": ""}, {})
STOCK_VISION = Layout("vision model of transformers", {"vision": ""}, {**LEGACY_BUFFERS, **STOCK_VISION_IGNORABLE})
JMINIGPT4 = Layout(
    "jminigpt4",
    {
        "vision": r"model\.(vision_model|vision_layernorm)\.",
        "qformer": r"model\.(qformer|query_tokens|vision_layernorm)|model\.vision_model\.post_layernorm\.",
        "language": r"(model\.language_model\.|lm_head\.)",
        "projection": r"model\.language_projection\.",
    },
    {},
)
LANGUAGE = Layout("causal language model", {"language": ""}, LEGACY_BUFFERS)
PROJECTION_FILE = Layout("projection", {"projection": ""}, {})
TWO_LAYERS = {f"linear_{number}.{kind}" for number in (1, 2) for kind in ("weight", "bias")}


@dataclass
class Source:
    """One opened source.

    Attributes:
        name: What the user called it.
        layout: Which of the layouts its weights have.
        weights: Its tensors.
        config: Its `config.json`, empty for a bare file.
        folder: Where its small files lie; `None` for a bare file.
        repo: Id of the Hub repository it comes from.
        commit: Commit of that repository.
        readme: Its card.
    """

    name: str
    layout: Layout
    weights: Weights
    config: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    repo: str | None = None
    commit: str | None = None
    readme: Path | None = None
    parts: set[str] = field(default_factory=set)

    @property
    def public_name(self) -> str:
        """Name without the folders of this machine: a Hub id as it is, of a local path the last part."""
        return user_path(self.name).name if user_path(self.name).exists() else self.name

    def need_folder(self) -> Path:
        """The folder of small files, where the part cannot do without.

        Raises:
            ValueError: The source is a bare file.
        """
        if self.folder is None:
            raise ValueError(f"{self.name} is a single file: give the folder it belongs to.")
        return self.folder

    def unaccounted(self) -> list[str]:
        """Tensors neither used nor known to be of no use, nor of a part that was not asked for."""
        left = [key for key in self.weights.names() if key not in self.weights.taken]
        left = [key for key in left if not any(re.match(pattern, key) for pattern in self.layout.ignorable)]
        others = [pattern for part, pattern in self.layout.parts.items() if part not in self.parts]
        return [key for key in left if not any(re.match(pattern, key) for pattern in others)]

    def ignored(self) -> dict[str, int]:
        """Why tensors were left out, and how many each time."""
        counts: dict[str, int] = {}
        for key in self.weights.names():
            if key in self.weights.taken:
                continue
            for pattern, reason in self.layout.ignorable.items():
                if re.match(pattern, key):
                    counts[reason] = counts.get(reason, 0) + 1
                    break
        return counts


def open_source(name: str | os.PathLike) -> Source:
    """Opens a local file or folder, or a Hub repository, and recognises what it is.

    Args:
        name: A path; a Hub id `USER/NAME`, optionally with `@REVISION`; a file of one, `USER/NAME/FILE.pth`, or of a
            Space, `spaces/USER/NAME/FILE.pth`; or `timm:NAME` for timm's own weights on the Hub. A local path wins
            over a Hub id of the same spelling.

    Raises:
        FileNotFoundError: There is neither such a path nor such a repository.
        ValueError: It is none of the known layouts.
    """
    name, path = os.fspath(name), user_path(name)
    if path.is_file():
        return _open_file(name, path)
    if path.is_dir():
        return _open_folder(name, path, lambda file: _local(path / file))
    return _open_from_hub(name)


def open_checkpoint(name: str | os.PathLike) -> Source:
    """Opens a checkpoint of this package; see [`open_source`].

    Raises:
        ValueError: It is something else.
    """
    source = open_source(name)
    if source.layout is not JMINIGPT4:
        raise ValueError(
            f"{name} ({source.layout.name}) is no checkpoint of jminigpt4: make one with `jminigpt4 convert` first."
        )
    return source


def _local(path: Path) -> Path | None:
    return path if path.is_file() else None


def _read_config(path: Path) -> dict[str, Any]:
    config = read_json_object(path)
    if not isinstance(config.get("model_type", ""), str):
        raise ValueError(f"{path} states a model_type that is no text: {config['model_type']!r}.")
    return config


def _open_file(name: str, path: Path) -> Source:
    weights = Weights.from_file(path)
    folder_config = path.parent / "config.json" if path.suffix == ".safetensors" else None
    config = {}
    if folder_config is not None and folder_config.is_file():
        config = _read_config(folder_config)
    return Source(name, _recognise(weights, name, config), weights, config)


def _open_folder(name: str, folder: Path, fetch: Callable[[str], Path | None]) -> Source:
    config_file = folder / "config.json"
    if not config_file.is_file():
        files = sorted(file.name for file in folder.iterdir() if file.suffix in WEIGHT_FILES)
        hint = f"; it holds {', '.join(files)}: name the file itself" if files else ""
        raise FileNotFoundError(f"{name} has no config.json{hint}.")
    config = _read_config(config_file)
    weights = Weights.from_folder(fetch, name)
    readme = _local(folder / "README.md")
    return Source(name, _recognise(weights, name, config), weights, config, folder, readme=readme)


def _open_from_hub(name: str) -> Source:
    repo, _, revision = name.removeprefix("timm:").partition("@")
    repo = f"timm/{repo}" if name.startswith("timm:") else repo
    kind = "space" if repo.startswith("spaces/") else "model"
    parts = repo.removeprefix("spaces/").split("/")
    repo, file = "/".join(parts[:2]), "/".join(parts[2:])
    if not is_hub_id(repo) or (file and not file.endswith(WEIGHT_FILES)) or (kind == "space" and not file):
        raise FileNotFoundError(f"{name} does not exist, and is no Hub id (USER/NAME or USER/NAME/FILE.pth) either.")
    try:
        if file:
            path = Path(hf_hub_download(repo, file, repo_type=kind, revision=revision or None))
            source, folder = _open_file(name, path), path.parents[file.count("/")]
            source.readme = _readme(repo, folder.name) if kind == "model" else None
        else:
            folder = Path(snapshot_download(repo, revision=revision or None, allow_patterns=SOURCE_FILES))
            source = _open_folder(name, folder, partial(_fetch, repo, folder.name))
    except (RepositoryNotFoundError, EntryNotFoundError, HFValidationError, OSError) as error:
        if isinstance(error, FileNotFoundError) and not isinstance(error, EntryNotFoundError):
            raise  # found on the Hub, but without what makes it a checkpoint
        raise FileNotFoundError(
            f"{name} is no local path, and the Hub does not give it ({type(error).__name__}): check the spelling, the "
            "connection, and for a private one `hf auth login`."
        ) from None
    source.repo, source.commit = repo if kind == "model" else None, folder.name
    return source


def _readme(repo: str, commit: str) -> Path | None:
    try:
        return Path(hf_hub_download(repo, "README.md", revision=commit))
    except EntryNotFoundError:  # there is none, or it cannot be had just now: it only states the licence
        return None


def _fetch(repo: str, commit: str, file: str) -> Path | None:
    try:
        return Path(hf_hub_download(repo, file, revision=commit))
    except LocalEntryNotFoundError:
        raise FileNotFoundError(f"{file} of {repo} could not be downloaded: check the connection.") from None
    except EntryNotFoundError:
        return None


def _recognise(weights: Weights, name: str, config: dict[str, Any]) -> Layout:
    """The layout, from the model type where there is a config, else from the names of the tensors."""
    if set(weights.names()) in (
        {"weight", "bias"},
        TWO_LAYERS,
    ):  # also where it lies beside the config of a whole model
        return PROJECTION_FILE
    model_type = config.get("model_type")
    if model_type == "jminigpt4":
        return JMINIGPT4
    if model_type in ("blip-2", "blip_2", "instructblip", "instructblipvideo"):
        return BLIP2
    if model_type == "blip_2_vision_model":
        return BLIP2_VISION
    if model_type == "blip_2_qformer":
        return QFORMER
    if model_type == "timm_wrapper" or "architecture" in config:
        is_eva = str(config.get("architecture", "")).startswith("eva_giant_patch14")
        return EVA if is_eva and "cls_token" in weights else TIMM
    if model_type is not None:
        return LANGUAGE if stock_vision_config(config) is None else STOCK_VISION
    if weights.matching(r".*llama_proj\.") or weights.matching(r"(Qformer\.|visual_encoder\.)"):
        return LAVIS
    if "cls_token" in weights and weights.matching(r"blocks\.0\.attn\."):
        return EVA
    shown = ", ".join(weights.names()[:3])
    raise ValueError(
        f"{name} is none of the known kinds of checkpoint (its tensors: {shown}, …). Known are LAVIS and MiniGPT-4 "
        ".pth files, folders of transformers with their config.json, timm_wrapper folders, and projection files."
    )
