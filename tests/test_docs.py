"""The documents keep their word: both languages say the same, links lead somewhere, and code runs as it is written.

Every page lies in English (`NAME.md`) and Japanese (`NAME_ja.md`). `differences` holds what has to be equal:

- headings: their number, levels and order;
- code blocks with a language: the same, but for comments, which are written for the reader; blocks without one are
  drawings and output, and have the same figures;
- tables: the same number of rows, and in each the same figures. A table of more than `LONG_TABLE` rows may be left out
  where the Japanese section links to the English page in its place;
- text: in each section the same figures of two digits or more.
"""

import contextlib
import io
import itertools
import json
import re
import shlex
import shutil
import sys
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from pathlib import Path

import pytest
from transformers import AutoModelForImageTextToText, Blip2Config, Blip2ForConditionalGeneration

from jminigpt4 import cli
from jminigpt4.convert import assemble

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted(page for page in (ROOT / "docs").glob("*.md") if not page.stem.endswith("_ja"))]
LONG_TABLE = 50
FIGURE = re.compile(r"\d+(?:[.,]\d+)*")
COMMENT = re.compile(r"(^|\s+)# .*$")
EXTRAS = re.compile(r"pip install [^\n]*\[([\w,]+)\]")


@dataclass
class Block:
    """A fenced block of code, output or drawing."""

    language: str
    lines: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(f"{line}\n" for line in self.lines)

    @property
    def compared(self) -> list[str]:
        """What has to be the same in both languages."""
        if self.language:
            return [line for line in (COMMENT.sub("", line).rstrip() for line in self.lines) if line]
        return [" ".join(FIGURE.findall(line)) for line in self.lines]


@dataclass
class Section:
    """What stands between a heading and the next one."""

    heading: str
    level: int
    blocks: list[Block] = field(default_factory=list)
    tables: list[list[str]] = field(default_factory=list)
    text: list[str] = field(default_factory=list)

    @property
    def figures(self) -> set[str]:
        text = re.sub(r"\]\([^)]*\)", "]", "\n".join(self.text))
        return {figure for figure in FIGURE.findall(text) if len(figure) > 1}


def sections(page: str) -> list[Section]:
    """A page of Markdown in its order; the first section is what stands above the first heading."""
    found = [Section("(top)", 0)]
    block = None
    table = False
    for line in page.splitlines():
        if line.startswith("```"):
            if block is None:
                block = Block(line.removeprefix("```").strip())
                found[-1].blocks.append(block)
            else:
                block = None
        elif block is not None:
            block.lines.append(line)
        elif heading := re.match(r"(#+) (.+)", line):
            found.append(Section(heading[2], len(heading[1])))
        elif line.startswith("|"):
            if not table:
                found[-1].tables.append([])
            found[-1].tables[-1].append(line)
        else:
            found[-1].text.append(line)
        table = line.startswith("|")
    return found


def differences(english: str, japanese: str, name: str) -> list[str]:
    """Where two pages do not say the same, one sentence each.

    Args:
        name: File name of the English page, which a left out table has to be linked to.
    """
    pages = sections(english), sections(japanese)
    if [section.level for section in pages[0]] != [section.level for section in pages[1]]:
        return _different_headings(*pages)
    found = []
    for ours, theirs in zip(*pages, strict=True):
        where = f"in '{ours.heading}' / '{theirs.heading}'"
        found += [f"{each} {where}" for each in _different_blocks(ours, theirs)]
        found += [f"{each} {where}" for each in _different_tables(ours, theirs, name)]
        if ours.figures != theirs.figures:
            found.append(
                f"text has the figures {sorted(ours.figures - theirs.figures)} in English alone and "
                f"{sorted(theirs.figures - ours.figures)} in Japanese alone, {where}"
            )
    return found


def _different_headings(english: list[Section], japanese: list[Section]) -> list[str]:
    """Sections are known again by their level, code and figures: their names are translated."""
    known = [[(each.level, each.figures, [block.compared for block in each.blocks]) for each in page]
             for page in (english, japanese)]  # fmt: skip
    indices = [[known[0].index(key) if key in known[0] else -1 for key in page] for page in known]
    found = []
    for kind, *ends in SequenceMatcher(None, *indices, autojunk=False).get_opcodes():
        if kind != "equal":
            parts = english[ends[0] : ends[1]], japanese[ends[2] : ends[3]]
            names = [", ".join(f"'{'#' * each.level} {each.heading}'" for each in part) or "nothing" for part in parts]
            found.append(f"headings: {names[0]} in English stands against {names[1]} in Japanese")
    return found


def _different_blocks(english: Section, japanese: Section) -> list[str]:
    if len(english.blocks) != len(japanese.blocks):
        return [f"there are {len(english.blocks)} code blocks in English and {len(japanese.blocks)} in Japanese,"]
    found = []
    for number, (ours, theirs) in enumerate(zip(english.blocks, japanese.blocks, strict=True), 1):
        if ours.language != theirs.language:
            found.append(f"code block {number} is of '{ours.language}' and of '{theirs.language}',")
        for pair in itertools.zip_longest(ours.compared, theirs.compared):
            if pair[0] != pair[1]:
                found.append(f"code block {number} has {pair[0]!r} in English and {pair[1]!r} in Japanese,")
                break
    return found


