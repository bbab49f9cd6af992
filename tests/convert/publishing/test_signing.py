"""A signed checkpoint: what a signature covers, what it finds, whom it refuses, and where it does not survive."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from transformers import AutoModelForImageTextToText, AutoProcessor
from typer.testing import CliRunner

from jminigpt4 import DEMO
from jminigpt4.checkpoint import AIBOM, MANIFEST, SIGNATURE, read_manifest, write_manifest
from jminigpt4.cli import app
from jminigpt4.convert import Trust, assemble, publish_folder, seal_folder, verify_folder
from jminigpt4.convert.sealing import seal
from jminigpt4.convert.signing import open_signer
from jminigpt4.train.export import export

REPO = "tester/signed"
MADE_BY = "model.sig was made by the private key of"


def write_key(folder, name, key=None, password=None):
    """`NAME.pem` and `NAME.public.pem`; returns both paths."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    lock = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    private, public = folder / f"{name}.pem", folder / f"{name}.public.pem"
    private.write_bytes(key.private_bytes(pem, pkcs8, lock))
    private.chmod(0o600)
    public.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    return private, public


@pytest.fixture(scope="session")
def keys(tmp_path_factory):
    """The publisher's key and another's, private and public."""
    folder = tmp_path_factory.mktemp("keys")
    return write_key(folder, "mine"), write_key(folder, "other")


@pytest.fixture
def folder(tiny_folder, tmp_path):
    return Path(shutil.copytree(tiny_folder(), tmp_path / "checkpoint"))


@pytest.fixture
def signed(folder, keys):
    seal(folder, open_signer(str(keys[0][0]), folder), "me/model")
    return folder


def run(*arguments):
    done = CliRunner().invoke(app, [str(each) for each in arguments])
    return done.exit_code, done.output, str(done.exception or "")


def problems(folder, keys, whose=0):
    return verify_folder(folder, Trust(keys[whose][1]))


def list_anew(folder):
    """What somebody does who changed a folder and knows of `SHA256SUMS`."""
    write_manifest(folder)


def test_a_signed_demo_is_verified_by_this_package_and_by_the_librarys_own_command(keys, tmp_path):
    (private, public), (_, other) = keys
    demo = Path(shutil.copytree(DEMO, tmp_path / "demo", ignore=shutil.ignore_patterns("__pycache__")))
    seal(demo, open_signer(str(private), demo))
    code, output, _ = run("verify", demo, "--key", public)
    assert code == 0 and f"{MADE_BY} {public}, over every file but the card, scores and SHA256SUMS." in output
    assert read_manifest(demo / MANIFEST).keys() >= {SIGNATURE, "model.safetensors"}

    command = [sys.executable, "-m", "model_signing", "verify", "key", str(demo)]
    command += ["--signature", str(demo / SIGNATURE), "--public_key"]
    theirs = subprocess.run([*command, str(public)], capture_output=True, text=True)
    assert theirs.returncode == 0, theirs.stderr
    assert subprocess.run([*command, str(other)], capture_output=True).returncode != 0

    code, output, _ = run("verify", demo)
    assert code == 0 and "model.sig is there and was not checked: give --key PUBLIC.pem" in output
    code, output, _ = run("verify", demo, "--key", other)
    assert code == 1 and output == f"model.sig was not made by the private key of {other}.\n"

    weights = demo / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    list_anew(demo)
    code, output, _ = run("verify", demo, "--key", public)
    assert code == 1 and output == "model.sig is of another model.safetensors than is here.\n"
    assert subprocess.run([*command, str(public)], capture_output=True).returncode != 0


def test_an_unsigned_folder_is_silent_without_a_key_and_refused_with_one(folder, keys):
    code, output, _ = run("verify", folder)
    assert code == 0 and "model.sig" not in output
    assert problems(folder, keys) == ["model.sig is missing: the folder is not signed."]


@pytest.mark.parametrize("name", ["config.json", "modeling_jminigpt4.py", "tokenizer.json", "conversion.json", AIBOM])
def test_a_changed_byte_is_found_though_it_is_listed(signed, keys, name):
    content = bytearray((signed / name).read_bytes())
    content[-2] ^= 1
    (signed / name).write_bytes(content)
    list_anew(signed)
    expected = f"model.sig is of another {name} than is here."
    assert expected in verify_folder(signed)  # without a key, too
    assert expected in problems(signed, keys)


@pytest.mark.parametrize("name", ["chat_template.jinja", "language_jminigpt4.py"])
def test_a_removed_file_is_found_though_it_is_not_listed(signed, keys, name):
    (signed / name).unlink()
    list_anew(signed)
    assert f"model.sig covers {name}, which is not here." in problems(signed, keys)


