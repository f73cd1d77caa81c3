"""From records to Table 1: cells, averages, and which variants are the best."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from lra.correctness import read_correct
from lra.record import Record, RunDirectory
from lra.report.accuracy import AVERAGE, AccuracyTable, Cell, Column, Runs, Score
from lra.report.conditions import MACHINERY, Conditions, Recipe, shared_recipe, variant_name
from lra.report.rows import TASKS, order_of_rows, row_label
from lra.report.statistics import (
    Correct,
    Difference,
    difference,
    mean_difference,
    t_interval,
    ties_with_best,
)


def accuracy_tables(records: Runs) -> list[AccuracyTable]:
    """A table for each protocol, backbone, numerics and machine among the runs.

    Raises `ValueError` for runs that claim one cell and cannot share it: twice the same seed, other
    data, another budget; and for right answers that do not fit their record.
    """
    groups: dict[Conditions, dict[Path, Record]] = {}
    for path, record in records.items():
        groups.setdefault(Conditions.of(record), {})[path] = record
    return [_table(key, groups[key]) for key in sorted(groups, key=str)]


def _table(conditions: Conditions, records: Runs) -> AccuracyTable:
    by_column: dict[str, dict[Path, Record]] = {}
    for path, record in records.items():
        by_column.setdefault(record["task"], {})[path] = record
    attentions = {variant_name(record): record["attention"] for record in records.values()}
    cells = {}
    for column, runs in by_column.items():
        for variant in attentions:
            chosen = {p: r for p, r in runs.items() if variant_name(r) == variant}
            if chosen:
                cells[variant, column] = _cell(chosen)
    order = order_of_rows(set(attentions), conditions.protocol)
    labels = {v: v.replace(a, row_label(a, conditions.protocol), 1) for v, a in attentions.items()}
    columns = _columns(by_column)
    averages, parts = _averages(columns, cells, list(attentions))
    best, untested = _best(cells, averages, parts)
    return AccuracyTable(
        conditions=conditions,
        columns=columns,
        rows={name: labels.get(name, row_label(name, conditions.protocol)) for name in order},
        cells=cells,
        averages=averages,
        best=best,
        untested=untested,
        remarks=_remarks(records),
    )


def _cell(runs: Runs) -> Cell:
    runs = dict(sorted(runs.items(), key=lambda item: int(item[1]["seed"])))
    by_seed: dict[int, Path] = {}
    for path, record in runs.items():
        if record["seed"] in by_seed:
            raise ValueError(
                f"{record['attention']} on {record['task']} has seed {record['seed']} twice: "
                f"{by_seed[record['seed']]} and {path}; delete one of them"
            )
        by_seed[record["seed"]] = path
    completed = {path: run for path, run in runs.items() if run["status"] == "completed"}
    states = Counter(
        run["failure"]["type"] if run["status"] == "failed" else run["status"]
        for run in runs.values()
        if run["status"] != "completed"
    )
    if not completed:
        return Cell(runs, None, None, states)
    first, *_ = completed.values()
    headline = first["result"]["headline"]
    accuracies = {r["seed"]: r["result"][f"test_accuracy_{headline}"] for r in completed.values()}
    answers = [read_correct(RunDirectory(path), run) for path, run in completed.items()]
    kept = [answer[headline] for answer in answers if answer is not None]
    return Cell(
        runs=runs,
        score=Score.of(accuracies, first["result"]["test_count"]),
        correct=np.stack(kept) if len(kept) == len(completed) else None,
        states=states,
    )


def _columns(by_column: Mapping[str, Runs]) -> list[Column]:
    """The five tasks in the paper's order, stand-ins in their place, then what else there is."""
    recipes = {name: shared_recipe(runs) for name, runs in by_column.items()}
    is_of_the_arena = any(recipe.task in TASKS for recipe in recipes.values())
    names: list[str] = []
    for task in TASKS:
        found = sorted(name for name, recipe in recipes.items() if recipe.family == task)
        names += found or ([task] if is_of_the_arena else [])
    names += sorted(set(recipes) - set(names))
    return [_column(name, recipes.get(name), by_column.get(name, {})) for name in names]


