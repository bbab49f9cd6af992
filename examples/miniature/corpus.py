"""What is said about a drawing: questions with their answers, contexts to answer from, and plain sentences.

The language model reads contexts as text (stage 3); the projection later puts image tokens in their place (stage 4).
Both stages draw their conversations from here, so that what the projection has to supply is only what the picture
shows.
"""

from dataclasses import dataclass

import numpy as np
from drawings import COLOURS, Concept

ADJECTIVES = dict(
    zip(
        COLOURS,
        (
            "赤い",
            "オレンジ色の",
            "黄色い",
            "緑色の",
            "水色の",
            "青い",
            "紫色の",
            "ピンク色の",
            "茶色い",
            "黒い",
            "灰色の",
            "白い",
        ),
        strict=True,
    )
)

# question -> answer; {name} is the concept's name. The verb of the question comes back in the answer.
NAMING = {
    "何が写っていますか?": "{name}が写っています。",
    "何が写ってる?": "{name}が写っています。",
    "何が写ってますか?": "{name}が写っています。",
    "何が写っているの?": "{name}が写っています。",
    "写っているものは何ですか?": "{name}が写っています。",
    "何が見えますか?": "{name}が見えます。",
    "何が見える?": "{name}が見えます。",
    "何が描かれていますか?": "{name}が描かれています。",
    "何が描かれてる?": "{name}が描かれています。",
    "何が描いてありますか?": "{name}が描かれています。",
    "これは何ですか?": "{name}です。",
    "これは何?": "{name}です。",
    "これなに?": "{name}です。",
    "この絵は何ですか?": "{name}です。",
    "この絵は何?": "{name}です。",
    "何ですか?": "{name}です。",
    "何?": "{name}です。",
    "名前は何ですか?": "{name}です。",
    "名前を教えてください。": "{name}です。",
    "何という名前ですか?": "{name}です。",
    "これは何の絵ですか?": "{name}の絵です。",
    "何の絵ですか?": "{name}の絵です。",
    "何の絵?": "{name}の絵です。",
}
CAPTION = ("", "", "", "キャプションをつけてください。", "一言で説明してください。", "一言でいうと?")
DESCRIPTION = (
    "説明して", "説明してください。", "この絵を説明してください。", "この画像を説明して", "詳しく説明してください。",
    "どんな絵ですか?", "どんな絵?", "どんな画像ですか?", "この画像について教えてください。",
    "この写真を説明してください。",
)  # fmt: skip
COLOUR = (
    "何色?", "何色ですか?", "これは何色ですか?", "これは何色?", "色は?", "色は何ですか?", "どんな色ですか?",
    "どんな色?", "どんな色をしていますか?", "何色をしていますか?", "色を教えてください。",
)  # fmt: skip
KIND = (
    "何の仲間?", "何の仲間ですか?", "これは何の仲間ですか?", "これは何の仲間?", "どんな仲間ですか?", "何の種類ですか?",
    "どんな種類ですか?", "種類は?", "種類は何ですか?", "分類は?", "何に分類されますか?",
)  # fmt: skip
EDIBLE = (
    "食べられる?", "食べられますか?", "これは食べられますか?", "これは食べられる?", "食べてもいい?",
    "食べていいですか?", "食べられるものですか?", "食べ物?", "食べ物ですか?", "これは食べ物ですか?",
)  # fmt: skip
DRINKABLE = ("飲める?", "飲めますか?", "これは飲めますか?", "飲み物ですか?")
WHERE = ("", "", "", "", "この絵には", "この画像に", "この写真に", "ここに", "絵に")

SMALL_TALK = {
    "こんにちは": "こんにちは。絵について聞いてください。",
    "こんにちは。": "こんにちは。絵について聞いてください。",
    "おはよう": "おはようございます。絵について聞いてください。",
    "はじめまして": "はじめまして。絵について聞いてください。",
    "ありがとう": "どういたしまして。",
    "ありがとうございます。": "どういたしまして。",
    "あなたは誰ですか?": "絵についてお答えする小さなモデルです。",
    "君は誰?": "絵についてお答えする小さなモデルです。",
    "何ができますか?": "絵を見て、名前や色や種類をお答えします。",
}
OUT_OF_SCOPE = (
    "今何時ですか?", "値段はいくらですか?", "いくらですか?", "どこですか?", "ここはどこですか?", "誰が描きましたか?",
    "いつですか?", "何人いますか?", "天気はどうですか?", "楽しいですか?", "どうしてですか?", "重さはどれくらいですか?",
    "大きさは?", "好きですか?",
)  # fmt: skip
UNKNOWN = "すみません、それは分かりません。"
MANY_COLOURS = "いろいろな色です。"


@dataclass(frozen=True)
class Scene:
    """What one picture shows. `colour` is a name of COLOURS, "" for many colours, None where nobody may ask for it."""

    concept: Concept
    colour: str | None


def caption(scene: Scene) -> str:
    """`赤いりんごの絵です。`"""
    return f"{ADJECTIVES.get(scene.colour or '', '')}{scene.concept.name}の絵です。"


