"""The miniature's recipe: what its language model is taught is what it is asked, and what is told is what is drawn."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from jminigpt4 import DEMO, JMiniGPT4Processor

RECIPE = Path(__file__).parent.parent / "examples" / "miniature"


@pytest.fixture(scope="module", autouse=True)
def recipe():
    """Its scripts import one another by name."""
    sys.path.insert(0, str(RECIPE))
    yield
    sys.path.remove(str(RECIPE))


@pytest.fixture(scope="module")
def words(recipe):
    """Vectors of 40 concepts, each a word of two of 200 pieces."""
    from blends import Dictionary
    from drawings import listed_concepts

    concepts, pieces = listed_concepts()[:40], np.random.default_rng(0)
    told: dict[str, list[int]] = {}
    dictionary = Dictionary(lambda w: told.setdefault(w, pieces.integers(200, size=2).tolist()), concepts, 200)
    torch.manual_seed(0)
    return concepts, dictionary.words(torch.nn.Embedding(200, 64))


def test_the_corpus_says_what_counts_as_well_formed(capsys):
    from scoring import check

    check(conversations=300)
    assert "10 broken ones are not" in capsys.readouterr().out


def test_a_vector_lies_at_its_cosine(words):
    from blends import at_cosine

    rng, name = np.random.default_rng(0), words[1].names[3]
    for cosine in (0.2, 0.7, 1.0):
        vector = at_cosine(name, cosine, rng)
        assert abs(vector @ name - cosine) < 1e-5 and abs(np.linalg.norm(vector) - 1) < 1e-5


def test_names_are_drawn_as_surely_as_vectors_say_them(words):
    """The share of names that are those of the nearest word is what the softmax over cosines promises."""
    from blends import BEYOND_AT, SHARPNESS, Blends

    concepts, vectors = words
    blends, rng, promised, kept = Blends(concepts), np.random.default_rng(1), [], []
    for _ in range(4000):
        vector, name = blends._name(vectors, rng)
        cosines = vectors.names[:-1] @ vector
        cosines[-1] = max(cosines[-1], BEYOND_AT)
        shares = np.exp(SHARPNESS["names"] * (cosines - cosines.max()))
        promised.append(shares.max() / shares.sum())
        kept.append(name == cosines.argmax())
    assert 0.5 < np.mean(promised) < 0.95 and abs(np.mean(kept) - np.mean(promised)) < 0.02
    unsure = np.array(promised) < 0.6
    assert unsure.sum() > 200 and abs(np.mean(np.array(kept)[unsure]) - np.mean(np.array(promised)[unsure])) < 0.06


def test_a_scene_is_laid_out_where_its_queries_are(words):
    from blends import NORM, Blends
    from queries import PARTS

    concepts, vectors = words
    rng = np.random.default_rng(2)
    drawn = [Blends(concepts).draw(vectors, rng) for _ in range(300)]
    pairs = [(told, scene) for told, scene in drawn if len(scene.things) == 2 and scene.listed]
    assert 40 < len(pairs) < 120
    names = {concept.name: number for number, concept in enumerate(concepts)}
    for part, thing in (("first", 0), ("second", 1)):
        cosines = [
            (told[PARTS[part]].mean(0) / np.linalg.norm(told[PARTS[part]].mean(0)))
            @ vectors.names[names[scene.things[thing].concept.name]]
            for told, scene in pairs
        ]
        assert np.mean(cosines) > 0.3
    sizes = np.array([np.linalg.norm(told, axis=1) for told, _ in drawn])
    assert sizes.min() > NORM[0] * 0.4 and sizes.max() < NORM[1] * 2.7


def test_looking_around_goes_from_one_thing_to_the_other():
    """Both sides are asked after once, and `もう一つは?` is answered by the one that was not just spoken of."""
    from corpus import Scene, Thing, looking_around
    from drawings import listed_concepts

    rng, concepts = np.random.default_rng(0), listed_concepts()
    others = 0
    for _ in range(300):
        first, second = (concepts[i] for i in rng.choice(len(concepts), 2, replace=False))
        turns = looking_around(Scene((Thing(first, "赤"), Thing(second, "青")), arrangement="side"), rng)
        sides = [answer for question, answer in turns if question[0] in "左右"]
        assert sorted(answer[0] for answer in sides) == ["右", "左"]
        for (before, _), (_, answer) in zip([("", ""), *turns], turns, strict=False):
            named = second if before.startswith("左") or not before.startswith("右") else first
            if answer.startswith("もう一つは"):
                others += 1
                assert answer == f"もう一つは{named.name}です。"
            elif answer[0] in "左右":
                assert (first if answer[0] == "左" else second).name in answer
    assert others > 20


def test_it_learns_from_the_prompts_that_it_will_be_given():
    """Ids and labels are those of the package's processor, but for the tokens in the places of a picture."""
    from pretrain_language import PAD, Sequences

    processor = JMiniGPT4Processor.from_pretrained(DEMO)

    def encode(text: str) -> list[int]:
        return processor.tokenizer(text, add_special_tokens=False)["input_ids"]

    turns = [
        ("何?", "りんごです。"),
        ("ありがとう", "どういたしまして。"),
        ("何色?", "赤です。"),
    ]
    sequences = Sequences.__new__(Sequences)
    sequences.encode = encode
    places = np.zeros((processor.num_query_tokens, 1))
    ours = sequences.chat([([places] if number == 0 else [], *turn) for number, turn in enumerate(turns)])
    messages = []
    for number, (question, answer) in enumerate(turns):
        picture = [{"type": "image"}] if number == 0 else []
        messages += [
            {"role": "user", "content": [*picture, {"type": "text", "text": question}]},
            {"role": "assistant", "content": answer},
        ]
    theirs = processor.encode_segments(messages)
    image = processor.image_token_id
    assert [PAD if i == image else i for i in theirs["input_ids"]] == ours.ids
    assert theirs["labels"] == ours.labels
    assert theirs["input_ids"].index(image) == ours.pictures[0][0]


