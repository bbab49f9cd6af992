"""`CITATION.cff` is what programs that read it expect, and cites what the cards of checkpoints cite."""

import re
from pathlib import Path

import yaml

import jminigpt4
from jminigpt4.convert.citations import WORKS

# BaseLoader: the format's schema wants versions and dates as texts.
CITATION = yaml.load((Path(jminigpt4.__file__).parent / "CITATION.cff").read_text(encoding="utf-8"), yaml.BaseLoader)
# Citation File Format 1.2.0: what a reference needs, and the values of its closed lists that stand here.
KEYS = {
    "cff-version",
    "message",
    "type",
    "title",
    "abstract",
    "version",
    "license",
    "authors",
    "keywords",
    "references",
}
OF_REFERENCES = {"type", "title", "authors", "date-published", "url", "languages", "notes", "year", "identifiers"}


def test_the_fields_are_those_of_the_format():
    assert CITATION.keys() == KEYS
    assert (CITATION["cff-version"], CITATION["type"], CITATION["license"]) == ("1.2.0", "software", "MIT")
    assert CITATION["version"] == jminigpt4.__version__
    for each in [CITATION, *CITATION["references"]]:
        assert each["title"] and each["authors"]
        assert all(author.keys() in ({"name"}, {"family-names", "given-names"}) for author in each["authors"])
    for each in CITATION["references"]:
        assert each.keys() <= OF_REFERENCES and each["type"] in ("article", "generic")
        assert each["url"].startswith("https://") and re.fullmatch(r"20\d\d", each.get("year", "2023"))
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", each.get("date-published", "2023-07-27"))
        assert all(set(one) == {"type", "value"} and one["type"] == "other" for one in each.get("identifiers", []))
    assert len(CITATION["keywords"]) == len(set(CITATION["keywords"]))


def test_the_cards_cite_the_same_works():
    cited = {re.sub(r"\s+", " ", re.search(r"title += \{+(.+?)\}+,\n", work, re.S)[1]) for work in WORKS.values()}
    assert {each["title"] for each in CITATION["references"]} == cited
    for work in WORKS.values():
        names = re.search(r"author += \{+(.+?)\}+,\n", work)[1].split(" and ")
        title = re.sub(r"\s+", " ", re.search(r"title += \{+(.+?)\}+,\n", work, re.S)[1])
        (reference,) = (each for each in CITATION["references"] if each["title"] == title)
        authors = [a.get("name") or f"{a['family-names']}, {a['given-names']}" for a in reference["authors"]]
        assert authors == names
