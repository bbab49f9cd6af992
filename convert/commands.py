"""The verbs `convert`, `verify` and `publish`."""

from pathlib import Path
from typing import Annotated, Any

import typer

Sign = Annotated[
    str | None,
    typer.Option(
        metavar="KEY.pem|sigstore",
        help="Sign the folder with this private key of an elliptic curve, or through Sigstore with your identity. The "
        "key's password: JMINIGPT4_SIGN_PASSWORD, or you are asked.",
    ),
]
Aibom = Annotated[
    bool, typer.Option("--aibom", help="Write a bill of materials into the folder, CycloneDX 1.6: aibom.cdx.json.")
]


def convert(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="OUT", help="The folder to be made. With --to: the folder to be read, and the file to be made."
        ),
    ],
    vision: Annotated[
        str | None,
        typer.Option(
            help="Image encoder: eva_vit_g.pth, a folder or Hub id of BLIP-2, CLIP, SigLIP, ViT …, timm:NAME."
        ),
    ] = None,
    qformer: Annotated[
        str | None,
        typer.Option(help="Q-Former: blip2_pretrained_….pth, a BLIP-2 folder or Hub id (default: that of --vision)."),
    ] = None,
    language: Annotated[str | None, typer.Option(help="Language model: any causal one, folder or Hub id.")] = None,
    projection: Annotated[
        str | None, typer.Option(help="Trained projection: checkpoint.pth, projection.safetensors (default: fresh).")
    ] = None,
    prompt_format: Annotated[
        str | None, typer.Option("--format", help="Prompt format: a name, own, or a file (default: recognised).")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="A known combination: rinna-3.6b, rinna-4b-minigpt4, minigpt4-vicuna-7b.")
    ] = None,
    swap_language: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Take all but the language model from this checkpoint."),
    ] = None,
    trust_language_code: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Run the code of this language model's own repository; of no other."),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="float16, bfloat16 or float32 (default: the language model's); for GGUF q8_0 too."),
    ] = None,
    vision_heads: Annotated[int | None, typer.Option(help="Heads of an image encoder of unpublished size.")] = None,
    qformer_heads: Annotated[int | None, typer.Option(help="Heads of a Q-Former of unpublished size.")] = None,
    image: Annotated[list[Path] | None, typer.Option(help="Prove with this picture too; may be repeated.")] = None,
    prove: Annotated[bool, typer.Option(help="Load the folder and compare it with its sources.")] = True,
    sign: Sign = None,
    aibom: Aibom = False,
    to: Annotated[
        str | None,
        typer.Option(help="'minigpt4': write the projection of DIR as .pth; 'gguf': its language model as .gguf."),
    ] = None,
):
    """Make one checkpoint folder out of the public originals, and prove that it is equal to them."""
    from PIL import Image

    from .account import Account
    from .assembly import assemble, swap
    from .recognition import preset as named_preset
    from .sealing import open_seal, seal

    if to is not None:
        if sign or aibom:
            raise ValueError("--sign and --aibom are for a checkpoint folder, which --to does not make.")
        _write_other_format(to, paths, dtype)
        return
    if len(paths) != 1:
        raise ValueError(f"One folder is made at a time, got {' '.join(map(str, paths))}.")
    signer = open_seal(sign, aibom, paths[0])
    chosen: dict[str, Any] = dict(named_preset(preset)) if preset else {}
    given = {"vision": vision, "qformer": qformer, "language": language, "projection": projection}
    given["prompt_format"] = prompt_format
    chosen |= {name: value for name, value in given.items() if value is not None}
    options: dict[str, Any] = {"dtype": dtype, "prove_equal": prove, "trust_language_code": trust_language_code}
    options["pictures"] = [Image.open(path) for path in image or []]
    if swap_language:
        if set(chosen) - {"language", "prompt_format"}:
            raise ValueError("--swap-language takes everything but --language and --format from its folder.")
        if "language" not in chosen:
            raise ValueError("--swap-language needs --language, the model to be swapped in.")
        proof = swap(swap_language, out=paths[0], **chosen, **options)
    else:
        missing = [name for name in ("vision", "language") if name not in chosen]
        if missing:
            raise ValueError(f"Give {' and '.join('--' + name for name in missing)}, or a --preset.")
        proof = assemble(out=paths[0], vision_heads=vision_heads, qformer_heads=qformer_heads, **chosen, **options)
    if proof is not None:
        typer.echo(proof.table())
    seal(paths[0], signer, paths[0].name if aibom else None)
    for note in Account.read(paths[0]).all_notes(paths[0]):
        typer.echo(f"note: {note}")
    typer.echo(f"{paths[0]} is complete. Try it: jminigpt4 chat {paths[0]} --image PICTURE")