@pytest.mark.parametrize(
    "name", ["evil.py", "adapter_config.json", ".github/evil.py", ".gitignore", ".eval_results/evil.py", "a/README.md"]
)
def test_an_added_file_is_found_though_it_is_listed(signed, keys, name):
    (signed / name).parent.mkdir(exist_ok=True)
    (signed / name).write_text("evil")
    list_anew(signed)
    assert problems(signed, keys) == [f"model.sig does not cover {name}."]


def test_card_and_scores_may_change(signed, keys):
    (signed / "README.md").write_text("another card")
    (signed / "scores.json").write_text("{}")
    (signed / ".eval_results").mkdir()
    (signed / ".eval_results" / "one.yaml").write_text("[]")
    (signed / ".gitattributes").write_text("* text=auto\n")
    list_anew(signed)
    assert problems(signed, keys) == []


def test_a_signature_of_another_folder_is_refused(signed, keys, tiny_folder, tmp_path):
    other = Path(shutil.copytree(tiny_folder(1), tmp_path / "other"))
    shutil.copyfile(signed / SIGNATURE, other / SIGNATURE)
    list_anew(other)
    assert "model.sig is of another model.safetensors than is here." in problems(other, keys)


def test_a_forged_statement_is_refused(signed, keys):
    """The list in the signature is rewritten to fit a changed file: then it is not the list that was signed."""
    import base64

    (signed / "config.json").write_text((signed / "config.json").read_text() + " ")
    (signed / AIBOM).unlink()
    list_anew(signed)
    bundle = json.loads((signed / SIGNATURE).read_text())
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    listed = read_manifest(signed / MANIFEST)
    resources = [each for each in statement["predicate"]["resources"] if each["name"] != AIBOM]
    statement["predicate"]["resources"] = [{**each, "digest": listed[each["name"]]} for each in resources]
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()
    (signed / SIGNATURE).write_text(json.dumps(bundle))
    list_anew(signed)
    assert verify_folder(signed) == []  # nobody but the key can tell
    assert problems(signed, keys) == [f"model.sig was not made by the private key of {keys[0][1]}."]


def test_a_signature_that_leaves_out_code_is_not_enough(folder, keys):
    """The library lets a signer pass over files; here all count, whoever signed."""
    from model_signing import hashing, signing

    config = signing.Config().use_elliptic_key_signer(private_key=keys[0][0])
    ignored = ["README.md", MANIFEST, SIGNATURE, "modeling_jminigpt4.py"]
    config.set_hashing_config(hashing.Config().set_ignored_paths(paths=ignored))
    config.sign(folder, folder / SIGNATURE)
    list_anew(folder)
    assert problems(folder, keys) == ["model.sig does not cover modeling_jminigpt4.py."]


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff", b'{"dsseEnvelope": {"payload": "e30="}}'])
def test_what_is_no_signature_is_said(folder, keys, content):
    (folder / SIGNATURE).write_bytes(content)
    list_anew(folder)
    assert problems(folder, keys) == ["model.sig is no signature of model-signing."]


def test_a_broken_list_of_files_does_not_hide_behind_a_signature(signed, keys):
    (signed / MANIFEST).write_text("nothing\n")
    assert problems(signed, keys) == ["SHA256SUMS has changed: it is not a list of sha256sum any more."]


def test_how_it_was_signed_and_how_it_is_checked_have_to_agree(signed):
    trust = Trust(identity="me@example.org", issuer="https://accounts.example.org")
    assert verify_folder(signed, trust) == ["model.sig was made with a key: check it with --key."]
    for half in (["--identity", "me"], ["--issuer", "x"], ["--key", "k.pem", "--identity", "me", "--issuer", "x"]):
        code, _, message = run("verify", signed, *half)
        assert code and ("belong together" in message or "is checked by --key, or by" in message)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "no.pem", "no.pem"),
        (lambda folder: write_key(folder, "k")[0], "is a private key; a signature is checked with its public half"),
        (
            lambda folder: write_key(folder, "r", rsa.generate_private_key(65537, 2048))[1],
            "no key of an elliptic curve",
        ),
        (lambda folder: write_key(folder, "k", ec.generate_private_key(ec.SECP256K1()))[1], "no key of an elliptic"),
        (lambda folder: folder / "config.json", "is no public key in PEM"),
    ],
)
def test_keys_that_check_nothing(signed, make, message):
    code, _, said = run("verify", signed, "--key", make(signed))
    assert code and message in said


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "no.pem", "is no file: a private key, or `sigstore`, is needed"),
        (lambda folder: write_key(folder, "k")[1], "is no private key in PEM"),
        (
            lambda folder: write_key(folder, "r", rsa.generate_private_key(65537, 2048))[0],
            "no key of an elliptic curve",
        ),
        (lambda folder: write_key(folder, "k", ec.generate_private_key(ec.SECP256K1()))[0], "no key of an elliptic"),
    ],
)
def test_keys_that_sign_nothing(folder, tmp_path, make, message):
    path = make(tmp_path)
    if path.is_file():
        path.chmod(0o600)
    with pytest.raises((ValueError, OSError), match=message):
        open_signer(str(path), folder)


