"""Packed, cached training computes what separate rows compute: loss and projection gradient within 1e-5 in float32."""

import random

import pytest
import torch

from jminigpt4.train import loss as loss_module
from jminigpt4.train.loss import PackLoss, block_mask
from jminigpt4.train.packing import EncodedGroup, EncodedRow, Packer, attention_mask, shared_length

IMAGE, BOS, EOS = 512, 2, 3
PREFIX = (BOS, 10, 11)
PICTURE = [IMAGE] * 4


def make_row(turns: list[tuple[list[int], list[int]]], source: int = 0) -> EncodedRow:
    """(prompt, answer) turns; EOS is learnt behind each answer, on the next prompt's first token or as a token."""
    ids, labels = [], []
    for prompt, answer in turns:
        ids += prompt + answer
        labels += [EOS if labels else -100, *[-100] * (len(prompt) - 1), *answer]
    return EncodedRow([*ids, EOS], [*labels, EOS], source)


def words(count: int) -> list[int]:
    return [random.randrange(40, 500) for _ in range(count)]


def captions() -> list[EncodedGroup]:
    """Three pictures with five captions each; two captions of a picture are equal."""
    groups = []
    for picture in range(3):
        answers = [words(random.randrange(2, 9)) for _ in range(4)]
        prompt = [*PREFIX, *PICTURE, 20, 21, 22]
        groups.append(EncodedGroup(tuple(make_row([(prompt, a)]) for a in [*answers, answers[0]]), (picture,)))
    return groups


def questions() -> list[EncodedGroup]:
    """Two pictures with eight questions each, of unequal length."""
    return [
        EncodedGroup(
            tuple(
                make_row(
                    [([*PREFIX, *PICTURE, 20, *words(random.randrange(1, 6)), 22], words(random.randrange(1, 4)))]
                )
                for _ in range(8)
            ),
            (picture,),
        )
        for picture in range(2)
    ]


def mixed() -> list[EncodedGroup]:
    """One caption, one answer of 40 tokens, a picture without words before it and one with another beginning."""
    return [
        EncodedGroup((make_row([([*PREFIX, *PICTURE, 20], words(3))]),), (0,)),
        EncodedGroup(
            (make_row([([*PREFIX, *PICTURE, 20], words(40))], 1), make_row([([*PREFIX, *PICTURE, 20], [7])])), (1,)
        ),
        EncodedGroup(tuple(make_row([([*PICTURE, *words(2)], words(4))]) for _ in range(2)), (2,)),
        EncodedGroup(
            (make_row([([BOS, 90, *PICTURE, 20], words(5))]), make_row([([BOS, 91, *PICTURE, 20], words(5))])), (3,)
        ),
    ]


def conversations() -> list[EncodedGroup]:
    """Several turns and pictures: both before the first question, or the second one later; a shared first answer."""
    first = [*PREFIX, *PICTURE, 20, 30, 22]
    answer = words(4)
    return [
        EncodedGroup(
            tuple(
                make_row([(first, answer), ([21, 31 + turn], words(3)), ([21, *words(3)], words(2))])
                for turn in range(3)
            ),
            (0,),
        ),
        EncodedGroup(
            tuple(make_row([([*PREFIX, *PICTURE, 23, *PICTURE, 20, *words(2)], words(3))]) for _ in range(4)), (1, 2)
        ),
        EncodedGroup(tuple(make_row([(first, words(2)), ([21, *PICTURE, 22], words(3))]) for _ in range(2)), (3, 4)),
        EncodedGroup(tuple(make_row([([*PREFIX, *PICTURE, *PICTURE], words(3))]) for _ in range(2)), (5, 6)),
    ]


KINDS = {"captions": captions, "questions": questions, "mixed": mixed, "conversations": conversations}


def make_groups(kind: str, seed: int = 0) -> list[EncodedGroup]:
    random.seed(seed)
    return KINDS[kind]()


def separate_rows(model, groups, features) -> tuple[torch.Tensor, torch.Tensor]:
    """The article's forward: every row by itself, the model's own loss; mean over all learnt tokens."""
    total, count = 0.0, 0
    for group in groups:
        for row in group.rows:
            ids, labels = torch.tensor([row.input_ids]), torch.tensor([row.labels])
            pictures = features[list(group.pictures)]
            output = model(ids, attention_mask=torch.ones_like(ids), query_features=pictures, labels=labels)
            learnt = int((labels[:, 1:] != -100).sum())
            total, count = total + output.loss * learnt, count + learnt
    return gradient_of(model, total / count)


