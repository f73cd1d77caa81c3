"""Plant bugs in the attention variants, one at a time, and name the test that catches each.

    python scripts/mutate_attention.py                  # every list
    python scripts/mutate_attention.py skeinformer      # tests/mutations/skeinformer.toml
    python scripts/mutate_attention.py --variant softmax --jobs 4

tests/mutations/<module>.toml lists the bugs of the variants in src/attention/<module>.py:

    [[mutation]]
    bug = "the mask is inverted"
    variants = ["softmax", "softmax_fused"]   # each of them has to catch it
    file = "base"                             # src/attention/base.py; <module>.py if left out
    old = '''token_mask | ~any'''             # exact source text that occurs once in the file
    new = '''~token_mask | ~any'''

Each bug goes into a copy of src/attention, on which run the contract of the variant and then
tests/test_<module>.py and tests/test_<file>.py, up to the first failure. Exits with 1 if a bug
survives or does not run, if its source text is not found once, if a variant of the list has fewer
than six bugs, or if its tests fail without any.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

from lra.variants import composed, variant_names

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "attention"
LISTS = ROOT / "tests" / "mutations"
CONTRACT = "test_attention_contract.py"
MIN_BUGS = 6


@dataclass(frozen=True)
class Mutation:
    """A bug: text of a source file, and what replaces it."""

    module: str
    bug: str
    file: str
    old: str
    new: str

    def plant(self, package: Path) -> None:
        """Apply to a copy of the package; ValueError unless the text is found once."""
        path = package / f"{self.file}.py"
        source = path.read_text()
        if source.count(self.old) != 1 or self.old == self.new:
            count = source.count(self.old)
            raise ValueError(f"{self.bug!r}: found {count} times in {path.name}:\n{self.old}")
        path.write_text(source.replace(self.old, self.new))


@dataclass(frozen=True)
class Trial:
    """A mutation, or none, under the tests of one variant."""

    variant: str
    module: str
    mutation: Mutation | None

    def run(self) -> tuple[str, str]:
        """The outcome, and the first test that failed."""
        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(SOURCE, Path(folder, "attention"))
            if self.mutation is not None:
                self.mutation.plant(Path(folder, "attention"))
            finished = subprocess.run(
                [sys.executable, "-m", "pytest", *self.pytest_arguments()],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": folder, "OMP_NUM_THREADS": "1"},
                capture_output=True,
                text=True,
            )
        failures = [line for line in finished.stdout.splitlines() if line.startswith("FAILED")]
        if finished.returncode == 0:
            return ("passed" if self.mutation is None else "SURVIVED"), ""
        if finished.returncode != 1 or not failures:
            return "DOES NOT RUN", finished.stdout[-300:]
        test = failures[0].removeprefix("FAILED tests/").split(" - ")[0]
        return ("FAILS WITHOUT A BUG" if self.mutation is None else "caught"), test

    def pytest_arguments(self) -> list[str]:
        """Options and files: the contract of this variant, then the tests of the modules."""
        files = [self.module] if self.mutation is None else [self.module, self.mutation.file]
        oracles = [ROOT / "tests" / f"test_{name}.py" for name in dict.fromkeys(files)]
        chosen = f"[{self.variant}- or not a_variant_keeps"
        options = ["-x", "-q", "--tb=no", "-rf", "-p", "no:cacheprovider", "-k", chosen]
        return [*options, f"tests/{CONTRACT}", *(str(path) for path in oracles if path.exists())]


def trials_of(path: Path) -> Iterator[Trial]:
    """The trials of one list; ValueError for a text that is not found once, or too few bugs."""
    module = path.stem
    counts = {variant: 0 for variant in variant_names() if module_of(variant) == module}
    for entry in tomllib.loads(path.read_text())["mutation"]:
        variants = entry.pop("variants")
        mutation = Mutation(module=module, **{"file": module, **entry})
        with tempfile.TemporaryDirectory() as folder:
            mutation.plant(Path(shutil.copytree(SOURCE, folder, dirs_exist_ok=True)))
        for variant in variants:
            counts[variant] += 1
            yield Trial(variant, module, mutation)
    few = {variant: count for variant, count in counts.items() if count < MIN_BUGS}
    if few:
        raise ValueError(f"{path.name}: fewer than {MIN_BUGS} bugs: {few}")
    yield from (Trial(variant, module, None) for variant in counts)


def module_of(variant: str) -> str:
    """The module in which a variant's class is defined."""
    return composed(variant, 8, ())["_target_"].split(".")[-2]


def main() -> int:
    """Run the trials, print the table, return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("modules", nargs="*", help="lists in tests/mutations; all if left out")
    parser.add_argument("--variant", help="this variant alone")
    parser.add_argument("--jobs", type=int, default=1, help="trials at once")
    options = parser.parse_args()
    modules = options.modules or sorted({module_of(variant) for variant in variant_names()})
    trials = [trial for module in modules for trial in trials_of(LISTS / f"{module}.toml")]
    trials = [trial for trial in trials if options.variant in (None, trial.variant)]
    with ThreadPoolExecutor(options.jobs) as pool:
        outcomes = list(pool.map(Trial.run, trials))
    rows = [
        [trial.variant, trial.mutation.bug if trial.mutation else "(none)", *outcome]
        for trial, outcome in zip(trials, outcomes, strict=True)
    ]
    print(tabulate(sorted(rows), ["variant", "bug", "outcome", "by"]))
    tally = Counter(outcome for outcome, _ in outcomes)
    print("\n" + ", ".join(f"{count} {outcome}" for outcome, count in tally.items()))
    return int(bool(tally.keys() - {"caught", "passed"}))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ValueError as error:
        sys.exit(str(error))