def test_a_key_that_others_may_read_or_that_would_be_published(folder, keys, tmp_path):
    mine = Path(shutil.copyfile(keys[0][0], tmp_path / "key.pem"))
    mine.chmod(0o640)
    with pytest.raises(ValueError, match=r"other users of this machine may read: chmod 600 .*key\.pem"):
        open_signer(str(mine), folder)
    inside = Path(shutil.copyfile(keys[0][0], folder / "key.pem"))
    inside.chmod(0o600)
    with pytest.raises(ValueError, match=r"key\.pem lies in the folder that is to be signed"):
        open_signer(str(inside), folder)


def test_the_password_of_a_key(folder, tmp_path, monkeypatch):
    private, public = write_key(tmp_path, "locked", password=b"open sesame")
    monkeypatch.delenv("JMINIGPT4_SIGN_PASSWORD", raising=False)
    with pytest.raises(ValueError, match=r"has a password: put it into the environment variable JMINIGPT4_SIGN_P"):
        open_signer(str(private), folder)
    monkeypatch.setenv("JMINIGPT4_SIGN_PASSWORD", "guess")
    with pytest.raises(ValueError, match=r"cannot be opened with that password") as raised:
        open_signer(str(private), folder)
    assert "guess" not in str(raised.value)
    monkeypatch.delenv("JMINIGPT4_SIGN_PASSWORD")
    monkeypatch.setattr(sys, "stdin", type("Terminal", (), {"isatty": lambda self: True})())
    monkeypatch.setattr("getpass.getpass", lambda prompt: "open sesame" if str(private) in prompt else "")
    seal(folder, open_signer(str(private), folder))
    assert verify_folder(folder, Trust(public)) == []


def test_links_are_not_signed(folder, keys, tmp_path):
    (folder / "config.json").rename(tmp_path / "config.json")
    (folder / "config.json").symlink_to(tmp_path / "config.json")
    with pytest.raises(ValueError, match=r"config\.json is a link, as in the Hub's cache: sign a copy"):
        seal(folder, open_signer(str(keys[0][0]), folder))
    assert not (folder / SIGNATURE).exists()


def test_a_folder_that_changes_while_it_is_signed_is_not(folder, keys):
    signer = open_signer(str(keys[0][0]), folder)
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    with pytest.raises(ValueError, match=r"is not signed, as it changed meanwhile: model\.sig is of another config"):
        seal(folder, signer)
    assert not (folder / SIGNATURE).exists() and SIGNATURE not in read_manifest(folder / MANIFEST)


def test_sigstore_is_asked_for_an_identity_and_its_troubles_are_one_line(folder, monkeypatch):
    """What the network answers is not tested: there is none."""
    from model_signing import signing, verifying

    asked = []

    def sign(config, **options):
        asked.append(options)
        raise ConnectionError("no way to the trust root\nat all")

    monkeypatch.setattr(signing.Config, "use_sigstore_signer", sign)
    with pytest.raises(OSError, match=r"^Sigstore cannot be used: no way to the trust root$"):
        open_signer("sigstore", folder)
    assert asked == [{"use_ambient_credentials": True}]

    monkeypatch.setattr(verifying.Config, "use_sigstore_verifier", lambda config, **options: sign(config, **options))
    bundle = {"verificationMaterial": {"certificate": {}}, "dsseEnvelope": {"payload": ""}}
    monkeypatch.setattr("jminigpt4.convert.signing._signed_digests", lambda bundle: {})
    (folder / SIGNATURE).write_text(json.dumps(bundle))
    from jminigpt4.convert.signing import signature_problems

    found = signature_problems(folder, {}, Trust(identity="me@example.org", issuer="https://issuer"))
    assert found == ["model.sig was not made by me@example.org (by https://issuer) (no way to the trust root)."]
    assert asked[1] == {"identity": "me@example.org", "oidc_issuer": "https://issuer"}


