"""What is cited for a checkpoint: the method always; the article and rinna's release where the model is of theirs."""

from .account import Account

# The authors' own words for each: https://zenn.dev/rinna/articles/5fad41e3f2a401, the cards of the repositories on the
# Hub ("How to cite"), and arXiv.
WORKS = {
    "article": """@misc{rinna2023japaneseminigpt4,
  title  = {{Japanese MiniGPT-4: rinna 3.6bとBLIP-2を組み合わせてマルチモーダルチャットのモデルを作る}},
  author = {{rinna}},
  year   = {2023},
  month  = {7},
  url    = {https://zenn.dev/rinna/articles/5fad41e3f2a401}
}""",
    "release": """@misc{rinna-bilingual-gpt-neox-4b-minigpt4,
  title  = {rinna/bilingual-gpt-neox-4b-minigpt4},
  author = {Mitsuda, Koh and Zhao, Tianyu and Sawada, Kei},
  url    = {https://huggingface.co/rinna/bilingual-gpt-neox-4b-minigpt4}
}""",
    "minigpt4": """@misc{zhu2023minigpt4,
  title         = {{MiniGPT-4: Enhancing Vision-Language Understanding with Advanced Large Language Models}},
  author        = {Zhu, Deyao and Chen, Jun and Shen, Xiaoqian and Li, Xiang and Elhoseiny, Mohamed},
  year          = {2023},
  eprint        = {2304.10592},
  archivePrefix = {arXiv}
}""",
    "blip2": """@misc{li2023blip2,
  title         = {{BLIP-2: Bootstrapping Language-Image Pre-training with Frozen Image Encoders and
                   Large Language Models}},
  author        = {Li, Junnan and Li, Dongxu and Savarese, Silvio and Hoi, Steven},
  year          = {2023},
  eprint        = {2301.12597},
  archivePrefix = {arXiv}
}""",
}  # fmt: skip
RELEASE = "rinna/bilingual-gpt-neox-4b-minigpt4"


def citation(account: Account, japanese: bool) -> str:
    """BibTeX, as Markdown, of what a checkpoint rests on.

    Args:
        japanese: Whether it speaks Japanese: then it follows the article.
    """
    repos = {source.get("repo") for source in account.sources.values()}
    chosen = ["minigpt4", "blip2"]
    chosen = [*(["article"] if japanese else []), *(["release"] if RELEASE in repos else []), *chosen]
    return "```bibtex\n" + "\n\n".join(WORKS[name] for name in chosen) + "\n```"
