"""Which prompt format a model was trained with, as far as its sources tell, and the combinations known by name."""

from typing import Any

from .account import Account
from .checks import one_of
from .sources import JMINIGPT4, LAVIS, Source

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
    return one_of("preset", name, PRESETS)


def recognise_format(language: Source, projection: Source | None, tokenizer: Any) -> str:
    """Name of the prompt format: what a checkpoint of this package was made with, or else what its parts tell.

    MiniGPT-4's own projections were trained with `###Human:`, the article's and rinna's with `ユーザー:`, where the
    line break is `<NL>` if the tokenizer knows none (3.6b). Models tuned with ChatML keep it; the rest get `plain`.
    """
    if language.layout is JMINIGPT4 and language.folder is not None:
        stated = Account.read(language.folder).prompt_format
        if stated is not None:
            return stated
    if projection is not None and projection.layout is LAVIS and projection.weights.matching(r"llama_model\."):
        return "minigpt4"
    ids = tokenizer("あ\nい", add_special_tokens=False)["input_ids"]
    if "\n" not in tokenizer.decode(ids):
        return "article-3.6b"
    if "<|im_start|>" in tokenizer.get_vocab():
        return "chatml"
    return "rinna-4b" if language.config.get("model_type") == "gpt_neox" else "plain"
