"""Before the first step of a run: is a row in a pack, for this language model, what it is by itself?

It is where the language model is attention over a mask and positions and nothing else. Biases by distance in the
sequence, windows that count it, states that run through it: each would learn something else from a pack, most of them
without a word. So a pack as long as the run's own is compared with its rows, whatever the language model is called.
"""

import itertools

import numpy as np
import torch
from tqdm import tqdm

from .distributed import from_all
from .loss import PackLoss
from .packing import EncodedGroup, EncodedRow, Pack, Packer, shared_length
from .parts import ENCODER, learning_counts, part_of
from .preparing import computed_dtype
from .sources import SourceData
from .steps import RowEncoder

TOLERANCES = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""How far loss and gradient may be off, relative. Half precision rounds a row in a pack otherwise than alone."""
ROWS = 4  # of a pack, compared with themselves
LONGEST = 256  # groups, of which enough for two packs are taken
SCALE = 64.0  # of the loss: small gradients are none in float16


def longest_groups(sources: list[SourceData], encoder: RowEncoder, tokens: int) -> list[EncodedGroup]:
    """Groups to compare: those with the longest rows, enough to fill two packs of `tokens` tokens.

    A window shows only in rows that are longer. Rows are ranked by the bytes of their texts, as not all of them can be
    encoded. Each row's `source` is its number here, each group's pictures are numbered on.
    """
    groups: list[EncodedGroup] = []
    rows, pictures, length = 0, 0, 0
    for number, index in _longest(sources, encoder.processor.num_query_tokens):
        source = sources[number]
        before = len(source.training)
        group = source.training[index] if index < before else source.validation[index - before]
        prompt = source.prompts.choose(0, number, index)
        encoded = [encoder.encode(row, rows + place, prompt) for place, row in enumerate(group.rows)]
        learnt = tuple(row for row in encoded if row.first_learnt < len(row.labels))
        if learnt:
            groups.append(EncodedGroup(learnt, tuple(range(pictures, pictures + len(group.pictures)))))
            rows, pictures = rows + len(encoded), pictures + len(group.pictures)
            shared = shared_length(learnt)
            length += shared + sum(len(row.input_ids) - shared for row in learnt)
        if length >= 2 * tokens:
            break
    return groups


def _longest(sources: list[SourceData], picture: int) -> list[tuple[int, int]]:
    """Source and place, in training and then in validation, of the `LONGEST` groups with pictures whose longest row is
    longest; a picture counts as `picture` bytes."""
    held = np.empty((0, 3), np.int64)
    for number, source in enumerate(sources):
        place = 0
        for groups in (source.training, source.validation):
            for chunk in groups.chunks():
                shown = groups.grouping.pictures[chunk].astype(np.int64)
                sizes = groups.grouping.longest[chunk] + picture * shown
                found = np.stack([sizes, np.full(len(chunk), number), place + np.arange(len(chunk))], axis=1)
                held = np.concatenate([held, found[shown > 0]])
                held = held[np.lexsort(held.T[::-1])[: -LONGEST - 1 : -1]]
                place += len(chunk)
    return [(number, place) for _, number, place in held.tolist()]


def exact_packer(loss: PackLoss, packer: Packer, groups: list[EncodedGroup], first: bool = True) -> Packer:
    """The packer, where loss and gradient of what learns are those of separate rows; else one of plain rows.

    Of an encoder that learns the gradient is that of its features, which a pack shares and separate rows do not.

    All processes take the same. The longest row's pack and the fullest one are compared, `ROWS` rows of each: at most
    two forward and backward passes of `pack_tokens` tokens and eight of a row.

    Args:
        loss: The model and its loss; from here on it takes what the returned packer packs.
        packer: The run's.
        groups: From `longest_groups`, the same in all processes.
        first: Whether this process says what was found.

    Raises:
        Exception: Whatever the language model raises on a plain row.
    """
    loss.packed, was_training = True, loss.training
    loss.eval()
    found = [each for each in from_all([_difference(loss, packer, groups)]) if each]
    loss.train(was_training)
    if not found:
        return packer
    loss.packed = False
    if first:
        family = loss.model.config.text_config.model_type
        tqdm.write(f"Rows are trained one by one: packs are not exact with the language model {family}, {found[0]}.")
    return plain(packer)


def plain(packer: Packer) -> Packer:
    """One row a pack, from its first token on."""
    return Packer(
        packer.image_token_id,
        packer.num_query_tokens,
        pack_tokens=1,
        mean_per_answer=packer.mean_per_answer,
        share=False,
    )


def _difference(loss: PackLoss, packer: Packer, groups: list[EncodedGroup]) -> str:
    """What is wrong with packs of these groups, or nothing."""
    rows = {row.source: (row, group.pictures) for group in groups for row in group.rows}
    if not rows:
        return ""
    config = loss.model.config
    shape = (1 + max(place for _, places in rows.values() for place in places), config.num_query_tokens)
    random = torch.Generator().manual_seed(0)
    # Any features will do, and these need no picture: what is compared is the language model.
    features = torch.randn(*shape, config.qformer_config.hidden_size, generator=random).to(loss.model.device)
    features.requires_grad_(not ENCODER.isdisjoint(learning_counts(loss.model)))
    longest = max(rows, key=lambda number: len(rows[number][0].input_ids))
    packs = packer.pack(groups)
    chosen = [next(pack for pack in packs if longest in pack.sources)]
    if (fullest := max(packs, key=lambda pack: len(pack.input_ids))) is not chosen[0]:
        chosen.append(fullest)
    for pack in chosen:
        if wrong := _compare(loss, packer, pack, rows, _some(pack, longest), features):
            return wrong
    return ""


def _some(pack: Pack, longest: int) -> list[int]:
    """Numbers of the rows of a pack that are compared: the longest, the last, and others between them."""
    numbers = pack.sources.unique_consecutive().tolist()
    some = {numbers[index * (len(numbers) - 1) // max(1, ROWS - 2)] for index in range(ROWS - 1)}
    return sorted(some | ({longest} & set(numbers)))


def _compare(
    loss: PackLoss,
    packer: Packer,
    pack: Pack,
    rows: dict[int, tuple[EncodedRow, tuple[int, ...]]],
    numbers: list[int],
    features: torch.Tensor,
) -> str:
    alone = [plain(packer).pack([EncodedGroup(rows[number][:1], rows[number][1])])[0] for number in numbers]
    loss.packed = False
    losses, gradients = _losses(loss, alone, numbers, features)
    loss.packed = True
    if not all(each.isfinite().all() for each in (losses, *itertools.chain(*gradients.values()))):
        return ""  # nothing to compare with; the first loss says why
    try:
        packed_losses, packed_gradients = _losses(loss, [pack], numbers, features)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        loss.model.zero_grad(set_to_none=True)
        reason = " ".join(str(error).split())
        return f"a pack raises {type(error).__name__} ({reason})"
    relative = [_relative(packed_gradients[part], each) for part, each in gradients.items()]
    off = (((packed_losses - losses).abs() / losses).max(), torch.stack(relative).max())
    if all(each <= TOLERANCES[computed_dtype(loss.model)] for each in off):  # NaN is not
        return ""
    return f"loss and gradient of a packed row differ from its own by {off[0]:.1e} and {off[1]:.1e}"


def _losses(loss: PackLoss, packs: list[Pack], numbers: list[int], features: torch.Tensor):
    """Mean loss of each row, `(rows,)`, and gradients of these rows together: of the parameters of each part that
    learns behind the features, and of the features where it learns before them."""
    means = {}
    for pack in (each.to(features.device) for each in packs):
        losses = loss(pack, features)
        rows = [(number, losses[pack.sources == number]) for number in numbers]
        own = {number: each.mean() for number, each in rows if len(each)}
        torch.autograd.backward(SCALE * torch.stack(list(own.values())).sum())
        means |= {number: each.detach().cpu().double() for number, each in own.items()}
    learning = [("features", features), *((part_of(name), each) for name, each in loss.model.named_parameters())]
    gradients: dict[str, list[torch.Tensor]] = {}
    for part, tensor in learning:
        if tensor.requires_grad and part not in ENCODER:
            gradients.setdefault(part, []).append(torch.zeros_like(tensor) if tensor.grad is None else tensor.grad)
    features.grad = None
    loss.model.zero_grad(set_to_none=True)
    return torch.stack([means[number] for number in numbers]), gradients


def _relative(values: list[torch.Tensor], expected: list[torch.Tensor]) -> torch.Tensor:
    """Norm of the difference of two lists of tensors over that of the second."""
    off, whole = (
        torch.stack([each.cpu().double().norm() for each in tensors]).norm()
        for tensors in ([value - other for value, other in zip(values, expected, strict=True)], expected)
    )
    return off / whole.clamp(min=torch.finfo(whole.dtype).tiny)
