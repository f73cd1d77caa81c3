"""Plant bugs in the attention variants, one at a time, and name the test that catches each.

    python scripts/mutate_attention.py                  # every list
    python scripts/mutate_attention.py skeinformer      # tests/mutations/skeinformer.toml
    python scripts/mutate_attention.py --variant softmax --jobs 4

tests/mutations/<module>.toml lists the bugs of the variants in src/attention/<module>.py:

    [[mutation]]
    bug = "the mask is inverted"
    variants = ["softmax", "softmax_fused"]   # each of them has to catch it
    file = "base"                             # src/attention/base.py; <module>.py if left out;
                                              # with its suffix if it is not .py
    old = '''token_mask | ~any'''             # exact source text that occurs once in the file
    new = '''~token_mask | ~any'''

Each bug goes into a copy of src/attention, on which run the contract of the variant and then
tests/test_<module>.py and tests/test_<file>.py, up to the first failure. Exits with 1 if a bug
survives or does not run, if its source text is not found once, if a variant of the list has fewer
than six bugs, or if its tests fail without any.
"""

import argparse
import multiprocessing
import os
import shutil
import sys
import tempfile
import tomllib
from collections import Counter
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from io import StringIO
from pathlib import Path

import pytest
import torch._dynamo  # noqa: F401 (the first dispatch mode loads it: once here, not once a trial)
from tabulate import tabulate

from lra.variants import composed, variant_names

SOURCE = Path("src/attention")
LISTS = Path("tests/mutations")
MIN_BUGS = 6
OPTIONS = ["-x", "--tb=no", "-p", "no:cacheprovider"]


@dataclass(frozen=True)
class Mutation:
    """A bug: text of a source file, and what replaces it."""

    module: str
    bug: str
    file: str
    old: str
    new: str

    def planted(self, package: Path) -> str:
        """The file's source with the bug; ValueError unless the text is found once."""
        source = self.path(package).read_text()
        count = source.count(self.old)
        if count != 1 or self.old == self.new:
            raise ValueError(f"{self.bug!r}: found {count} times in {self.file}:\n{self.old}")
        return source.replace(self.old, self.new)

    def path(self, package: Path) -> Path:
        """The file in a copy of the package."""
        return package / (self.file if Path(self.file).suffix else f"{self.file}.py")


@dataclass(frozen=True)
class Trial:
    """A mutation, or none, under the tests of one variant."""

    variant: str
    module: str
    mutation: Mutation | None

    def run_contract(self) -> tuple[str, str]:
        """The outcome under the contract of the variant, and the first test that failed."""
        return self.run(["-k", f"[{self.variant}-", "tests/test_attention_contract.py"])

    def run_oracles(self) -> tuple[str, str]:
        """The same under the tests of the modules."""
        names = [self.module] if self.mutation is None else [self.module, self.mutation.file]
        files = [f"tests/test_{Path(name).stem}.py" for name in dict.fromkeys(names)]
        files = [file for file in files if Path(file).exists()]
        return self.run(files) if files else (self.unnoticed, "")

    def run(self, arguments: list[str]) -> tuple[str, str]:
        """The outcome of a pytest run; for a process that ends with it."""
        with tempfile.TemporaryDirectory() as folder:
            package = copied_source(folder)
            if self.mutation is not None:
                self.mutation.path(package).write_text(self.mutation.planted(package))
            loaded = [name for name in sys.modules if name.split(".")[0] in ("attention", "lra")]
            for name in loaded:
                del sys.modules[name]
            sys.path.insert(0, folder)
            first = FirstFailure()
            with redirect_stdout(StringIO()) as output:
                code = pytest.main([*OPTIONS, *arguments], plugins=[first])
        if code == pytest.ExitCode.OK:
            return self.unnoticed, ""
        if code != pytest.ExitCode.TESTS_FAILED:
            return "DOES NOT RUN", output.getvalue()[-300:]
        test = first.test.removeprefix("tests/")
        return ("FAILS WITHOUT A BUG" if self.mutation is None else "caught"), test

    @property
    def unnoticed(self) -> str:
        """The outcome if no test fails."""
        return "passes" if self.mutation is None else "SURVIVED"


class FirstFailure:
    """A pytest plugin that remembers which test failed first."""

    test = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called by pytest after each phase of a test."""
        if report.failed and not self.test:
            self.test = report.nodeid


def copied_source(folder: str) -> Path:
    """A copy of the package `attention` in a folder."""
    ignored = shutil.ignore_patterns("__pycache__")
    return Path(shutil.copytree(SOURCE, Path(folder, "attention"), ignore=ignored))


def trials_of(path: Path) -> Iterator[Trial]:
    """The trials of one list; ValueError for a text that is not found once, or too few bugs."""
    module = path.stem
    counts = {variant: 0 for variant in variant_names() if module_of(variant) == module}
    for entry in tomllib.loads(path.read_text())["mutation"]:
        variants = entry.pop("variants")
        mutation = Mutation(module=module, **{"file": module, **entry})
        mutation.planted(SOURCE)
        for variant in variants:
            counts[variant] += 1
            yield Trial(variant, module, mutation)
    few = {variant: count for variant, count in counts.items() if count < MIN_BUGS}
    if few:
        raise ValueError(f"{path.name}: fewer than {MIN_BUGS} bugs: {few}")
    yield from (Trial(variant, module, None) for variant in counts)


@cache
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
    # A forked process has torch loaded, and is used once, for one state of the package.
    with (
        tempfile.TemporaryDirectory() as cache,
        multiprocessing.get_context("fork").Pool(options.jobs, maxtasksperchild=1) as pool,
    ):
        os.environ["XDG_CACHE_HOME"] = cache  # for kernels with bugs
        outcomes = pool.map(Trial.run_contract, trials, chunksize=1)
        quiet = [i for i, trial in enumerate(trials) if outcomes[i][0] == trial.unnoticed]
        second = pool.map(Trial.run_oracles, [trials[i] for i in quiet], chunksize=1)
    for i, outcome in zip(quiet, second, strict=True):
        outcomes[i] = outcome
    rows = [
        [trial.variant, trial.mutation.bug if trial.mutation else "(none)", *outcome]
        for trial, outcome in zip(trials, outcomes, strict=True)
    ]
    print(tabulate(sorted(rows), ["variant", "bug", "outcome", "by"]))
    tally = Counter(outcome for outcome, _ in outcomes)
    print("\n" + ", ".join(f"{count} {outcome}" for outcome, count in tally.items()))
    return int(bool(tally.keys() - {"caught", "passes"}))


if __name__ == "__main__":
    os.chdir(Path(__file__).parents[1])
    sys.dont_write_bytecode = True
    try:
        sys.exit(main())
    except ValueError as error:
        sys.exit(str(error))
