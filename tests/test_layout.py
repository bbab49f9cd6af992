"""The house: which module may import which. What stands in a function or under TYPE_CHECKING counts like the rest."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import jminigpt4
from jminigpt4.checkpoint import CODE_FILES

ROOT = Path(jminigpt4.__file__).parent
ROOMS = ("convert", "train", "refine", "chat", "evaluate")
HALL = tuple(name.removesuffix(".py") for name in CODE_FILES)
# What the code of each place may take from this package besides its own folder. The root package is the hall's face.
ALLOWED = {room: {"data", "inference", "checkpoint", "extras", "japanese_text", "schema", "", *HALL} for room in ROOMS}
ALLOWED |= {place: {"checkpoint", "extras", "schema", "", *HALL} for place in ("data", "inference")}
ALLOWED |= {"checkpoint": set(), "extras": set(), "japanese_text": {"extras"}, "schema": set()}
ALLOWED |= {name: set(HALL) for name in HALL} | {"serving": {"", *HALL}}


def imports(file: Path) -> set[str]:
    """Modules of this package that a file imports, dotted from the root: `data.rows`; `""` is the root itself."""
    package = file.relative_to(ROOT).parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
            base = [part for part in base if part]
            for alias in node.names:
                inner = ROOT.joinpath(*base, alias.name)
                is_module = inner.with_suffix(".py").is_file() or inner.is_dir()
                found.add(".".join([*base, alias.name] if is_module else base))
    return found


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    places = [*ROOT.glob("*.py"), *(file for place in ALLOWED for file in (ROOT / place).rglob("*.py"))]
    names = {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in places}
    return {name.removesuffix(".__init__").removesuffix("__init__"): imports(file) for name, file in names.items()}


def test_everybody_stays_in_their_room(graph):
    broken = [
        f"{name} imports {taken}"
        for name, takes in graph.items()
        if (place := name.partition(".")[0]) in ALLOWED
        for taken in takes
        if (source := taken.partition(".")[0]) != place and source not in ALLOWED[place]
    ]
    assert broken == []


def test_no_module_imports_itself_through_others(graph):
    # A package's face hands on what its modules define; what a module takes from its own face is no circle.
    faces = {name for name in graph if (ROOT.joinpath(*name.split(".")) / "__init__.py").is_file()}
    try:
        TopologicalSorter({name: takes - faces for name, takes in graph.items() if name not in faces}).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' -> '.join(error.args[1])}")


def test_every_folder_of_modules_is_installed():
    """`setup.py` finds packages by their `__init__.py`: without one a folder is in a checkout and in no wheel."""
    shipped_as_files = {ROOT / "evaluate/bridges/lmms_eval_tasks"}
    folders = {file.parent for place in ALLOWED for file in (ROOT / place).rglob("*.py")}
    bare = [folder for folder in folders - shipped_as_files if not (folder / "__init__.py").is_file()]
    assert bare == []