def _different_tables(english: Section, japanese: Section, name: str) -> list[str]:
    tables = english.tables
    if len(japanese.tables) < len(tables) and f"]({name})" in "\n".join(japanese.text):
        tables = [table for table in tables if len(table) <= LONG_TABLE]
    if len(tables) != len(japanese.tables):
        return [f"there are {len(tables)} tables in English and {len(japanese.tables)} in Japanese,"]
    found = []
    for number, pair in enumerate(zip(tables, japanese.tables, strict=True), 1):
        for row in itertools.zip_longest(*pair, fillvalue=""):
            ours, theirs = (sorted(FIGURE.findall(re.sub(r"\]\([^)]*\)", "]", cell))) for cell in row)
            if ours != theirs or not all(row):
                found.append(f"table {number} has the row {row[0]!r} in English and {row[1]!r} in Japanese,")
    return found


def japanese(page: Path) -> Path:
    return page.with_name(f"{page.stem}_ja.md")


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, *languages: str) -> list[Block]:
    return [block for section in sections(read(page)) for block in section.blocks if block.language in languages]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_both_languages_say_the_same(page):
    assert japanese(page).is_file(), f"{page.name} has no Japanese page {japanese(page).name}"
    assert differences(read(page), read(japanese(page)), page.name) == []


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (("## 練習\n", ""), "headings: '# Title', '## Rehearsal' in English stands against '# 題' in Japanese"),
        (("## 練習", "### 練習"), "headings: '## Rehearsal' in English stands against '### 練習' in Japanese"),
        (("--image b.png", "--image c.png"), "code block 1 has 'jminigpt4 chat --image b.png' in English and"),
        (("| 10.4 |", "| 10.5 |"), "table 1 has the row '| loss | 10.4 |' in English and '| 損失 | 10.5 |' in"),
        (("32 個", "33 個"), "text has the figures ['32'] in English alone and ['33'] in Japanese alone, in 'Title'"),
        (("| 損失 | 10.4 |\n", ""), "table 1 has the row '| loss | 10.4 |' in English and '' in Japanese"),
        (("4 -> 8", "4 -> 9"), "code block 2 has '4 8' in English and '4 9' in Japanese"),
    ],
)
def test_a_fault_is_named(fault, message):
    english = (
        "# Title\n\n32 tokens, two a row.\n\n## Rehearsal\n\n```bash\njminigpt4 chat --image b.png  # look\n```\n\n"
        "| what | value |\n|---|---|\n| loss | 10.4 |\n\n```\nin 4 -> 8 out\n```\n"
    )
    translated = (
        "# 題\n\nトークンは 32 個。\n\n## 練習\n\n```bash\njminigpt4 chat --image b.png      # 見てみます\n```\n\n"
        "| 項目 | 値 |\n|---|---|\n| 損失 | 10.4 |\n\n```\n入力 4 -> 8 出力\n```\n"
    )
    assert differences(english, translated, "page.md") == []
    found = differences(english, translated.replace(*fault), "page.md")
    assert len(found) == 1 and message in found[0]