def edible_answer(concept: Concept) -> str:
    if concept.edible:
        return "はい、食べられます。"
    return "いいえ、飲み物です。" if concept.drinkable else "いいえ、食べ物ではありません。"


def colour_answer(scene: Scene) -> str:
    return f"{scene.colour}です。" if scene.colour else MANY_COLOURS


def _ask(question: str, rng: np.random.Generator) -> str:
    """The same question as different people type it."""
    if question.endswith("?") and rng.random() < 0.15:
        question = question[:-1] + str(rng.choice(["", "。"]))
    return question


def naming(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    question, answer = list(NAMING.items())[rng.integers(len(NAMING))]
    where = str(rng.choice(WHERE)) if question.startswith("何が") else ""
    return where + _ask(question, rng), answer.format(name=scene.concept.name)


def captioning(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    if rng.random() < 0.5:
        return str(rng.choice(CAPTION)), caption(scene)
    answer = f"これは{caption(scene)}{scene.concept.kind}の仲間です。"
    return _ask(str(rng.choice(DESCRIPTION)), rng), answer


def colouring(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    return _ask(str(rng.choice(COLOUR)), rng), colour_answer(scene)


def kind_of(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    return _ask(str(rng.choice(KIND)), rng), f"{scene.concept.kind}の仲間です。"


def eating(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    if rng.random() < 0.15:
        answer = "はい、飲めます。" if scene.concept.drinkable else "いいえ、飲み物ではありません。"
        return _ask(str(rng.choice(DRINKABLE)), rng), answer
    return _ask(str(rng.choice(EDIBLE)), rng), edible_answer(scene.concept)


def confirming(scene: Scene, rng: np.random.Generator, names: list[str]) -> tuple[str, str]:
    """`これはりんごですか?`, true in half of the cases."""
    name = scene.concept.name
    asked = name if rng.random() < 0.5 else str(rng.choice(names))
    question = f"{rng.choice(['これは', ''])}{asked}ですか?"
    return _ask(question, rng), f"はい、{name}です。" if asked == name else f"いいえ、{name}です。"


def chatting(rng: np.random.Generator) -> tuple[str, str]:
    if rng.random() < 0.5:
        return _ask(str(rng.choice(OUT_OF_SCOPE)), rng), UNKNOWN
    question, answer = list(SMALL_TALK.items())[rng.integers(len(SMALL_TALK))]
    return question, answer


def conversation(scene: Scene, rng: np.random.Generator, names: list[str]) -> list[tuple[str, str]]:
    """One to three questions about one picture, each with its answer."""
    count = int(rng.choice([1, 2, 3], p=[0.68, 0.22, 0.1]))
    weights = np.array([0.32, 0.2, 0.14 if scene.colour is not None else 0.0, 0.13, 0.1, 0.09, 0.02])
    topics = rng.choice(len(weights), size=count, replace=False, p=weights / weights.sum())
    turns = [
        naming, captioning, colouring, kind_of, eating,
        lambda scene, rng: confirming(scene, rng, names), lambda _, rng: chatting(rng),
    ]  # fmt: skip
    return [turns[topic](scene, rng) for topic in topics]


# ---------------------------------------------------------------------------------------------------------------------
# text for the language model only


def context(scene: Scene, rng: np.random.Generator) -> str:
    """Words in the place of a picture, enough to answer from: `果物、赤、りんご` or `名前はりんご、種類は果物`."""
    name, kind = scene.concept.name, scene.concept.kind
    colour = {None: "", "": "いろいろな色"}.get(scene.colour, scene.colour)
    style = rng.integers(4)
    if style == 0:
        words = [f"名前は{name}", f"種類は{kind}", f"色は{colour}" if colour else ""]
    elif style == 1:
        words = [f"{ADJECTIVES.get(scene.colour or '', '')}{name}", kind, colour if scene.colour == "" else ""]
    else:
        words = [name, kind, colour]
    words = [word for word in words if word]
    if style == 3:  # a picture says the same thing with several tokens
        words += [name] * int(rng.integers(1, 3))
    return "、".join(str(word) for word in rng.permutation(words))


def sentence(scene: Scene, rng: np.random.Generator, names: list[str]) -> str:
    """A plain sentence about a concept or a colour."""
    concept = scene.concept
    patterns = [
        f"{concept.name}は{concept.kind}の仲間です。",
        f"{concept.kind}の仲間には{concept.name}があります。",
        f"これは{caption(scene)}",
        f"{concept.name}と{rng.choice(names)}の絵を見ました。",
        f"昨日、{concept.name}の絵を描きました。",
        f"{concept.name}は食べられます。" if concept.edible else f"{concept.name}は食べ物ではありません。",
        f"絵の中に{ADJECTIVES.get(scene.colour or '', '')}{concept.name}が見えます。",
    ]
    return patterns[rng.integers(len(patterns))]


def text_question(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    """A question that needs no picture."""
    concept = scene.concept
    if rng.random() < 0.3:
        return chatting(rng)
    if rng.random() < 0.5:
        return f"{concept.name}は何の仲間ですか?", f"{concept.kind}の仲間です。"
    return f"{concept.name}は食べられますか?", edible_answer(concept)
