"""Which prompt format a model was trained with, as far as its sources tell, and the combinations known by name."""

import json
from typing import Any

from .sources import CONVERSION, LAVIS, OWN, Source

# Known combinations, spelt once. The Hub's BLIP-2 holds the weights of eva_vit_g.pth and of
# blip2_pretrained_flant5xxl.pth. The article's own projection for 3.6b was never released.
PRESETS: dict[str, dict[str, str]] = {
    "rinna-3.6b": {
        "vision": "Salesforce/blip2-flan-t5-xxl",
        "language": "rinna/japanese-gpt-neox-3.6b",
        "prompt_format": "article-3.6b",
    },
    "rinna-4b-minigpt4": {
        "vision": "Salesforce/blip2-flan-t5-xxl",
        "language": "rinna/bilingual-gpt-neox-4b",
        "projection": "rinna/bilingual-gpt-neox-4b-minigpt4/checkpoint.pth",
        "prompt_format": "rinna-4b",
    },
    "minigpt4-vicuna-7b": {
        "vision": "Salesforce/blip2-flan-t5-xxl",
        "language": "Vision-CAIR/vicuna-7b",
        # The spelling is that of the file.
        "projection": "spaces/Vision-CAIR/minigpt4/prerained_minigpt4_7b.pth",
        "prompt_format": "minigpt4",
    },
}


def preset(name: str) -> dict[str, str]:
    """Sources and prompt format of a known combination, as keyword arguments of [`jminigpt4.convert.assemble`].

    Raises:
        ValueError: There is no such combination.
    """
    if name not in PRESETS:
        raise ValueError(f"There is no preset {name!r}: choose one of {', '.join(PRESETS)}.")
    return PRESETS[name]


def recognise_format(language: Source, projection: Source | None, tokenizer: Any) -> str:
    """Name of the prompt format: what a folder of ours was made with, or else what its parts tell.

    MiniGPT-4's own projections were trained with `###Human:`, the article's and rinna's with `ユーザー:`, where the
    line break is `<NL>` if the tokenizer knows none (3.6b). Models tuned with ChatML keep it; the rest get `plain`.
    """
    account = language.folder / CONVERSION if language.folder and language.layout is OWN else None
    if account is not None and account.is_file():
        return json.loads(account.read_text(encoding="utf-8"))["prompt_format"]
    if projection is not None and projection.layout is LAVIS and projection.weights.matching(r"llama_model\."):
        return "minigpt4"
    ids = tokenizer("あ\nい", add_special_tokens=False)["input_ids"]
    if "\n" not in tokenizer.decode(ids):
        return "article-3.6b"
    if "<|im_start|>" in tokenizer.get_vocab():
        return "chatml"
    return "rinna-4b" if language.config.get("model_type") == "gpt_neox" else "plain"
