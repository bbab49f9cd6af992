"""Japanese MiniGPT-4 as a Hugging Face package: importing it registers the model with transformers' Auto classes."""

import sys
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .configuration_jminigpt4 import JMiniGPT4Config
    from .image_processing_jminigpt4 import JMiniGPT4ImageProcessor
    from .modeling_jminigpt4 import JMiniGPT4ForConditionalGeneration, JMiniGPT4Model
    from .processing_jminigpt4 import JMiniGPT4Processor

__version__ = "0.1.0"

# The embedded miniature checkpoint.
DEMO = Path(__file__).parent / "demo"

__all__ = [
    "DEMO",
    "JMiniGPT4Config",
    "JMiniGPT4ForConditionalGeneration",
    "JMiniGPT4ImageProcessor",
    "JMiniGPT4Model",
    "JMiniGPT4Processor",
]


def __getattr__(name: str) -> Any:
    if name.startswith("JMiniGPT4") and name in __all__:
        register()
        return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def register():
    """Registers the model's classes with transformers' Auto classes. Importing the package does it, except in the
    programs `jminigpt4` and `llm`, where a verb or a model does it once it is called."""
    transformers = import_module("transformers")
    kinds = ("configuration", "modeling", "image_processing", "processing")
    modules = [import_module(f".{kind}_jminigpt4", __name__) for kind in kinds]
    globals().update({name: getattr(module, name) for module in modules for name in __all__ if hasattr(module, name)})
    config, model = JMiniGPT4Config, JMiniGPT4ForConditionalGeneration
    # Two registrations each: one finds the class when a folder is loaded, the other copies its file when one is saved.
    transformers.AutoConfig.register(config.model_type, config, exist_ok=True)
    for task in ("", "ForCausalLM", "ForImageTextToText", "ForMultimodalLM"):
        getattr(transformers, f"AutoModel{task}").register(config, model, exist_ok=True)
    image_processors: dict[str, type] = {"pil": JMiniGPT4ImageProcessor}
    transformers.AutoImageProcessor.register(config, image_processor_classes=image_processors, exist_ok=True)
    transformers.AutoProcessor.register(config, JMiniGPT4Processor, exist_ok=True)
    config.register_for_auto_class()
    JMiniGPT4Model.register_for_auto_class("AutoModel")
    model.register_for_auto_class("AutoModelForImageTextToText")
    JMiniGPT4ImageProcessor.register_for_auto_class()
    JMiniGPT4Processor.register_for_auto_class()
    for pushed in (model, JMiniGPT4Processor):
        _complete_saving(pushed)


def _complete_saving(cls: Any):
    """`push_to_hub` of the installed package's classes also writes the card and `SHA256SUMS`; and a folder that
    `save_pretrained` changes does not keep its signature."""
    push, save = cls.push_to_hub, cls.save_pretrained
    if "push_to_hub" in vars(cls):
        return

    @wraps(push)
    def push_to_hub(self: Any, repo_id: str, **options: Any) -> Any:
        from .convert.pushing import complete_repository

        commit = push(self, repo_id, **options)
        if not options.get("create_pr"):  # what a pull request will be merged into is not known
            source = getattr(self, "name_or_path", None) or self.tokenizer.name_or_path
            complete_repository(commit.repo_url.repo_id, source, options.get("token"), options.get("revision"))
        return commit

    @wraps(save)
    def save_pretrained(self: Any, save_directory: Any, *arguments: Any, **options: Any) -> Any:
        from .checkpoint import drop_seals

        if dropped := drop_seals(save_directory):
            from .inference.loading import note

            note(f"{' and '.join(dropped)} of {save_directory} were of what was there before and are removed.")
        return save(self, save_directory, *arguments, **options)

    cls.push_to_hub, cls.save_pretrained = push_to_hub, save_pretrained


# A test runner may import this file under the name of the checkout folder; a second registration would then give the
# Auto classes other classes than `import jminigpt4` gives. And transformers takes seconds to import, which
# `jminigpt4 --help`, and `llm`, which imports its plugins at every start, need not wait for.
if __name__ == "jminigpt4" and Path(sys.argv[0]).stem not in ("jminigpt4", "llm"):
    register()