def test_a_long_table_may_be_linked_to():
    rows = "".join(f"| family {number} | equal |\n" for number in range(LONG_TABLE))
    english = f"# Title\n\n| family | 5.19 |\n|---|---|\n{rows}"
    assert differences(english, "# 題\n\n表は[英語版](page.md)にあります。\n", "page.md") == []
    assert differences(english, "# 題\n\n表はありません。\n", "page.md")
    assert differences("# Title\n\n| a | 5.19 |\n|---|---|\n", "# 題\n\n[英語版](page.md)\n", "page.md")


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings: small letters, without punctuation, a hyphen for each space."""
    titles = [re.sub(r"[`*]|\]\([^)]*\)|\[", "", section.heading) for section in sections(read(page))]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


ALL_PAGES = [*PAGES, *filter(Path.is_file, map(japanese, PAGES))]


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", read(page)):
        if target.startswith(("https://", "http://")):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), f"{page.name}: {target} is not there"
        if anchor:
            assert anchor in anchors(file), f"{page.name}: {target} names no heading of {file.name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_link_to_their_other_language(page):
    other = japanese(page)
    assert read(page).splitlines()[0] == f"English | [日本語]({other.name})"
    assert read(other).splitlines()[0] == f"[English]({page.name}) | 日本語"
    for section in sections(read(other))[1:]:
        text = "\n".join([*section.text, *itertools.chain(*section.tables)])
        for name in re.findall(r"\]\(([^)#:]+\.md)", text):
            translated = japanese(other.parent / name)
            assert name == page.name or not translated.is_file(), f"{other.name}: link {translated.name}, not {name}"


def test_extras_are_those_of_the_package():
    setup = read(ROOT / "setup.py")
    found = [(page.name, names) for page in ALL_PAGES for names in EXTRAS.findall(read(page))]
    named = {(page, extra) for page, names in found for extra in names.split(",")}
    assert named
    for page, extra in sorted(named):
        assert f'"{extra}":' in setup or extra == "dev", f"{page} names the extra {extra}"


@pytest.mark.parametrize("name", ["docs/start.md", "docs/scale.md"])
def test_python_blocks(name, monkeypatch):
    """What a block of Python prints stands in the block behind it."""
    monkeypatch.chdir(ROOT)
    shown = blocks(ROOT / name, "python", "text", "")
    ran = 0
    for block, expected in itertools.pairwise(shown):
        if block.language == "python":
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                exec(compile(block.text, name, "exec"), {})
            assert output.getvalue() == expected.text
            ran += 1
    assert ran


@pytest.fixture
def first_hour(reference, tmp_path, monkeypatch) -> Path:
    """A folder in which the sources of docs/start.md lie under their own names: reference checkpoints for rinna's and
    BLIP-2's, a few drawings for COCO's pictures."""
    monkeypatch.chdir(tmp_path)
    Path("demo").symlink_to(ROOT / "demo")
    checkpoints = reference / "checkpoints"
    assemble(
        vision=checkpoints / "eva_vit_g.pth",
        qformer=checkpoints / "blip2_pretrained_flant5xxl.pth",
        language=reference / "llm",
        out="whole",
        vision_heads=4,
        qformer_heads=4,
        progress=False,
    )
    ours = AutoModelForImageTextToText.from_pretrained("whole")
    parts = {name: getattr(ours.config, name).to_dict() for name in ("vision_config", "qformer_config", "text_config")}
    blip2 = Blip2ForConditionalGeneration(Blip2Config(**parts, num_query_tokens=ours.config.num_query_tokens))
    blip2.vision_model, blip2.qformer = ours.model.vision_model, ours.model.qformer
    blip2.query_tokens = ours.model.query_tokens
    blip2.save_pretrained("Salesforce/blip2-flan-t5-xxl")
    for name in ("japanese-gpt-neox-3.6b", "bilingual-gpt-neox-4b"):
        shutil.copytree(reference / "llm", f"rinna/{name}")
    Path("rinna/bilingual-gpt-neox-4b-minigpt4").mkdir()
    shutil.copy(checkpoints / "checkpoint.pth", "rinna/bilingual-gpt-neox-4b-minigpt4")
    Path("coco/train2014").mkdir(parents=True)
    images, annotations = [], []
    for number, drawing in enumerate(("apple", "cat", "key"), 1):
        name = f"COCO_train2014_{number:012}.jpg"
        shutil.copy(ROOT / "demo" / "samples" / f"{drawing}.png", f"coco/train2014/{name}")
        images.append({"id": number, "file_name": name})
        annotations += [{"id": number, "image_id": number, "caption": f"{drawing}の絵"}]
    captions = {"images": images, "annotations": annotations}
    Path("stair_captions_v1.2_train.json").write_text(json.dumps(captions), encoding="utf-8")
    return tmp_path


def commands(script: str) -> list[tuple[list[str], str]]:
    """The commands of a shell script, each with the text that it is given (`<<'END'`)."""
    found = []
    lines = iter(script.replace("\\\n", " ").splitlines())
    for line in lines:
        words = shlex.split(line, comments=True)
        given = list(itertools.takewhile(lambda each: each != "END", lines)) if "<<END" in words else []
        if words:
            found.append(([word for word in words if word != "<<END"], "".join(f"{each}\n" for each in given)))
    return found


def answer(words: list[str], given: str, monkeypatch) -> str:
    """Output of a `jminigpt4` command, run in this process, that is given a text to read."""
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(sys, "stdin", io.StringIO(given))
    output = io.StringIO()
    with contextlib.redirect_stdout(output), pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code, f"{shlex.join(words)} ended with {end.value.code}"
    return output.getvalue()


@pytest.mark.timeout(400)
def test_the_first_hour_runs_as_it_is_written(first_hour, monkeypatch):
    """Every `bash` block of docs/start.md, from top to bottom; what a `text` block behind one shows is what comes out.
    `sh` blocks install, or need the Hub or a server."""
    shown = ""
    for block in blocks(ROOT / "docs" / "start_ja.md", "bash", "text", "python"):
        if block.language == "text":
            assert not shown or shown == block.text
            continue
        shown = ""
        for words, given in commands(block.text) if block.language == "bash" else []:
            if words[0] == "cat":
                Path(words[2]).write_text(given, encoding="utf-8")
            else:
                assert words[0] == "jminigpt4", words
                shown = answer(words, given, monkeypatch)
    assert Path("practice/evaluation/report.html").is_file()
    assert Path("jminigpt4-3.6b-stair/model.safetensors.index.json").is_file() or list(
        Path("jminigpt4-3.6b-stair").glob("*.safetensors")
    )
