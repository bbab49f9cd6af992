"""From pictures to stage-2 data: each step on disk before the next begins."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..checkpoint import locked_folder, remove_unfinished
from ..data.growing_lines import append, read_back
from ..data.pictures import Picture
from .describing import Describer, Describing
from .examining import Limits, faults, invented, near_duplicates
from .outcome import Outcome, Text, read_decisions, write_outcome
from .pictures import find_pictures
from .texts import DESCRIBED, EDITED, Described, Edited, keep_settings

# What no editor can mend into the description of a picture.
HOPELESS = {"empty", "not Japanese"}


@dataclass(frozen=True)
class RefinePlan:
    """What is to be made of which pictures.

    Args:
        model: Checkpoint of stage 1.
        pictures: Picture files, folders of pictures, or data that training reads.
        output: Folder of everything that is written.
        images: Folders with the pictures of data.
        describing: How pictures are described.
        limits: Where texts fall.
        editor, editor_model: Address of the editor's server and name of its model; without, only filters work.
        show_picture: Whether the editor gets the picture too.
        price: Of a million tokens to the editor and from it.
        sample: Texts on the page for a person.
        decisions: The person's decisions; by default `decisions.json` of the output folder where there is one.
        device, dtype: Where and how the model computes.
        progress: Whether to show bars.
    """

    model: str
    pictures: Sequence[str]
    output: Path
    images: Sequence[str] = ()
    describing: Describing = field(default_factory=Describing)
    limits: Limits = field(default_factory=Limits)
    editor: str | None = None
    editor_model: str | None = None
    show_picture: bool = False
    price: tuple[float, float] | None = None
    sample: int = 50
    decisions: Path | None = None
    device: str | None = None
    dtype: str | None = None
    progress: bool = True

    def check(self):
        """Raises:
        ValueError: Options of the editor do not fit together.
        """
        if (self.editor is None) != (self.editor_model is None):
            raise ValueError("An editor is --editor URL and --editor-model NAME.")
        if self.editor is None and self.show_picture:
            raise ValueError("--show-picture is for an --editor, and there is none.")


def parse_price(text: str) -> tuple[float, float]:
    """`IN,OUT`, the prices of a million tokens.

    Raises:
        ValueError: It is something else.
    """
    try:
        to_editor, from_editor = (float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--price is IN,OUT, two numbers such as 0.15,0.60, got {text!r}.") from None
    return to_editor, from_editor


def refine(plan: RefinePlan) -> Outcome:
    """Carries out a plan, or what is missing of it: writes `described.jsonl`, `edited.jsonl`, the data
    (`filter_cap.json` with `image/`, and `rows.jsonl`), `history.jsonl`, `report.json` and `review.html`.

    Raises:
        ValueError: Something of the plan does not fit together, or the folder holds texts of another plan.
        FileNotFoundError: Pictures or the checkpoint are not there.
        ConnectionError: The editor cannot be reached.
        ImportError: A library of the extra `refine` is missing.
    """
    plan.check()
    pictures = find_pictures(plan.pictures, plan.images)
    editor = _editor(plan, pictures)
    decided = read_decisions(plan.decisions or plan.output / "decisions.json", needed=plan.decisions is not None)
    with locked_folder(plan.output):
        remove_unfinished(plan.output)
        described, bad = _described(plan, pictures)
        texts = [Text(each, faults(each.text, each.cut_off, plan.limits)) for each in described]
        if editor is not None:
            _edit(plan, editor, texts)
        _filter(plan, texts)
        for text in texts:
            if text.kept and decided.get(text.described.id) == "drop":
                text.fall("person", ["dropped by a person"])
        outcome = Outcome(texts, bad, plan.editor_model, plan.price)
        write_outcome(plan.output, outcome, pictures, plan.sample, plan.describing.seed, decided)
    return outcome


def _editor(plan: RefinePlan, pictures: Sequence[tuple[Picture, str]]):
    if plan.editor is None:
        return None
    from ..inference.endpoint import Endpoint
    from .editing import Editor

    endpoint = Endpoint(plan.editor, str(plan.editor_model))
    endpoint.check()
    return Editor(endpoint, {picture.name: picture for picture, _ in pictures} if plan.show_picture else {})


def _described(plan: RefinePlan, pictures: list[tuple[Picture, str]]) -> tuple[list[Described], list]:
    """The texts of all pictures, in their order; pictures are described where they have not been."""
    from tqdm import tqdm

    from ..inference.loading import fingerprint, load_checkpoint

    path = plan.output / DESCRIBED
    keep_settings(plan.output, {"model": plan.model, "checkpoint": fingerprint(plan.model), **asdict(plan.describing)})
    described = {each.id: each for each in read_back(path, Described)}
    done = {each.picture for each in described.values()}
    wanted = [picture for picture, _ in pictures if picture.name not in done]
    bad: list = []
    if wanted:
        model, processor = load_checkpoint(plan.model, plan.device, plan.dtype)
        describer = Describer(model, processor, plan.describing, pictures)
        quiet = None if plan.progress else True
        with tqdm(total=len(pictures), initial=len(done), desc="described", unit="picture", disable=quiet) as bar:
            for texts in describer.texts(done):
                append(path, map(Described.model_dump, texts))
                described |= {each.id: each for each in texts}
                bar.update(len({each.picture for each in texts}))
        bad = describer.bad
    names = {picture.name for picture, _ in pictures}
    ordered = sorted(described.values(), key=lambda each: tuple(map(int, each.id.split("."))))
    return [each for each in ordered if each.picture in names], bad


def _edit(plan: RefinePlan, editor, texts: Iterable[Text]):
    """Has texts mended that have not been, those that can be."""
    from tqdm import tqdm

    path = plan.output / EDITED
    same = (plan.editor_model, plan.show_picture)
    kept = {(each.id, each.before): each for each in read_back(path, Edited) if (each.editor, each.shown) == same}
    for text in texts:
        if HOPELESS & set(text.faults):
            text.fall("described", text.faults)
    sent = [text for text in texts if text.kept]
    missing = [text.described for text in sent if (text.described.id, text.described.text) not in kept]
    quiet = None if plan.progress else True
    coming = tqdm(editor.edited(missing), total=len(missing), desc="edited", unit="text", disable=quiet)
    for edited in coming:
        append(path, [edited.model_dump()])
        kept[edited.id, edited.before] = edited
    for text in sent:
        text.edited = kept[text.described.id, text.described.text]


def _filter(plan: RefinePlan, texts: Sequence[Text]):
    """Takes out what is not whole, what an editor gave up or invented, and what says the same as another."""
    for text in texts:
        if not text.kept:
            continue
        edited = text.edited
        if edited is None:
            text.fall("described", text.faults)
        elif not edited.text:
            text.fall("edited", ["refused by the server" if edited.refused else "given up by the editor"])
        else:
            wrong = faults(edited.text, False, plan.limits) + invented(edited.before, edited.text, plan.limits)
            text.fall("edited", wrong)
    left = {text.described.id: text for text in texts if text.kept}
    alike = near_duplicates([(name, text.text) for name, text in left.items()], plan.limits)
    for name, earlier in alike.items():
        left[name].fall("duplicates", [f"says the same as {earlier}"])


def dry_run_lines(plan: RefinePlan) -> Iterator[str]:
    """What a plan would do and cost; nothing is written or sent.

    Raises:
        ValueError, FileNotFoundError: As [`refine`].
    """
    from .editing import INSTRUCTION, WITH_PICTURE

    plan.check()
    pictures = find_pictures(plan.pictures, plan.images)
    described = {each.id: each for each in read_back(plan.output / DESCRIBED, Described)}
    done = {each.picture for each in described.values()}
    missing = sum(picture.name not in done for picture, _ in pictures)
    total = len(pictures) * plan.describing.per_picture
    yield f"{len(pictures):,} pictures, {missing:,} of them to be described: {total:,} texts."
    if plan.editor is None:
        yield "No editor: nothing leaves this machine, and what is not whole falls."
        return
    edited = {each.id for each in read_back(plan.output / EDITED, Edited)}
    lengths = [len(each.text) for name, each in described.items() if name not in edited]
    lengths += [2 * plan.describing.max_new_tokens] * (missing * plan.describing.per_picture)
    instruction = len(INSTRUCTION + (WITH_PICTURE if plan.show_picture else ""))
    # A token of a multilingual tokenizer is about one character of Japanese: counted high rather than low.
    to_editor, from_editor = sum(lengths) + instruction * len(lengths), sum(lengths)
    what = "texts and their pictures" if plan.show_picture else "texts, no pictures"
    yield f"{len(lengths):,} requests to {plan.editor} ({what})."
    yield f"At most about {to_editor:,} tokens there, {from_editor:,} back."
    if plan.price is not None:
        cost = (to_editor * plan.price[0] + from_editor * plan.price[1]) / 1e6
        without = ", pictures not counted" if plan.show_picture else ""
        yield f"At most about {cost:,.2f} at {plan.price[0]:g} and {plan.price[1]:g} a million tokens{without}."