def packed_rows(model, packs, features) -> tuple[torch.Tensor, torch.Tensor]:
    loss = PackLoss(model)
    losses = torch.cat([loss(pack, features) * pack.weights for pack in packs])
    return gradient_of(model, losses.sum() / torch.cat([pack.weights for pack in packs]).sum())


def gradient_of(model, loss) -> tuple[torch.Tensor, torch.Tensor]:
    layer = model.model.language_projection
    gradients = torch.autograd.grad(loss, [layer.weight, layer.bias])
    return loss.detach(), torch.cat([gradient.flatten() for gradient in gradients])


def difference(ours, theirs) -> tuple[float, float]:
    """Relative differences of loss and gradient."""
    (loss, gradient), (expected_loss, expected_gradient) = ours, theirs
    relative = (gradient - expected_gradient).norm() / expected_gradient.norm()
    return abs(loss - expected_loss).item() / expected_loss.item(), relative.item()


@pytest.fixture(scope="module")
def frozen(make_model):
    """`frozen(family)`: a model of which only the projection learns, one of each family."""
    made = {}

    def make(family: str):
        if family not in made:
            made[family] = make_model(family)
            made[family].freeze()
            made[family].train()
        return made[family]

    return make


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["gpt_neox", "llama", "gpt2", "opt"])
def test_packed_equals_separate_rows(frozen, query_features, family, kind):
    model, groups = frozen(family), make_groups(kind)
    expected = separate_rows(model, groups, query_features)
    for prefix in ((), PREFIX):
        packs = Packer(IMAGE, 4, 128, prefix).pack(groups)
        loss, gradient = difference(packed_rows(model, packs, query_features), expected)
        assert loss < 1e-6 and gradient < 1e-5


@pytest.mark.parametrize("options", [{"pack_tokens": 40}, {"pack_tokens": 4096}, {"share": False}])
def test_how_rows_fall_into_packs_changes_nothing(frozen, query_features, options):
    model, groups = frozen("gpt_neox"), [*make_groups("captions"), *make_groups("questions")]
    packs = Packer(IMAGE, 4, prefix=PREFIX, **options).pack(groups)
    loss, gradient = difference(
        packed_rows(model, packs, query_features), separate_rows(model, groups, query_features)
    )
    assert loss < 1e-6 and gradient < 1e-5
    assert max(len(pack.input_ids) for pack in packs) <= options.get("pack_tokens", 1024)


def test_eager_attention_takes_the_mask_too(make_model, query_features):
    model = make_model("llama")
    model.freeze()
    groups = make_groups("captions")
    expected = separate_rows(model, groups, query_features)
    model.set_attn_implementation("eager")
    packs = Packer(IMAGE, 4, prefix=PREFIX).pack(groups)
    loss, gradient = difference(packed_rows(model, packs, query_features), expected)
    assert loss < 1e-6 and gradient < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_the_block_mask_is_the_same_mask(kind):
    """What flex attention is told, position by position."""
    for pack in Packer(IMAGE, 4, 128, PREFIX).pack(make_groups(kind)):
        mask = block_mask(pack)
        rows, columns = torch.meshgrid(*(torch.arange(size) for size in mask.shape[-2:]), indexing="ij")
        assert torch.equal(mask.mask_mod(0, 0, rows, columns)[None, None], attention_mask(pack))


def test_flex_attention_gives_the_same_loss(make_model, query_features):
    """Forward only: torch has no backward of flex attention on CPU. Not compiled, which takes minutes and changes
    nothing."""
    model = make_model("llama", hidden_size=64)
    packs = Packer(IMAGE, 4, prefix=PREFIX).pack(make_groups("conversations"))
    with torch.no_grad():
        expected = [PackLoss(model)(pack, query_features) for pack in packs]
        model.set_attn_implementation({"text_config": "flex_attention"})
        with torch.compiler.set_stance("force_eager"):
            ours = [PackLoss(model)(pack, query_features) for pack in packs]
    for loss, flex in zip(expected, ours, strict=True):
        assert torch.allclose(flex, loss, rtol=1e-5)


