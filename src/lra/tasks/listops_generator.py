"""ListOps, regenerated from its grammar.

Nangia and Bowman, "ListOps: A Diagnostic Dataset for Latent Tree Learning", NAACL Student Research
Workshop 2018, https://arxiv.org/abs/1804.06028, in the lengths of Tay et al., "Long Range Arena",
ICLR 2021, https://arxiv.org/abs/2011.04006: 501 to 1999 tokens, 10 levels, at most 10 arguments.

The root is at depth 1. A node of depth below `max_depth` is an operator with probability 1/4, else
a uniform digit. An operator is uniform over MIN, MAX, MED and SM and over 2 to `max_args`
arguments. MED of an even number is the mean of the middle two, rounded down; SM is the sum modulo
10. A tree is kept if `min_length <= length <= max_length`, where

    length = leaves + 2 operators = 1 + sum over operators of (arguments + 1).

Trees grow as a forest, breadth first, until they are too long; the work is linear in the tokens.
Departures from the released generator:

- The content of a tree decides its split (`split_of`): a split draws from a fixed random share of
  all trees. So no tree is in two splits, whatever the seeds. The release relies on chance.
- A seed fixes the data. The release has none, and its order depends on Python's string hash.
"""

import hashlib
import itertools
import multiprocessing
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64, UInt8

from lra.tasks.store import Sequences

GENERATOR_VERSION = 1
"""Changes whenever the same rule and seed give other examples."""

VOCAB = ("<pad>", *"0123456789", "[MIN", "[MAX", "[MED", "[SM", "]")
"""The token of each id."""

DIGIT, OPERATOR, CLOSING_BRACKET = VOCAB.index("0"), VOCAB.index("[MIN"), VOCAB.index("]")
"""The ids of 0 and of `[MIN`, which the other digits and operators follow, and of `]`."""

_MIN, _MAX, _MED, _SM = range(4)
_ROOTS_PER_CHUNK = 8192
_MAX_BARREN_CHUNKS = 16
_SPLIT_OF_BUCKET = (0, 0, 0, 0, 0, 0, 0, 0, 1, 2)


@dataclass(frozen=True)
class ListOpsRule:
    """The trees to keep: lengths in tokens without parentheses, both ends included."""

    min_length: int
    max_length: int
    max_depth: int
    max_args: int

    def __post_init__(self) -> None:
        if self.min_length < 2:
            raise ValueError(f"min_length={self.min_length} is below 2: a root is an operator")
        if self.max_length < self.min_length:
            raise ValueError(f"max_length={self.max_length} is below min_length={self.min_length}")
        if self.max_depth < 2:
            raise ValueError(f"max_depth={self.max_depth} is below 2: an operator has arguments")
        if not 2 <= self.max_args <= 255:
            raise ValueError(f"max_args={self.max_args} is not in 2..255")


@dataclass(frozen=True)
class Level:
    """The operators of one depth, in breadth-first order, and which children are operators."""

    num_args: UInt8[np.ndarray, " ops"]
    is_operator: Bool[np.ndarray, " children"]


@dataclass(frozen=True)
class ValuedLevel:
    """What evaluation adds to a level: kinds of operators; values and sizes in tokens."""

    level: Level
    kinds: UInt8[np.ndarray, " ops"]
    values: UInt8[np.ndarray, " ops"]
    sizes: Int64[np.ndarray, " ops"]
    child_values: UInt8[np.ndarray, " children"]
    child_sizes: Int64[np.ndarray, " children"]


