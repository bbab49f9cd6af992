"""Japanese MiniGPT-4 as a Hugging Face package: importing it registers the model with transformers' Auto classes."""

# A test runner may import this file under the name of the checkout folder; a second registration would then give
# the Auto classes other classes than `import jminigpt4` gives. Only the real name does the work.
if __name__ == "jminigpt4":
    from pathlib import Path

    from transformers import (
        AutoConfig,
        AutoImageProcessor,
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoModelForMultimodalLM,
        AutoProcessor,
    )

    from .configuration_jminigpt4 import JMiniGPT4Config
    from .modeling_jminigpt4 import JMiniGPT4ForConditionalGeneration, JMiniGPT4Model
    from .processing_jminigpt4 import JMiniGPT4ImageProcessor, JMiniGPT4Processor

    __version__ = "0.1.0"

    # The embedded miniature checkpoint.
    DEMO = Path(__file__).parent / "demo"

    # Two registrations each: one finds the class when a folder is loaded, the other copies its file when one is saved.
    AutoConfig.register(JMiniGPT4Config.model_type, JMiniGPT4Config, exist_ok=True)
    for auto_class in (AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM):
        auto_class.register(JMiniGPT4Config, JMiniGPT4ForConditionalGeneration, exist_ok=True)
    AutoImageProcessor.register(
        JMiniGPT4Config, image_processor_classes={"pil": JMiniGPT4ImageProcessor}, exist_ok=True
    )
    AutoProcessor.register(JMiniGPT4Config, JMiniGPT4Processor, exist_ok=True)
    JMiniGPT4Config.register_for_auto_class()
    JMiniGPT4Model.register_for_auto_class("AutoModel")
    JMiniGPT4ForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")
    JMiniGPT4ImageProcessor.register_for_auto_class()
    JMiniGPT4Processor.register_for_auto_class()

    __all__ = [
        "DEMO",
        "JMiniGPT4Config",
        "JMiniGPT4ForConditionalGeneration",
        "JMiniGPT4ImageProcessor",
        "JMiniGPT4Model",
        "JMiniGPT4Processor",
    ]