def test_a_name_is_the_same_pieces_wherever_it_stands():
    """Otherwise a picture has to say several words at once, and answers begin with one and go on with another."""
    from drawings import listed_concepts

    tokenizer, strayed = JMiniGPT4Processor.from_pretrained(DEMO).tokenizer, []
    for concept in listed_concepts():
        endings = ("", "です。", f"は{concept.kind}の仲間です。", "、右に", "が写っています。")
        told = [f"左に{concept.name}{ending}" for ending in endings]
        own, *others = tokenizer(told, add_special_tokens=False)["input_ids"]
        strayed += [concept.name for ids in others if ids[: len(own)] != own]
    assert strayed == []


@pytest.mark.parametrize("family", ["gpt_neox", "llama", "gpt2"])
def test_the_last_layer_stays_a_copier(family):
    from pretrain_language import WIDTH, _attentions, keep_copying, new_model, optimizers_of, take_step

    torch.manual_seed(0)
    model = new_model(700, family, [[row] for row in range(40, 640)])
    frame = model.get_input_embeddings().weight[40:640].detach()
    values = torch.linalg.svdvals(frame)
    assert values[0] / values[-1] < 1.2  # random rows: 25
    optimizers = optimizers_of(model, getattr(model, model.base_model_prefix), 0.05, keep_copying(model))
    kept, ids = copying(_attentions(model)[-1]), torch.randint(5, 600, (2, 12))
    torch.testing.assert_close(kept, 2 * torch.eye(WIDTH), atol=1e-4, rtol=0)
    before = [parameter.clone() for parameter in _attentions(model)[0].parameters()]
    for _ in range(2):
        model(input_ids=ids, labels=ids).loss.backward()
        take_step(optimizers, 1e-2)
    assert torch.equal(copying(_attentions(model)[-1]), kept)
    assert all((a - b).abs().max() > 0 for a, b in zip(_attentions(model)[0].parameters(), before, strict=True))


def copying(attention: torch.nn.Module) -> torch.Tensor:
    """What becomes of a vector that all heads look at: values, then the output projection."""
    if hasattr(attention, "v_proj"):
        return (attention.o_proj.weight @ attention.v_proj.weight).detach()
    if hasattr(attention, "query_key_value"):
        fused = attention.query_key_value.weight.view(8, 3, -1, attention.query_key_value.weight.shape[1])
        return (attention.dense.weight @ fused[:, 2].reshape(-1, fused.shape[-1])).detach()
    width = attention.c_proj.weight.shape[0]
    return (attention.c_attn.weight[:, 2 * width :] @ attention.c_proj.weight).detach()


def test_a_linear_map_reads_what_words_can_tell_apart():
    """Twenty things in twenty directions of fifty: all are read by a free classifier; where two words are one vector,
    those two things are not told apart, and the others are."""
    from budget import read_linearly

    rng = np.random.default_rng(0)
    labels = np.arange(400) % 20
    directions = np.linalg.qr(rng.standard_normal((50, 20)))[0].T
    shown = torch.from_numpy((directions[labels] + 0.05 * rng.standard_normal((400, 50))).astype(np.float32))
    free = torch.eye(20)
    assert (read_linearly(shown[:300], labels[:300], shown[300:], free) == labels[300:]).all()
    words = free.clone()
    words[7] = words[3]
    said = read_linearly(shown[:300], labels[:300], shown[300:], words)
    assert {*said[labels[300:] == 7]} == {*said[labels[300:] == 3]} == {3}
    others = ~np.isin(labels[300:], [3, 7])
    assert (said[others] == labels[300:][others]).all()
