"""Conversion: this package's stream beside the originals' way, `torch.load` and `load_state_dict`.

    python benchmarks/convert.py --quick    120 million parameters, at most a minute
    python benchmarks/convert.py            EVA ViT-g, Q-Former and GPT-NeoX 3.6b, float16: 30 GB of disk, minutes

The sources are random weights under the originals' own names and in their own files (`eva_vit_g.pth` with its 40th
block and its head, `blip2_pretrained_flant5xxl.pth`, a language model folder with one `pytorch_model.bin` and the
buffers of its time, `checkpoint.pth`); they are made in a temporary folder and deleted. Each way runs in a process of
its own with the files out of the page cache. Memory is the peak of the resident set (`VmHWM`, mapped file pages
included) above what the process held after its imports.

The originals' way (MiniGPT-4: `create_eva_vit_g`, `init_Qformer`, `from_pretrained` of the language model,
`torch.load` of the projection) is given more than it had: no random initialisation before loading. Saving is counted
apart.

The last line is JSON; `memory_ratio` is their peak over ours, `equal` says that both hold the same tensors.
"""

import argparse
import gc
import json
import multiprocessing
import os
import re
import resource
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from tqdm import tqdm

TOKENIZER = Path(__file__).parent.parent / "tests" / "reference" / "tokenizer"
MIB = 2**20


class Sizes:
    """The dimensions of all parts; true ones by default."""

    vision = {"width": 1408, "mlp": 6144, "blocks": 40, "heads": 16, "image": 224}
    qformer = {"width": 768, "mlp": 3072, "layers": 12, "heads": 12, "queries": 32}
    language = {"width": 2816, "mlp": 11264, "layers": 36, "heads": 22, "vocabulary": 32000, "positions": 2048}
    foreign_projection = 4096  # `t5_proj` of blip2_pretrained_flant5xxl.pth


class QuickSizes(Sizes):
    vision = {"width": 352, "mlp": 1536, "blocks": 13, "heads": 8, "image": 224}
    qformer = {"width": 192, "mlp": 768, "layers": 4, "heads": 4, "queries": 32}
    language = {"width": 704, "mlp": 2816, "layers": 14, "heads": 11, "vocabulary": 8000, "positions": 512}
    foreign_projection = 1024


