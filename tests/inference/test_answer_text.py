"""Streamed Japanese: piece by piece, never half a character, never a mark of the format."""

import pytest
import torch

from jminigpt4.inference.answer_text import AnswerText


def stream(processor, text_or_ids) -> tuple[list[str], AnswerText]:
    ids = text_or_ids
    if isinstance(ids, str):
        ids = processor.tokenizer(ids, add_special_tokens=False)["input_ids"]
    answer = AnswerText(processor)
    pieces = [answer.push(token_id) for token_id in ids]
    return [*pieces, answer.finish()], answer


def byte_ids(processor, text: str) -> list[int]:
    """The text in byte-fallback tokens only, a third of a kana each."""
    return processor.tokenizer.convert_tokens_to_ids([f"<0x{byte:02X}>" for byte in text.encode()])


@pytest.mark.parametrize(
    "text", ["これはとてもかわいいイラストです。", "赤い🍎と「青い」鳥、ｶﾞ", "a b  c", "改行\nあり"]
)
def test_pieces_make_the_answer(processor, text):
    pieces, answer = stream(processor, text.replace("\n", "<NL>"))
    expected = processor.trim_answer(processor.tokenizer.decode(answer.token_ids))
    assert "".join(pieces) == answer.text == expected
    assert "\ufffd" not in "".join(pieces)


def test_kana_are_flushed_piece_by_piece(processor):
    pieces, answer = stream(processor, "これはとてもかわいいイラストです")
    assert len([piece for piece in pieces if piece]) > 5
    assert max(map(len, pieces)) < len(answer.text) / 2


def test_no_half_characters(processor):
    ids = byte_ids(processor, "絵🍎と")
    pieces, _ = stream(processor, ids)
    assert [piece for piece in pieces if piece] == ["絵", "🍎", "と"]
    assert [index for index, piece in enumerate(pieces) if piece] == [2, 6, 9]


@pytest.mark.parametrize("missing", [1, 2])
def test_a_character_cut_off_is_dropped(processor, missing):
    ids = byte_ids(processor, "絵と")[:-missing]
    pieces, answer = stream(processor, ids)
    assert "".join(pieces) == answer.text == "絵"
    assert answer.token_ids == ids[:3]


def test_white_space_at_the_ends_is_left_out(processor):
    pieces, answer = stream(processor, "  赤 い  ")
    assert "".join(pieces) == answer.text == "赤 い"
    assert not pieces[0]


@pytest.mark.parametrize(
    "name, text", [("article-3.6b", "赤です<NL>ユーザー: 何"), ("minigpt4", "赤です###Human: 何")]
)
def test_the_next_speaker_is_left_out(make_processor, name, text):
    """The mark is many tokens here; no part of it is ever released, and the tokens kept are those before it."""
    processor = make_processor(name)
    assert len(processor.tokenizer(processor.stop_strings[0], add_special_tokens=False)["input_ids"]) > 1
    pieces, answer = stream(processor, text)
    assert "".join(pieces) == answer.text == "赤です"
    assert processor.tokenizer.decode(answer.token_ids) == "赤です"


def test_a_mark_that_stays_unfinished_is_text_in_the_end(make_processor):
    processor = make_processor("minigpt4")
    pieces, answer = stream(processor, "赤##")
    assert "".join(pieces[:-1]) == "赤"
    assert "".join(pieces) == answer.text == "赤##"


def test_line_breaks(processor):
    pieces, answer = stream(processor, "一<NL>二<N")
    assert "".join(pieces) == answer.text == "一\n二<N"
    assert "<" not in "".join(pieces[:-1])


def test_random_tokens_stream_to_what_they_decode_to(processor):
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        ids = torch.randint(7, 512, (20,), generator=generator).tolist()
        pieces, answer = stream(processor, ids)
        assert "".join(pieces) == answer.text
        assert ids[: len(answer.token_ids)] == answer.token_ids


def test_an_invalid_byte_does_not_spoil_what_stands_before_it(processor):
    pieces, answer = stream(processor, [*byte_ids(processor, "絵n"), *byte_ids(processor, "あ")[:2], 300])
    assert "".join(pieces) == answer.text
    assert answer.text.startswith("絵n\ufffd")
