"""Verdicts and costs of attention variants as text."""

from collections.abc import Sequence

from tabulate import tabulate

from attention.conformance.cost import Cost, exponent
from attention.conformance.suite import Verdict

BYTES_PER_MIB = 2**20


def verdict_table(verdicts: Sequence[Verdict]) -> str:
    """A line a property, and below an error what is likely to cause it."""
    rows = []
    for verdict in verdicts:
        worst = verdict.worst
        remark = {
            "pass": verdict.checked.statement,
            "FAIL": worst.what,
            "not promised": verdict.reason,
            "HOLDS": f"declared as not promised, but holds: {verdict.reason}",
        }[verdict.status]
        result = [verdict.checked.name, verdict.status]
        rows.append([*result, f"{worst.figure:.2g}", f"{worst.limit:.2g}", remark])
        if verdict.status == "FAIL":
            rows.append(["", "", "", "", f"likely: {worst.likely_cause}"])
    headers = ["property", "result", "figure", "limit", "what is measured, or why not promised"]
    return tabulate(rows, headers, disable_numparse=True)


def cost_table(costs: Sequence[Cost]) -> str:
    """A line a length, and the exponents of n that fit."""
    lengths = [cost.num_tokens for cost in costs]
    rows = [
        [
            f"{cost.num_tokens}",
            f"{cost.seconds * 1e3:.0f}",
            f"{cost.saved_bytes / BYTES_PER_MIB:.1f}",
            f"{cost.multiply_adds:.2e}",
        ]
        for cost in costs
    ]
    columns = (
        [cost.seconds for cost in costs],
        [float(cost.saved_bytes) for cost in costs],
        [cost.multiply_adds for cost in costs],
    )
    rows.append(["exponent", *(f"{exponent(lengths, column):.2f}" for column in columns)])
    headers = ["n", "step [ms]", "saved for backward [MiB]", "multiply-adds a head"]
    return tabulate(rows, headers, disable_numparse=True, colalign=("right",) * 4)