def generate(
    rule: ListOpsRule,
    *,
    seed: int,
    split: int,
    num_examples: int,
    num_workers: int,
    progress: Callable[[int], object] | None = None,
) -> Sequences:
    """The first examples of a split (0 train, 1 validation, 2 test): token ids and values.

    The same for any `num_workers`; a smaller number of examples is a prefix of a larger one.
    `progress` is told the number of examples gained. Raises `ValueError` if the rule keeps next
    to nothing.
    """
    if split not in _SPLIT_OF_BUCKET:
        raise ValueError(f"split={split} is not one of 0 (train), 1 (validation), 2 (test)")
    if min(num_examples, num_workers) < 1:
        raise ValueError(f"num_examples={num_examples} or num_workers={num_workers} is below 1")
    tokens, lengths, labels = bytearray(), [], []
    missing, barren = num_examples, 0
    with closing(_chunks(rule, seed, split, num_workers)) as stream:
        while missing > 0:
            chunk = next(stream)
            offsets = chunk.offsets[: missing + 1]
            gained = len(offsets) - 1
            missing -= gained
            barren = 0 if gained else barren + 1
            if barren == _MAX_BARREN_CHUNKS:
                message = f"{rule} kept none of {barren * _ROOTS_PER_CHUNK} trees in a row"
                raise ValueError(f"{message}; widen its lengths or raise max_depth or max_args")
            tokens += chunk.tokens[: offsets[-1]].data
            lengths.append(np.diff(offsets))
            labels.append(chunk.labels[:gained])
            if progress is not None:
                progress(gained)
    offsets = np.append(0, np.concatenate(lengths).cumsum())
    return Sequences(np.frombuffer(tokens, np.uint8), offsets, np.concatenate(labels))