def _write_other_format(name: str, paths: list[Path], dtype: str | None):
    if name == "minigpt4" and len(paths) == 2 and dtype is None:
        from .original_layout import write_minigpt4_checkpoint

        typer.echo(
            f"{write_minigpt4_checkpoint(paths[0], paths[1])}: the projection of {paths[0]}, as MiniGPT-4 loads it."
        )
    elif name == "gguf" and len(paths) == 2:
        from .gguf import write_gguf

        typer.echo(
            f"{write_gguf(paths[0], paths[1], dtype)}: the language model of {paths[0]}, as llama.cpp loads it."
        )
    else:
        raise ValueError("Write as: --to minigpt4 DIR checkpoint.pth, or --to gguf DIR OUT.gguf [--dtype q8_0]")


def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A checkpoint folder.")],
    renew: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE", help="List this document anew, which was edited: README.md, a licence, …; may be repeated."
        ),
    ] = None,
    key: Annotated[
        Path | None, typer.Option(metavar="PUBLIC.pem", help="It has to be signed with the private half of this key.")
    ] = None,
    identity: Annotated[
        str | None,
        typer.Option(help="It has to be signed through Sigstore by this identity: a mail address, a workflow."),
    ] = None,
    issuer: Annotated[
        str | None, typer.Option(metavar="URL", help="Who vouches for --identity: an OpenID Connect issuer.")
    ] = None,
):
    """Check every file of a checkpoint folder by its SHA-256, that its parts fit one another, and who signed it."""
    from ..checkpoint import SIGNATURE
    from .signing import Trust
    from .verification import renew_documents, verify_folder

    trust = Trust(key, identity, issuer) if key or identity or issuer else None
    if renew:
        renew_documents(folder, renew)
    problems = verify_folder(folder, trust)
    for problem in problems:
        typer.echo(problem, err=True)
    if problems:
        raise typer.Exit(1)
    typer.echo(f"{folder} is whole: files, weights and tokenizer are as they were written.")
    if trust:
        typer.echo(f"{SIGNATURE} was made by {trust.name}, over every file but the card, scores and SHA256SUMS.")
    elif (folder.expanduser() / SIGNATURE).is_file():
        typer.echo(f"{SIGNATURE} is there and was not checked: give --key PUBLIC.pem, or --identity and --issuer.")


def publish(
    model: Annotated[
        str,
        typer.Argument(metavar="DIR", help="A checkpoint folder. With --space: a model on the Hub, or `demo`."),
    ],
    repo: Annotated[
        str | None,
        typer.Argument(
            metavar="USER/NAME",
            help="Repository on the Hub. Without it, --sign, --aibom and --space write here alone.",
        ),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="The repository is to be private.")] = False,
    dataset: Annotated[
        list[str] | None, typer.Option(help="Hub id of what the projection was trained on; may be repeated.")
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Files of the repository that stay, though the folder has none such."),
    ] = None,
    replace_card: Annotated[
        bool, typer.Option("--replace-card", help="Overwrite a card that was edited on the Hub.")
    ] = False,
    sign: Sign = None,
    aibom: Aibom = False,
    space: Annotated[
        Path | None,
        typer.Option(metavar="OUT", help="Make this folder, a Space with a page about the model DIR, and push that."),
    ] = None,
):
    """Make a repository on the Hub equal to a checkpoint folder, with its card and its code, in one commit."""
    from ..checkpoint import AIBOM, SIGNATURE
    from .publishing import publish_folder, seal_folder

    if space is not None:
        of_models = {"--dataset": dataset, "--keep": keep, "--sign": sign, "--aibom": aibom}
        if given := [option for option, value in of_models.items() if value]:
            raise ValueError(f"--space takes no {given[0]}.")
        _publish_space(model, space, repo, private, replace_card)
        return
    if repo is None:
        if not (sign or aibom) or private or keep or replace_card:
            raise ValueError("Give the repository too: jminigpt4 publish DIR USER/NAME.")
        seal_folder(Path(model), sign, aibom, dataset or [])
        typer.echo(f"{model}: {' and '.join(name for name, there in ((AIBOM, aibom), (SIGNATURE, sign)) if there)}")
        return
    published = publish_folder(Path(model), repo, private, dataset or [], keep or [], replace_card, sign, aibom)
    _echo(published, repo, model)


def _publish_space(model: str, out: Path, repo: str | None, private: bool, replace_card: bool):
    from .space import push_space, write_space

    write_space(model, out)
    typer.echo(f"{out} is a Space. Try it: pip install -r {out}/requirements.txt; python {out}/app.py")
    if repo is not None:
        _echo(push_space(out, repo, private, replace_card), repo, out)


def _echo(published: Any, repo: str, folder: Path | str):
    if published.deleted:
        typer.echo(f"deleted there, as {folder} has them not: {', '.join(published.deleted)}")
    if published.private:
        typer.echo(f"{repo} is private.")
    typer.echo(published.url)
