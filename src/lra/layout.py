"""How the sequences of a batch lie in memory on their way through the encoder: as rows."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Rows are positions, sequence after sequence; neighbors of one length form a group."""

    tokens: Int[Tensor, "*b n"]
    """Ids of all rows."""
    positions: Int[Tensor, " n"]
    """Place of a row in its sequence."""
    token_masks: list[Bool[Tensor, "_ _"]]
    """One for each group: its sequences by its length."""
    place: Int[Tensor, " b"] | None
    """Where in this order each sequence of the batch is; None: in its own place."""

    def sums(self, x: Float[Tensor, "t e"]) -> Float[Tensor, "b e"]:
        """Sum over the rows of each sequence, in the order of the batch."""
        groups = x.split([mask.numel() for mask in self.token_masks])
        sums = [
            group.unflatten(0, mask.shape).sum(1)
            for group, mask in zip(groups, self.token_masks, strict=True)
        ]
        return (
            torch.cat(sums) if self.place is None else torch.cat(sums).index_select(0, self.place)
        )


def padded(tokens: Int[Tensor, "b n"], token_mask: Bool[Tensor, "b n"]) -> Layout:
    """All positions, padding as well: one group."""
    positions = torch.arange(tokens.shape[1], device=tokens.device)
    return Layout(tokens, positions, [token_mask], None)


def packed(
    tokens: Int[Tensor, "b n"], token_mask: Bool[Tensor, "b n"], lengths: Sequence[int]
) -> Layout:
    """The first `lengths` positions of each sequence, the shortest first.

    Masked positions among them, holes, stay where they are: a token keeps its position.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    groups = sorted(Counter(lengths).items())
    max_length = tokens.shape[1]
    starts = [i * max_length for i in order]
    rows = torch.cat(
        [torch.arange(start, start + lengths[i]) for i, start in zip(order, starts, strict=True)]
    )
    place = torch.tensor(order).argsort()
    rows, place = (index.to(tokens.device, non_blocking=True) for index in (rows, place))
    masks = token_mask.flatten()[rows].split([length * count for length, count in groups])
    return Layout(
        tokens.flatten()[rows],
        rows % max_length,
        [m.view(count, length) for m, (length, count) in zip(masks, groups, strict=True)],
        place,
    )


def sequence_lengths(token_mask: Bool[Tensor, "b s n"]) -> list[int]:
    """Positions up to the last token of each of the b·s sequences; 1 where there is no token."""
    place = torch.arange(1, token_mask.shape[-1] + 1, device=token_mask.device)
    lengths: list[int] = (token_mask * place).amax(-1).clamp_min(1).flatten().tolist()
    return lengths
