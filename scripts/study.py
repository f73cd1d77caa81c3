"""Run, watch and carry a study: the runs of one experiment in `conf/experiment`.

    python scripts/study.py status --study table1                     # how far is it
    python scripts/study.py run --study table1 task=listops           # whatever is missing
    python scripts/study.py run --study table1 --minutes 9 --jobs 2   # as much as fits
    python scripts/study.py export --study table1 table1.tar.gz       # to go on elsewhere
    python scripts/study.py import table1.tar.gz                      # or wandb:ENTITY/PROJECT

Overrides narrow, widen or replace what the experiment sweeps, as in scripts/train.py. Nothing
that is done is done again, more seeds add to those that are there, and a run that was stopped goes
on where it was. Each run has a process of its own.
"""

import argparse
import os
import sys
import time
from pathlib import Path

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from tqdm import tqdm

from lra.study.archive import export_runs, import_runs
from lra.study.plan import Job, plan
from lra.study.progress import Survey
from lra.study.runner import Ending, Runner, jobs_to_run, slots

OUTPUTS = Path("outputs")


def main() -> int:
    """Parse, act, and return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    status = commands.add_parser("status", help="how far the study is, and the time left")
    run = commands.add_parser("run", help="run what is missing")
    run.add_argument("--minutes", type=float, help="stop cleanly after so long, to be resumed")
    run.add_argument("--jobs", type=int, help="runs at once; default: one a GPU, or one")
    run.add_argument("--retry-failed", action="store_true", help="failed runs too")
    export = commands.add_parser("export", help="pack its runs, unfinished ones with checkpoints")
    export.add_argument("archive", type=Path)
    for command in (status, run, export):
        command.add_argument("--study", required=True, help="a file of conf/experiment")
        command.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    merge = commands.add_parser("import", help="merge an archive, or what W&B kept")
    merge.add_argument("source", help="an archive, wandb:ENTITY/PROJECT, a folder of offline runs")
    options = parser.parse_args()
    try:
        if options.command == "import":
            return report_import(options.source)
        jobs = plan(options.study, options.overrides)
        if options.command == "status":
            return print_status(jobs)
        if options.command == "export":
            return report_export(jobs, options.archive)
        return run_missing(jobs, options.minutes, options.jobs, options.retry_failed)
    except (ValueError, OSError, HydraException, OmegaConfBaseException) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1


def print_status(jobs: list[Job]) -> int:
    """Print a table of what is done; 1 where runs have failed."""
    survey = Survey.of(jobs)
    print(survey.to_markdown())
    counts = survey.counts()
    print(f"\n{len(jobs)} runs: " + ", ".join(f"{n} {state}" for state, n in counts.items()))
    seconds, unknown = survey.seconds_left()
    left = [f"about {seconds / 60:.0f} min"] if seconds else []
    left += [f"{unknown} runs of which nothing is known yet"] if unknown else []
    if left:
        print(f"left to compute: {' and '.join(left)}")
    for line in survey.failures():
        print(line, file=sys.stderr)
    return int(bool({"failed", "other"} & set(counts)))


def run_missing(
    jobs: list[Job], minutes: float | None, num_jobs: int | None, retry_failed: bool
) -> int:
    """Run what is missing, then print the status; 0 only where everything is completed."""
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    missing = jobs_to_run(jobs, retry_failed=retry_failed)
    print(f"{len(jobs)} runs, {len(missing)} to do")
    with tqdm(total=len(missing), unit="run", disable=None) as bar:

        def tell(ending: Ending) -> None:
            problem = f": {ending.complaint}" if ending.returncode else ""
            bar.write(f"{ending.job.label}, {ending.seconds:.0f} s{problem}")
            bar.update()

        places = slots(num_jobs, num_gpus(), len(os.sched_getaffinity(0)))
        runner = Runner(places, deadline, tell)
        runner.run(missing)
    print_status(jobs)
    if runner.stopped.is_set():
        return 130
    return int(set(Survey.of(jobs).states) != {"completed"})


def num_gpus() -> int:
    """CUDA devices, without loading torch where there is no driver."""
    if not Path("/dev/nvidia0").exists():
        return 0
    import torch

    return torch.cuda.device_count()


def report_export(jobs: list[Job], archive: Path) -> int:
    """Pack a study, and say how large the archive is."""
    size = export_runs(OUTPUTS, [job.directory for job in jobs], archive)
    print(f"{archive}: {size / 2**20:.1f} MiB")
    return 0


def report_import(source: str) -> int:
    """Merge runs from elsewhere, and say what was done."""
    for outcome, runs in import_runs(source, OUTPUTS).items():
        print(f"{len(runs)} {outcome}", *runs, sep="\n  ")
    return 0


if __name__ == "__main__":
    sys.exit(main())