def test_publishing_signs_and_a_download_is_verified(folder, keys, hub, download):
    (private, public), (_, other) = keys
    code, output, error = run("publish", folder, REPO, "--sign", private, "--aibom")
    assert code == 0, error
    assert {SIGNATURE, AIBOM} <= hub.repos[REPO].keys()
    assert b"`model.sig` signs all but this card" in hub.repos[REPO]["README.md"]
    fetched = download(REPO)
    assert verify_folder(fetched, Trust(public)) == [] and verify_folder(fetched, Trust(other)) != []
    assert verify_folder(folder, Trust(public)) == []  # the folder here, too

    # Again without a key: the card is another one, the signature the same.
    (folder / "scores.json").write_text(json.dumps({"benchmarks": [{"name": "a", "metric": "b", "value": 1.0}]}))
    publish_folder(folder, REPO)
    assert b"| a | b | 1 |" in hub.repos[REPO]["README.md"]
    assert verify_folder(download(REPO), Trust(public)) == []


def test_a_snapshot_in_the_hubs_cache_is_verified(signed, keys, hub, tmp_path):
    publish_folder(signed, REPO)
    cache = tmp_path / "cache"
    snapshot = Path(huggingface_hub.snapshot_download(REPO, cache_dir=cache))
    assert any(path.is_symlink() for path in snapshot.iterdir())
    assert problems(snapshot, keys) == [] and problems(snapshot, keys, 1) != []


def test_a_folder_is_signed_and_stays_here(folder, keys):
    code, output, error = run("publish", folder, "--sign", keys[0][0], "--aibom")
    assert code == 0 and output == f"{folder}: aibom.cdx.json and model.sig\n", error
    assert problems(folder, keys) == [] and f'"name": "{folder.name}"' in (folder / AIBOM).read_text()
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    with pytest.raises(ValueError, match=r"config\.json has changed"):
        seal_folder(folder, str(keys[0][0]))
    for words in (["--aibom", "--private"], ["--sign", keys[0][0], "--keep", "x"], []):
        assert "Give the repository too" in run("publish", folder, *words)[2]


def test_a_stale_signature_is_not_published(signed, keys, hub):
    (signed / "generation_config.json").write_text((signed / "generation_config.json").read_text() + "\n")
    list_anew(signed)
    with pytest.raises(ValueError, match=r"not published: model\.sig is of another generation_config\.json"):
        publish_folder(signed, REPO)
    with pytest.raises(ValueError, match=r"not published: model\.sig is of another generation_config\.json"):
        publish_folder(signed, REPO, aibom=True)
    with pytest.raises(ValueError, match=r"not published: aibom\.cdx\.json lists another generation_config\.json"):
        publish_folder(signed, REPO, sign=str(keys[0][0]))
    publish_folder(signed, REPO, sign=str(keys[0][0]), aibom=True)
    assert problems(signed, keys) == []


def test_a_bill_is_not_changed_behind_a_signature(signed, keys, hub):
    before = (signed / AIBOM).read_bytes()
    with pytest.raises(ValueError, match=r"is signed, and aibom\.cdx\.json is to change: sign it anew with --sign"):
        publish_folder(signed, REPO, aibom=True, datasets=["maker/pictures"])
    assert (signed / AIBOM).read_bytes() == before and problems(signed, keys) == []


@pytest.mark.parametrize("name", [SIGNATURE, AIBOM])
def test_seals_of_what_was_there_before_cannot_be_kept(signed, hub, name):
    publish_folder(signed, REPO)
    hub.repos[REPO][name] += b" "
    (signed / SIGNATURE).unlink()
    (signed / AIBOM).unlink()
    list_anew(signed)
    with pytest.raises(ValueError, match=f"{name} of {REPO} cannot be kept"):
        publish_folder(signed, REPO, keep=[name])
    assert set(publish_folder(signed, REPO).deleted) == {SIGNATURE, AIBOM}


def test_what_no_signature_covers_is_not_kept_beside_it(signed, hub):
    publish_folder(signed, REPO)
    hub.repos[REPO]["figure.png"] = b"1"
    with pytest.raises(ValueError, match=r"figure\.png of tester/signed cannot be kept beside model\.sig"):
        publish_folder(signed, REPO, keep=["*.png"])