def test_one_wrong_bit_of_the_mask_is_seen(frozen, query_features, monkeypatch):
    """The control of the tests above: what they compare depends on every bit."""
    model, groups = frozen("gpt_neox"), make_groups("captions")
    packs = Packer(IMAGE, 4, 128).pack(groups)
    expected = separate_rows(model, groups, query_features)

    def wrong_mask(pack):
        mask = attention_mask(pack)
        query = int((pack.segment == 2).nonzero()[0])
        mask[0, 0, query, query - 1] = True  # sees the last token of another caption
        return mask

    monkeypatch.setattr(loss_module, "attention_mask", wrong_mask)
    _, gradient = difference(packed_rows(model, packs, query_features), expected)
    assert gradient > 1e-3


def test_rows_of_a_picture_share_their_prompt():
    groups = make_groups("captions")
    (pack,) = Packer(IMAGE, 4).pack(groups)
    rows = [row for group in groups for row in group.rows]
    prompt = len(PREFIX) + 4 + 3
    learnt = sum(len(row.input_ids) - prompt for row in rows)
    # A prompt once a picture, and every answer without its end mark, which is a target but tells nothing.
    assert len(pack.input_ids) == 3 * prompt + learnt - len(rows)
    assert pack.pictures.tolist() == [0, 1, 2]
    assert len(pack.targets) == learnt
    assert pack.position_ids.max() == max(len(row.input_ids) for row in rows) - 2


def test_prefix_before_the_picture_is_left_out(frozen):
    (pack,) = Packer(IMAGE, 4, prefix=PREFIX).pack(make_groups("captions"))
    assert pack.prefix == PREFIX and BOS not in pack.input_ids
    assert pack.position_ids.min() == len(PREFIX)
    model = frozen("gpt_neox")
    loss = PackLoss(model)
    assert loss._prefix_cache(PREFIX).layers[0].keys.shape[2] == len(PREFIX)
    first = loss._prefixes[PREFIX][0][0]
    loss(pack, torch.randn(3, 4, 32))
    assert loss._prefixes[PREFIX][0][0] is first and first.shape[2] == len(PREFIX)  # not grown by a step


def test_shared_length_stops_where_something_is_learnt():
    answer = [50, 51]
    same = make_row([([*PREFIX, *PICTURE, 20], answer)])
    assert shared_length((same, same)) == 8
    assert shared_length((same,)) == 0
    bare = tuple(make_row([([*PREFIX, *PICTURE], [word])]) for word in (50, 51))
    assert shared_length(bare) == len(PREFIX) + 4
    assert shared_length((make_row([([60, *PICTURE], [50])]), make_row([([61, *PICTURE], [51])]))) == 0


def test_mean_per_answer_counts_every_answer_once(frozen, query_features):
    model, groups = frozen("llama"), make_groups("conversations")[:1]
    packs = Packer(IMAGE, 4, mean_per_answer=True).pack(groups)
    ours = packed_rows(model, packs, query_features)
    means = []
    for row in groups[0].rows:
        logits = model(torch.tensor([row.input_ids]), query_features=query_features[:1]).logits[0, :-1]
        labels = torch.tensor(row.labels[1:])
        losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        learnt = (labels != -100).nonzero().flatten().tolist()
        runs = [[learnt[0]]]
        for index in learnt[1:]:
            runs[-1].append(index) if index == runs[-1][-1] + 1 else runs.append([index])
        assert len(runs) == 3
        means += [losses[run].mean() for run in runs]
    expected = gradient_of(model, torch.stack(means).mean())
    loss, gradient = difference(ours, expected)
    assert loss < 1e-6 and gradient < 1e-5


def test_nothing_frozen_keeps_a_graph(frozen, query_features):
    model = frozen("gpt_neox")
    (pack,) = Packer(IMAGE, 4).pack(make_groups("captions"))
    PackLoss(model)(pack, query_features).sum().backward()
    with_gradient = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    assert with_gradient == ["model.language_projection.weight", "model.language_projection.bias"]
    model.zero_grad(set_to_none=True)


def test_a_process_without_data_still_has_a_gradient(frozen):
    model = frozen("gpt_neox")
    loss = PackLoss(model)(None, None)
    (gradient,) = torch.autograd.grad(loss.sum(), [model.model.language_projection.weight])
    assert loss.item() == 0 and gradient.count_nonzero() == 0


def test_unsupported_attention_is_refused_by_name(frozen, monkeypatch):
    model = frozen("gpt_neox")
    monkeypatch.setattr(model.config.text_config, "_attn_implementation_internal", "flash_attention_2")
    (pack,) = Packer(IMAGE, 4).pack(make_groups("captions"))
    with pytest.raises(ValueError, match="sdpa"):
        PackLoss(model)(pack, torch.randn(3, 4, 32))
