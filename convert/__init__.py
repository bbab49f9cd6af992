"""Public originals to one checkpoint folder, and from there to the Hub.

from jminigpt4.convert import assemble
assemble(vision="eva_vit_g.pth", qformer="blip2_pretrained_flant5xxl.pth", language="rinna/bilingual-gpt-neox-4b",
         projection="checkpoint.pth", out="jminigpt4-4b")
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .assembly import assemble, swap
    from .language_code import trust_language_code
    from .original_layout import write_minigpt4_checkpoint
    from .publishing import publish_folder, seal_folder
    from .signing import Trust
    from .space import push_space, write_space
    from .verification import verify_folder

__all__ = [
    "Trust",
    "assemble",
    "publish_folder",
    "push_space",
    "seal_folder",
    "swap",
    "trust_language_code",
    "verify_folder",
    "write_minigpt4_checkpoint",
    "write_space",
]


def __getattr__(name: str) -> Any:
    """Imports what is asked for, when it is: the command line must not load torch to print its help."""
    from importlib import import_module

    modules = {"assemble": "assembly", "swap": "assembly", "publish_folder": "publishing"}
    modules |= {"verify_folder": "verification", "write_minigpt4_checkpoint": "original_layout"}
    modules |= {"trust_language_code": "language_code", "seal_folder": "publishing"}
    modules |= {"Trust": "signing", "push_space": "space", "write_space": "space"}
    if name not in modules:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{modules[name]}", __name__), name)