@pytest.mark.parametrize("part", ["model", "processor"])
def test_saving_into_a_signed_folder_takes_its_seals_away(signed, part, capsys):
    load = {"model": AutoModelForImageTextToText, "processor": AutoProcessor}[part]
    load.from_pretrained(signed).save_pretrained(signed)
    assert not {SIGNATURE, AIBOM} & {path.name for path in signed.iterdir()}
    assert f"model.sig and aibom.cdx.json of {signed} were of what was there before" in capsys.readouterr().err
    load.from_pretrained(signed).save_pretrained(signed)
    assert capsys.readouterr().err.count("model.sig") == 0


@pytest.mark.parametrize("part", ["model", "processor"])
def test_a_push_takes_seals_and_writes_the_card(signed, hub, download, part, capsys):
    """Model and processor alone, in either order, to a new repository and to one that was published."""
    load = {"model": AutoModelForImageTextToText, "processor": AutoProcessor}[part]
    publish_folder(signed, REPO)
    card = hub.repos[REPO]["README.md"]
    load.from_pretrained(signed).push_to_hub(REPO)
    assert not {SIGNATURE, AIBOM} & hub.repos[REPO].keys()
    assert f"aibom.cdx.json and model.sig of {REPO} were of what was there before" in capsys.readouterr().err
    assert verify_folder(download(REPO)) == []
    unsigned = card.decode().partition("`model.sig` signs all")[0].splitlines()
    assert hub.repos[REPO]["README.md"].decode().splitlines()[: len(unsigned)] == unsigned

    load.from_pretrained(signed).push_to_hub("tester/alone")
    files = hub.repos["tester/alone"]
    assert files["README.md"].replace(b"tester/alone", b"tester/signed").replace(b"# alone", b"# signed").splitlines()[
        : len(unsigned)
    ] == [line.encode() for line in unsigned]
    assert {"SHA256SUMS", "conversion.json"} <= files.keys()


def test_an_export_leaves_out_what_speaks_of_its_base(signed, save_run, tmp_path, capsys):
    (signed / "scores.json").write_text("{}")
    list_anew(signed)
    run = save_run(signed, 1)
    export(signed, run, tmp_path / "trained")
    left = {SIGNATURE, AIBOM, "scores.json"}
    assert not left & {path.name for path in (tmp_path / "trained").iterdir()}
    said = capsys.readouterr().err
    assert all(name in said for name in left) and f"of {signed} speak of that folder alone" in said
    assert verify_folder(tmp_path / "trained") == []


def test_converting_signs_and_a_conversion_of_a_signed_folder_is_not_signed(originals, keys, tmp_path, monkeypatch):
    (private, public), _ = keys
    words = {"vision": "--vision", "qformer": "--qformer", "language": "--language", "projection": "--projection"}
    options = [word for part, option in words.items() for word in (option, originals[part])]
    options += ["--vision-heads", 4, "--qformer-heads", 4, "--no-prove"]
    out = tmp_path / "out"
    code, output, error = run("convert", out, *options, "--sign", tmp_path / "no.pem")
    assert code and "no.pem is no file" in error and not out.exists()  # before anything is written
    code, output, error = run("convert", out, *options, "--sign", private, "--aibom")
    assert code == 0, error
    assert verify_folder(out, Trust(public)) == [] and (out / AIBOM).is_file()
    assert f'"name": "{out.name}"' in (out / AIBOM).read_text()

    again = tmp_path / "again"
    assemble(vision=out, language=out, projection=out, out=again, prove_equal=False, progress=False)
    assert not {SIGNATURE, AIBOM} & {path.name for path in again.iterdir()} and verify_folder(again) == []
    code, _, error = run("convert", "--to", "gguf", out, tmp_path / "x.gguf", "--aibom")
    assert code and "which --to does not make" in error


def test_verification_needs_no_library_until_a_key_is_given(signed, keys):
    """Where the extra is not installed, all but whose signature it is can be said; and then what to install."""
    hidden = "import sys; sys.modules.update(dict.fromkeys(['model_signing', 'cyclonedx', 'OpenSSL']))"
    code = (
        f"{hidden}\nimport importlib.util as u; found = u.find_spec\n"
        "u.find_spec = lambda name, *more: None if name in ('model_signing', 'OpenSSL') else found(name, *more)\n"
        "import sys; from pathlib import Path\nfrom jminigpt4.convert import Trust, verify_folder\n"
        "print(verify_folder(Path(sys.argv[1])))\n"
        "try:\n    verify_folder(Path(sys.argv[1]), Trust(Path(sys.argv[2])))\n"
        "except ImportError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(signed), str(keys[0][1])], capture_output=True, text=True, env=os.environ
    )
    first, second = done.stdout.splitlines()
    assert first == "[]" and "The package model_signing is needed: pip install" in second and "[sign]" in second