class Scratch:
    """Random tensors in a file of their own, so that making a checkpoint of 7 GB does not take 7 GB of memory."""

    def __init__(self, path: Path, nbytes: int):
        self.path = path
        self.storage: Any = torch.UntypedStorage.from_file(str(path), shared=True, nbytes=nbytes)
        self.offset = 0
        generator = torch.Generator().manual_seed(0)
        self.pool = torch.randn(2**22, generator=generator) * 0.02

    def tensor(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        count = torch.Size(shape).numel()
        made = torch.empty(0, dtype=dtype)
        made.set_(self.storage, self.offset // dtype.itemsize, (count,), (1,))
        self.offset += -(-count * dtype.itemsize // 16) * 16
        pool = self.pool.roll(self.offset % 1009).to(dtype)
        for start in range(0, count, len(pool)):
            piece = made[start : start + len(pool)]
            piece.copy_(pool[: len(piece)])
        return made.view(shape)


def linear(name: str, outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def eva_shapes(width: int, mlp: int, blocks: int, heads: int, image: int) -> dict[str, tuple[int, ...]]:
    """`eva_vit_g.pth`: MiniGPT-4's eva_vit.py, with the last block, norm and head that BLIP-2 leaves out."""
    shapes: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, width), "pos_embed": (1, (image // 14) ** 2 + 1, width)}
    shapes |= {"patch_embed.proj.weight": (width, 3, 14, 14), "patch_embed.proj.bias": (width,)}
    for i in range(blocks):
        block = f"blocks.{i}."
        shapes |= norm(block + "norm1", width) | norm(block + "norm2", width)
        shapes |= {block + "attn.q_bias": (width,), block + "attn.v_bias": (width,)}
        shapes |= {block + "attn.qkv.weight": (3 * width, width)} | linear(block + "attn.proj", width, width)
        shapes |= linear(block + "mlp.fc1", mlp, width) | linear(block + "mlp.fc2", width, mlp)
    return shapes | norm("norm", width) | linear("head", 1000, width)


def qformer_shapes(sizes: type[Sizes]) -> dict[str, tuple[int, ...]]:
    """`blip2_pretrained_flant5xxl.pth`: the Q-Former without its text branch, ln_vision, and T5's projection."""
    width, mlp, encoder = sizes.qformer["width"], sizes.qformer["mlp"], sizes.vision["width"]
    shapes: dict[str, tuple[int, ...]] = {"query_tokens": (1, sizes.qformer["queries"], width)} | norm(
        "ln_vision", encoder
    )
    shapes |= norm("Qformer.bert.embeddings.LayerNorm", width)
    for i in range(sizes.qformer["layers"]):
        layer = f"Qformer.bert.encoder.layer.{i}."
        for kind in ("attention", "crossattention")[: 2 - i % 2]:
            read = width if kind == "attention" else encoder
            shapes |= linear(f"{layer}{kind}.self.query", width, width) | norm(
                f"{layer}{kind}.output.LayerNorm", width
            )
            shapes |= linear(f"{layer}{kind}.self.key", width, read) | linear(f"{layer}{kind}.self.value", width, read)
            shapes |= linear(f"{layer}{kind}.output.dense", width, width)
        shapes |= linear(layer + "intermediate_query.dense", mlp, width) | norm(
            layer + "output_query.LayerNorm", width
        )
        shapes |= linear(layer + "output_query.dense", width, mlp)
    return shapes | linear("t5_proj", sizes.foreign_projection, width)


def language_shapes(width: int, mlp: int, layers: int, vocabulary: int, **rest: int) -> dict[str, tuple[int, ...]]:
    """`pytorch_model.bin` of a GPT-NeoX, by its names on disk."""
    shapes: dict[str, tuple[int, ...]] = {"gpt_neox.embed_in.weight": (vocabulary, width)}
    for i in range(layers):
        layer = f"gpt_neox.layers.{i}."
        shapes |= norm(layer + "input_layernorm", width) | norm(layer + "post_attention_layernorm", width)
        shapes |= linear(layer + "attention.query_key_value", 3 * width, width)
        shapes |= linear(layer + "attention.dense", width, width)
        shapes |= linear(layer + "mlp.dense_h_to_4h", mlp, width) | linear(layer + "mlp.dense_4h_to_h", width, mlp)
    return shapes | norm("gpt_neox.final_layer_norm", width) | {"embed_out.weight": (vocabulary, width)}


def make_file(path: Path, shapes: dict[str, tuple[int, ...]], dtype: torch.dtype, wrap: bool, **buffers: torch.Tensor):
    nbytes = sum(-(-torch.Size(shape).numel() * dtype.itemsize // 16) * 16 for shape in shapes.values())
    scratch = Scratch(path.with_suffix(".scratch"), nbytes)
    # One tensor, one storage, as every real checkpoint: a view would be saved with all that lies beside it.
    state = {name: scratch.tensor(shape, dtype) for name, shape in shapes.items()}
    separate = {name: _own_storage(tensor) for name, tensor in state.items()} | buffers
    torch.save({"model": separate} if wrap else separate, path)
    del state, separate
    scratch.path.unlink()


def _own_storage(tensor: torch.Tensor) -> torch.Tensor:
    start = tensor.storage_offset() * tensor.itemsize
    storage = tensor.untyped_storage()[start : start + tensor.nbytes]
    return torch.empty(0, dtype=tensor.dtype).set_(storage, 0, tensor.shape, tensor.stride())


def make_sources(folder: Path, sizes: type[Sizes]) -> dict[str, Any]:
    """Writes all four sources and returns the arguments of `assemble`."""
    language = sizes.language
    make_file(folder / "eva_vit_g.pth", eva_shapes(**sizes.vision), torch.float16, wrap=False)
    make_file(folder / "blip2_pretrained.pth", qformer_shapes(sizes), torch.float32, wrap=True)
    projection = linear("llama_proj", language["width"], sizes.qformer["width"])
    make_file(folder / "checkpoint.pth", projection, torch.float32, wrap=True)
    (folder / "llm").mkdir()
    mask = torch.ones(language["positions"], language["positions"], dtype=torch.uint8).tril()[None, None]
    masks = {f"gpt_neox.layers.{i}.attention.bias": mask.clone() for i in range(language["layers"])}
    make_file(folder / "llm" / "pytorch_model.bin", language_shapes(**language), torch.float16, wrap=False, **masks)
    (folder / "llm" / "config.json").write_text(json.dumps(language_config(language)), encoding="utf-8")
    for name in ("spiece.model", "tokenizer_config.json"):
        shutil.copyfile(TOKENIZER / name, folder / "llm" / name)
    return {
        "vision": folder / "eva_vit_g.pth",
        "qformer": folder / "blip2_pretrained.pth",
        "language": folder / "llm",
        "projection": folder / "checkpoint.pth",
        "vision_heads": sizes.vision["heads"],
        "qformer_heads": sizes.qformer["heads"],
    }


def language_config(sizes: dict[str, int]) -> dict[str, Any]:
    return {
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": "gpt_neox",
        "bos_token_id": 2,
        "eos_token_id": 3,
        "hidden_size": sizes["width"],
        "intermediate_size": sizes["mlp"],
        "num_hidden_layers": sizes["layers"],
        "num_attention_heads": sizes["heads"],
        "vocab_size": sizes["vocabulary"],
        "max_position_embeddings": sizes["positions"],
        "rotary_pct": 1.0,
        "rotary_emb_base": 10000,
        "use_parallel_residual": False,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
    }


def ours(sources: dict[str, Any], sizes: type[Sizes], out: Path) -> dict[str, float]:
    """A whole folder: tokenizer, code, card and the SHA-256 of every file included."""
    from jminigpt4.convert import assemble

    with Measurement() as measured:
        assemble(**sources, out=out, prove_equal=False, progress=False)
    return measured.result()


def originals(sources: dict[str, Any], sizes: type[Sizes], out: Path) -> dict[str, float]:
    """Every module built, every file loaded whole, `load_state_dict`, in the order of `MiniGPT4.__init__`."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(sources["language"])
    with Measurement() as measured:
        vision = _empty(transformers.Blip2VisionModel, _vision_config(sizes), torch.float32)
        vision.load_state_dict(_to_blip2(torch.load(sources["vision"], map_location="cpu", weights_only=True)), False)
        vision.half()
        loaded = torch.load(sources["qformer"], map_location="cpu", weights_only=True)["model"]
        qformer = _empty(transformers.Blip2QFormerModel, _qformer_config(sizes), torch.float32)
        qformer.load_state_dict(_to_qformer(loaded), False)
        kept = {name: loaded[name] for name in ("query_tokens", "ln_vision.weight", "ln_vision.bias")}
        del loaded
        language = _empty(transformers.GPTNeoXForCausalLM, config, torch.float16)
        file = sources["language"] / "pytorch_model.bin"
        state = torch.load(file, map_location="cpu", weights_only=True)
        state["lm_head.weight"] = state.pop("embed_out.weight")
        language.load_state_dict(state, False)
        del state
        gc.collect()
        projection = torch.nn.Linear(sizes.qformer["width"], sizes.language["width"])
        given = torch.load(sources["projection"], map_location="cpu", weights_only=True)["model"]
        projection.load_state_dict({name.removeprefix("llama_proj."): tensor for name, tensor in given.items()})
        measured.note("load")
        state = {f"model.vision_model.{name}": tensor for name, tensor in vision.state_dict().items()}
        state |= {f"model.qformer.{name}": tensor for name, tensor in qformer.state_dict().items()}
        state |= {f"model.language_projection.{name}": tensor for name, tensor in projection.state_dict().items()}
        for name, tensor in language.state_dict().items():
            state[re.sub("^gpt_neox", "model.language_model", name)] = tensor
        state["model.query_tokens"] = kept["query_tokens"]
        for kind in ("weight", "bias"):
            state[f"model.vision_model.post_layernorm.{kind}"] = kept[f"ln_vision.{kind}"].half()
        torch.save(state, out)
    return measured.result()


def _empty(kind: Any, config: Any, dtype: torch.dtype) -> torch.nn.Module:
    """A module with memory, but without the time its random initialisation would take."""
    with torch.device("meta"):
        module = kind(config).to(dtype)
    return module.to_empty(device="cpu")


def _vision_config(sizes: type[Sizes]) -> Any:
    from transformers import Blip2VisionConfig

    vision = sizes.vision
    return Blip2VisionConfig(
        hidden_size=vision["width"],
        intermediate_size=vision["mlp"],
        num_hidden_layers=vision["blocks"] - 1,
        num_attention_heads=vision["heads"],
        image_size=vision["image"],
    )


def _qformer_config(sizes: type[Sizes]) -> Any:
    from transformers import Blip2QFormerConfig

    qformer = sizes.qformer
    return Blip2QFormerConfig(
        hidden_size=qformer["width"],
        intermediate_size=qformer["mlp"],
        num_hidden_layers=qformer["layers"],
        num_attention_heads=qformer["heads"],
        encoder_hidden_size=sizes.vision["width"],
    )


def _to_blip2(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    renamed = {}
    for name, tensor in state.items():
        if name.endswith("attn.v_bias"):
            continue
        if name.endswith("attn.q_bias"):
            tensor = torch.cat([tensor, torch.zeros_like(tensor), state[name.replace("q_bias", "v_bias")]])
        name = (
            name.replace("q_bias", "qkv.bias")
            .replace("blocks", "encoder.layers")
            .replace("attn.proj", "attn.projection")
        )
        name = name.replace(".attn.", ".self_attn.").replace(".norm", ".layer_norm")
        name = name.replace("cls_token", "embeddings.class_embedding").replace(
            "pos_embed", "embeddings.position_embedding"
        )
        renamed[name.replace("patch_embed.proj", "embeddings.patch_embedding")] = tensor
    return renamed


def _to_qformer(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    inside = {name.removeprefix("Qformer.bert."): tensor for name, tensor in state.items() if "Qformer" in name}
    return {
        name.replace("embeddings.LayerNorm", "layernorm").replace(".self.", ".attention."): t
        for name, t in inside.items()
    }


class Measurement:
    """CPU and wall seconds, and the peak of the resident set above where it began; all of this process (Linux)."""

    def __enter__(self) -> "Measurement":
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        self.base = _resident("VmHWM")
        self.marks: dict[str, float] = {}
        self.started = (_cpu(), time.perf_counter())
        return self

    def note(self, name: str):
        self.marks |= {f"{name}_cpu_s": _cpu() - self.started[0]}
        self.marks |= {f"{name}_wall_s": time.perf_counter() - self.started[1]}

    def __exit__(self, *error: object):
        self.note("total")

    def result(self) -> dict[str, float]:
        return {"peak_mib": (_resident("VmHWM") - self.base) / MIB, **self.marks}


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _resident(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(re.findall(rf"{field}:\s+(\d+) kB", status)[0]) * 1024


def run(way: str, sources: dict[str, Any], sizes: type[Sizes], out: Path) -> dict[str, float]:
    """One way in a process of its own, on files that have to be read from the disk."""
    for path in sources["vision"].parent.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    process = context.Process(target=_child, args=(way, sources, sizes, out, queue))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{way} ended with exit status {process.exitcode}")
    return queue.get()


def _child(way: str, sources: dict[str, Any], sizes: type[Sizes], out: Path, queue: Any):
    # Where memory does run out, this process is the one to go.
    Path("/proc/self/oom_score_adj").write_text("1000")
    torch.set_num_threads(1)
    import transformers.modeling_utils  # noqa: F401  (both ways begin with the same imports)

    import jminigpt4.convert.assembly  # noqa: F401

    queue.put({"ours": ours, "originals": originals}[way](sources, sizes, out))


def same_tensors(folder: Path, file: Path) -> tuple[bool, int, int]:
    """Whether both outputs hold the same, the number of parameters, and the bytes of the largest tensor."""
    theirs = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    equal, parameters, largest, names = True, 0, 0, set()
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118  (not a dict)
                tensor = opened.get_tensor(name)
                equal &= name in theirs and torch.equal(tensor, theirs[name]) and tensor.dtype == theirs[name].dtype
                parameters += tensor.numel()
                largest = max(largest, tensor.nbytes)
                names.add(name)
    return equal and names == set(theirs), parameters, largest


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="120 million parameters: at most a minute")
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made [the system's own place]")
    options = parser.parse_args()
    torch.set_num_threads(1)
    sizes = QuickSizes if options.quick else Sizes
    results = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        sources = make_sources(Path(temporary), sizes)
        outputs = {"ours": Path(temporary) / "out", "originals": Path(temporary) / "out.pth"}
        for way, out in tqdm(outputs.items(), desc="ways", disable=None):
            results[way] = run(way, sources, sizes, out)
        equal, parameters, largest = same_tensors(outputs["ours"], outputs["originals"])
    report(results, equal, parameters, largest, options.quick)


def report(results: dict[str, dict[str, float]], equal: bool, parameters: int, largest: int, quick: bool):
    bound = (3 * largest + 2**30) / MIB
    print(f"{parameters / 1e6:.0f} million parameters, largest tensor {largest / MIB:.0f} MiB, tensors equal: {equal}")
    print(f"{'':28}{'peak MiB':>10}{'CPU s':>8}{'wall s':>8}")
    for label, way, mark in (
        ("ours, folder complete", "ours", "total"),
        ("originals, loaded", "originals", "load"),
        ("originals, loaded and saved", "originals", "total"),
    ):
        values = results[way]
        print(f"{label:28}{values['peak_mib']:10.0f}{values[f'{mark}_cpu_s']:8.1f}{values[f'{mark}_wall_s']:8.1f}")
    print(f"bound: three of the largest tensor and 1 GiB = {bound:.0f} MiB")
    mine, theirs = results["ours"], results["originals"]
    summary = {
        "benchmark": "convert",
        "scale": "quick" if quick else "true",
        "parameters": parameters,
        "equal": equal,
        "memory_ratio": theirs["peak_mib"] / mine["peak_mib"],
        "cpu_ratio": theirs["total_cpu_s"] / mine["total_cpu_s"],
        "wall_ratio": theirs["total_wall_s"] / mine["total_wall_s"],
        "within_bound": mine["peak_mib"] <= bound,
        **results,
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