def generate_chunk(rule: ListOpsRule, seed: int, split: int, chunk: int) -> Sequences:
    """The kept trees among 8,192 roots that belong to the split, from a generator of their own."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(split, chunk)))
    levels = evaluate(rng, grow(rng, rule))
    tokens, offsets = write_tokens(levels)
    bounds = itertools.pairwise(offsets)
    mine = np.array([split_of(tokens[a:b]) == split for a, b in bounds], dtype=bool)
    values, sizes = levels[0].values[mine], levels[0].sizes[mine]
    tokens = tokens[np.repeat(mine, levels[0].sizes)]
    return Sequences(tokens, np.append(0, sizes.cumsum()), values)


def split_of(tokens: UInt8[np.ndarray, " length"]) -> int:
    """The split that an example belongs to, by a hash of its tokens: 80, 10 and 10 percent."""
    digest = hashlib.blake2b(tokens.data, digest_size=8).digest()
    return _SPLIT_OF_BUCKET[int.from_bytes(digest, "big") % len(_SPLIT_OF_BUCKET)]


def grow(rng: np.random.Generator, rule: ListOpsRule) -> list[Level]:
    """Shapes of the trees that the rule keeps, level by level, down to the last operators."""
    tree = np.arange(_ROOTS_PER_CHUNK)
    length = np.ones(_ROOTS_PER_CHUNK, dtype=np.int64)
    trees, levels = [], []
    for depth in range(1, rule.max_depth):
        num_args = rng.integers(2, rule.max_args, len(tree), dtype=np.uint8, endpoint=True)
        np.add.at(length, tree, num_args.astype(np.int64) + 1)
        # what a tree beyond max_length would still draw cannot bring it back
        growing = length[tree] <= rule.max_length
        tree, num_args = tree[growing], num_args[growing]
        is_operator = np.zeros(num_args.sum(dtype=np.int64), dtype=bool)
        if depth + 1 < rule.max_depth:
            is_operator = rng.integers(0, 4, len(is_operator), dtype=np.uint8) == 0
        trees.append(tree)
        levels.append(Level(num_args, is_operator))
        first = _exclusive_cumsum(num_args)
        tree = np.repeat(tree, np.add.reduceat(is_operator, first, dtype=np.uint8))
    kept = (length >= rule.min_length) & (length <= rule.max_length)
    # in breadth-first order the children of dropped operators drop out alike
    return [
        Level(level.num_args[kept[tree]], level.is_operator[np.repeat(kept[tree], level.num_args)])
        for tree, level in zip(trees, levels, strict=True)
    ]


def evaluate(rng: np.random.Generator, levels: list[Level]) -> list[ValuedLevel]:
    """Draw digits and kinds of operators, and compute values and sizes, bottom-up."""
    valued: list[ValuedLevel] = []
    values, sizes = np.zeros(0, dtype=np.uint8), np.zeros(0, dtype=np.int64)
    for level in reversed(levels):
        child_values = rng.integers(0, 10, len(level.is_operator), dtype=np.uint8)
        child_values[level.is_operator] = values
        child_sizes = np.ones(len(level.is_operator), dtype=np.int64)
        child_sizes[level.is_operator] = sizes
        kinds = rng.integers(0, 4, len(level.num_args), dtype=np.uint8)
        values = apply_operators(kinds, level.num_args, child_values)
        sizes = np.add.reduceat(child_sizes, _exclusive_cumsum(level.num_args)) + 2
        valued.append(ValuedLevel(level, kinds, values, sizes, child_values, child_sizes))
    return valued[::-1]


def apply_operators(
    kinds: UInt8[np.ndarray, " ops"],
    num_args: UInt8[np.ndarray, " ops"],
    child_values: UInt8[np.ndarray, " children"],
) -> UInt8[np.ndarray, " ops"]:
    """Values of operators (0 MIN, 1 MAX, 2 MED, 3 SM) whose arguments lie one after the other."""
    first = _exclusive_cumsum(num_args)
    total = np.add.reduceat(child_values.astype(np.uint16), first, dtype=np.uint16)
    values = (total % 10).astype(np.uint8)
    np.copyto(values, np.minimum.reduceat(child_values, first), where=kinds == _MIN)
    np.copyto(values, np.maximum.reduceat(child_values, first), where=kinds == _MAX)
    is_median = kinds == _MED
    column, size = np.arange(num_args.max(initial=0)), num_args[is_median, None]
    rows = child_values.take(first[is_median, None] + column, mode="clip")
    rows[column >= size] = 255
    rows.sort(axis=1)
    middle = np.concatenate([(size - 1) // 2, size // 2], axis=1)
    values[is_median] = np.take_along_axis(rows, middle, axis=1).sum(axis=1) // 2
    return values


def write_tokens(
    levels: list[ValuedLevel],
) -> tuple[UInt8[np.ndarray, " tokens"], Int64[np.ndarray, " bounds"]]:
    """Token ids of the trees, one after the other, and their bounds, top-down."""
    offsets = np.append(0, levels[0].sizes.cumsum())
    tokens = np.empty(offsets[-1], dtype=np.uint8)
    start = offsets[:-1]
    for valued in levels:
        tokens[start] = OPERATOR + valued.kinds
        tokens[start + valued.sizes - 1] = CLOSING_BRACKET
        before = _exclusive_cumsum(valued.child_sizes)
        shift = start + 1 - before[_exclusive_cumsum(valued.level.num_args)]
        child_start = before + np.repeat(shift, valued.level.num_args)
        # where a child is an operator, the next level overwrites
        tokens[child_start] = DIGIT + valued.child_values
        start = child_start[valued.level.is_operator]
    return tokens, offsets


def _exclusive_cumsum(counts: np.ndarray) -> Int64[np.ndarray, " n"]:
    return counts.cumsum(dtype=np.int64) - counts


def _chunks(
    rule: ListOpsRule, seed: int, split: int, num_workers: int
) -> Generator[Sequences, None, None]:
    """All chunks in order, at most two per worker in flight."""
    chunks = ((rule, seed, split, chunk) for chunk in itertools.count())
    if num_workers == 1:
        yield from itertools.starmap(generate_chunk, chunks)
    pool = ProcessPoolExecutor(num_workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        first = itertools.islice(chunks, 2 * num_workers)
        ahead = deque(pool.submit(generate_chunk, *chunk) for chunk in first)
        for chunk in chunks:
            yield ahead.popleft().result()
            ahead.append(pool.submit(generate_chunk, *chunk))
    finally:
        pool.shutdown(cancel_futures=True)
