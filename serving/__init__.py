"""This package inside a serving engine: `vllm serve FOLDER` finds it by itself and needs no options for it.

An entry point of group `vllm.general_plugins` calls [`register`] in every process of vLLM. No code of the checkpoint
is run, clients send nothing special: [`vllm_plugin`] says what else vLLM must know.
"""

ARCHITECTURE = "JMiniGPT4ForConditionalGeneration"

# vLLM's internals change from one minor version to the next. These were tried.
VLLM_VERSIONS = ("0.32",)


def register():
    """Tells vLLM of the model; harmless when it is called again, and to other models.

    An unknown version of vLLM learns of the name only, and is refused by [`__getattr__`] when it serves a checkpoint.
    """
    import vllm

    is_known = ".".join(vllm.__version__.split(".")[:2]) in VLLM_VERSIONS
    home = f"{__name__}.vllm_plugin" if is_known else __name__
    vllm.ModelRegistry.register_model(ARCHITECTURE, f"{home}:JMiniGPT4ForVLLM")
    if is_known:
        from .vllm_plugin import install

        install()


def __getattr__(name: str):
    if name != "JMiniGPT4ForVLLM":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import vllm

    raise ImportError(
        f"jminigpt4 serves with vLLM {' and '.join(VLLM_VERSIONS)}, found {vllm.__version__}. Remedy: "
        f"pip install 'vllm=={VLLM_VERSIONS[-1]}.*'"
    )