def _column(name: str, recipe: Recipe | None, runs: Runs) -> Column:
    results = [run["result"] for run in runs.values() if run["status"] == "completed"]
    facts = {(r["test_count"], r["test_constant_accuracy"]) for r in results}
    if len(facts) > 1:
        raise ValueError(
            f"runs on {name} were tested on different examples, though on the same data: "
            f"(test_count, test_constant_accuracy) are {', '.join(map(str, sorted(facts)))} in "
            f"{', '.join(map(str, runs))}"
        )
    count, constant = facts.pop() if facts else (None, None)
    return Column(name, recipe, count, constant)


def _averages(
    columns: Sequence[Column], cells: Mapping[tuple[str, str], Cell], variants: Sequence[str]
) -> tuple[dict[str, Score], list[str]]:
    """The averages, and the five columns that they are over."""
    families = [c.recipe.family for c in columns if c.recipe and c.recipe.family]
    five = [c.name for c in columns if c.recipe and c.recipe.family]
    if sorted(families) != sorted(TASKS):
        return {}, []
    averages = {}
    for variant in variants:
        scores = [cells[variant, name].score for name in five if (variant, name) in cells]
        known = [score for score in scores if score is not None]
        if len(known) < len(five):
            continue
        common = set.intersection(*(set(score.by_seed) for score in known))
        by_seed = {
            seed: statistics.fmean(score.by_seed[seed] for score in known)
            for seed in sorted(common)
        }
        mean = statistics.fmean(score.mean for score in known)
        if len(common) > 1 and all(set(score.by_seed) == common for score in known):
            values = list(by_seed.values())
            sd, interval = statistics.stdev(values), t_interval(values)
            averages[variant] = Score(by_seed, mean, sd, interval)
        else:
            averages[variant] = Score(by_seed, mean, None, None)
    return averages, five


def _best(
    cells: Mapping[tuple[str, str], Cell], averages: Mapping[str, Score], five: Sequence[str]
) -> tuple[dict[str, frozenset[str]], dict[str, frozenset[str]]]:
    best, untested = {}, {}
    for column in sorted({column for _, column in cells}):
        scores = {v: c.score.mean for (v, name), c in cells.items() if name == column and c.score}
        correct = {v: cells[v, column].correct for v in scores}
        untested[column] = frozenset(v for v, kept in correct.items() if kept is None)
        if len(scores) < 2 or untested[column]:
            continue
        leader = max(scores, key=scores.__getitem__)
        differences = {v: _difference(correct[leader], correct[v]) for v in scores if v != leader}
        best[column] = _distinguished(scores, differences)
    if len(averages) > 1 and not any(untested[column] for column in five):
        means = {variant: score.mean for variant, score in averages.items()}
        leader = max(means, key=means.__getitem__)
        differences = {
            variant: mean_difference(
                [
                    _difference(cells[leader, name].correct, cells[variant, name].correct)
                    for name in five
                ]
            )
            for variant in means
            if variant != leader
        }
        best[AVERAGE] = _distinguished(means, differences)
    return best, untested


def _distinguished(
    means: Mapping[str, float], differences: Mapping[str, Difference]
) -> frozenset[str]:
    """The best and its ties; none where all tie."""
    ties = ties_with_best(means, differences)
    return frozenset(ties) if len(ties) < len(means) else frozenset()


def _difference(first: Correct | None, second: Correct | None) -> Difference:
    assert first is not None
    assert second is not None
    return difference(first, second)


def _remarks(records: Runs) -> list[str]:
    """What runs do differently that moves time and memory, and accuracy by rounding alone."""
    differing: dict[str, list[str]] = {}
    for record in records.values():
        for key in MACHINERY:
            if key in record["overrides"]:
                what = f"{key}={record['overrides'][key]}"
                differing.setdefault(what, []).append(f"{record['attention']} on {record['task']}")
    return [
        f"{what}: {'all runs' if len(runs) == len(records) else ', '.join(sorted(set(runs)))}"
        for what, runs in sorted(differing.items())
    ]
