"""Regenerated ListOps against the original's samples, closed forms and an independent evaluator."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from scipy.stats import chi2_contingency, chisquare, ks_2samp

from lra.tasks.listops_generator import VOCAB, ListOpsRule, evaluate, generate, grow
from lra.tasks.store import Sequences

OFFICIAL = ListOpsRule(min_length=501, max_length=1999, max_depth=10, max_args=10)
SHORT = ListOpsRule(min_length=4, max_length=64, max_depth=4, max_args=5)
GOLDEN = Path(__file__).parent / "golden" / "listops_reference_16k.npz"
OPERATORS: dict[str, Callable[[list[int]], int]] = {
    "[MIN": min,
    "[MAX": max,
    "[MED": lambda digits: int(median(digits)),
    "[SM": lambda digits: sum(digits) % 10,
}


@pytest.fixture(scope="module")
def official() -> Sequences:
    return generate(OFFICIAL, seed=1, split=0, num_examples=8000, num_workers=1)


def rows(sequences: Sequences) -> list[bytes]:
    return [sequences.tokens[start:end].tobytes() for start, end in pairwise(sequences.offsets)]


def run_stack_machine(row: bytes) -> tuple[int, int, set[int]]:
    """Value of a sequence, its nesting of operators, and their numbers of arguments."""
    stack: list[tuple[str, list[int]]] = [("root", [])]
    nesting, num_args = 0, set()
    for token in map(VOCAB.__getitem__, row):
        if token in OPERATORS:
            stack.append((token, []))
            nesting = max(nesting, len(stack) - 1)
        elif token == "]":
            operator, digits = stack.pop()
            num_args.add(len(digits))
            stack[-1][1].append(OPERATORS[operator](digits))
        else:
            stack[-1][1].append(int(token))
    [(_, [value])] = stack
    return value, nesting, num_args


def test_lengths_operators_and_labels_are_distributed_as_the_originals(official: Sequences) -> None:
    golden = np.load(GOLDEN)
    is_bracket = official.tokens == VOCAB.index("]")
    num_operators = np.add.reduceat(is_bracket, official.offsets[:-1], dtype=np.int64)
    assert ks_2samp(np.diff(official.offsets), golden["lengths"]).pvalue > 0.01
    assert ks_2samp(num_operators, golden["num_operators"]).pvalue > 0.01
    counts = [np.bincount(labels, minlength=10) for labels in (official.labels, golden["labels"])]
    assert chi2_contingency(counts).pvalue > 0.01


def test_digits_and_operators_are_uniform(official: Sequences) -> None:
    counts = np.bincount(official.tokens, minlength=len(VOCAB))
    assert chisquare(counts[1:11]).pvalue > 0.01
    assert chisquare(counts[11:15]).pvalue > 0.01
    assert counts[0] == 0
    assert counts[15] == counts[11:15].sum()


def test_tree_sizes_follow_their_closed_form_between_the_bounds() -> None:
    child = np.array([0, 3 / 4, 0, 0, 1 / 8, 1 / 8])  # a digit, or 2 or 3 digits in brackets
    two = np.convolve(child, child)
    root = np.pad(two / 2, (0, 5)) + np.convolve(two, child) / 2
    expected = np.pad(root, (2, 0))[5:12]  # of the sizes 5 to 11
    rng = np.random.default_rng(0)
    rule = ListOpsRule(min_length=5, max_length=11, max_depth=3, max_args=3)
    sizes = np.concatenate([evaluate(rng, grow(rng, rule))[0].sizes for _ in range(8)])
    found = np.bincount(sizes - 5, minlength=7)
    assert len(found) == 7
    possible = expected > 0
    assert not found[~possible].any()
    ideal = expected[possible] / expected.sum() * len(sizes)
    assert chisquare(found[possible], ideal).pvalue > 0.01


@pytest.mark.parametrize(("rule", "num_examples"), [(OFFICIAL, 1000), (SHORT, 2000)])
def test_labels_and_shapes_agree_with_a_stack_machine(rule: ListOpsRule, num_examples: int) -> None:
    examples = generate(rule, seed=2, split=1, num_examples=num_examples, num_workers=1)
    lengths = np.diff(examples.offsets)
    assert len(examples) == num_examples
    assert rule.min_length <= lengths.min()
    assert lengths.max() <= rule.max_length
    values, nestings, num_args = zip(*map(run_stack_machine, rows(examples)), strict=True)
    assert_array_equal(values, examples.labels)
    assert max(nestings) == rule.max_depth - 1
    assert set().union(*num_args) == set(range(2, rule.max_args + 1))


def test_workers_change_nothing_and_fewer_examples_are_a_prefix(official: Sequences) -> None:
    gains: list[int] = []
    fewer = generate(
        OFFICIAL, seed=1, split=0, num_examples=2500, num_workers=3, progress=gains.append
    )
    assert_array_equal(fewer.tokens, official.tokens[: official.offsets[2500]])
    assert_array_equal(fewer.offsets, official.offsets[:2501])
    assert_array_equal(fewer.labels, official.labels[:2500])
    assert sum(gains) == 2500


def test_another_seed_gives_other_examples_and_none_repeats(official: Sequences) -> None:
    other = generate(OFFICIAL, seed=2, split=0, num_examples=500, num_workers=1)
    assert len(set(rows(official) + rows(other))) == 8500


def test_splits_of_a_short_rule_share_no_example_whatever_their_seeds() -> None:
    splits = [
        rows(generate(SHORT, seed=seed, split=split, num_examples=2000, num_workers=1))
        for seed in (0, 1)
        for split in (0, 1, 2)
    ]
    train, val, test = (set(splits[split] + splits[split + 3]) for split in (0, 1, 2))
    assert not train & val
    assert not train & test
    assert not val & test
    # the rule is one under which chance would not keep them apart
    assert len(train) < 3800


def test_a_rule_that_keeps_nothing_is_an_error_that_says_what_to_change() -> None:
    rule = ListOpsRule(min_length=50, max_length=60, max_depth=3, max_args=5)
    with pytest.raises(ValueError, match=r"min_length=50.*none of 131072.*raise max_depth"):
        generate(rule, seed=0, split=0, num_examples=1, num_workers=1)


@pytest.mark.parametrize(
    ("setting", "value", "limit"),
    [
        ("min_length", 1, "below 2"),
        ("max_length", 500, "below min_length=501"),
        ("max_depth", 1, "below 2"),
        ("max_args", 1, r"2\.\.255"),
        ("max_args", 256, r"2\.\.255"),
    ],
)
def test_impossible_rules_are_refused(setting: str, value: int, limit: str) -> None:
    with pytest.raises(ValueError, match=rf"{setting}={value} is .*{limit}"):
        ListOpsRule(**{**vars(OFFICIAL), setting: value})
