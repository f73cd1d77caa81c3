"""Carrying a study: its runs in one archive, and back into another `outputs/`.

Of a finished run the records travel, of an unfinished one its checkpoints as well.
"""

import json
import shutil
import tarfile
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from lra.record import Record, RunDirectory
from lra.report.records import read_record
from lra.study.wandb_runs import PREFIX, fetch_runs

WEIGHTS = ("last.pt", "best.pt")
NOT_CARRIED = (".tmp", ".lock")


def export_runs(root: Path, directories: Sequence[RunDirectory], archive: Path) -> int:
    """Pack runs below `root` into a gzipped tar archive, replacing it; returns its bytes.

    Raises `FileNotFoundError` where there is nothing to pack.
    """
    present = [directory for directory in directories if directory.record.exists()]
    if not present:
        raise FileNotFoundError(f"none of the {len(directories)} runs of this study has begun")
    temporary = archive.with_name(f"{archive.name}.tmp")
    with tarfile.open(temporary, "w:gz", compresslevel=6) as tar:
        for directory in present:
            for path in files_to_carry(directory):
                tar.add(path, arcname=path.relative_to(root))
    temporary.replace(archive)
    return archive.stat().st_size


def files_to_carry(directory: RunDirectory) -> Iterable[Path]:
    """What of a run travels."""
    finished = directory.read()["status"] == "completed"
    for path in sorted(directory.path.iterdir()):
        is_weights = path.name in WEIGHTS
        if path.is_file() and path.suffix not in NOT_CARRIED and not (finished and is_weights):
            yield path


def import_runs(source: str, root: Path) -> dict[str, list[str]]:
    """Merge the runs of an archive, or of W&B, into `root`.

    Returns run names by what was done with them. `new`: there was none. `further`: the same run,
    further on, replaces the one that is here. `kept`: the one here is as far. Everything is checked
    before anything is changed: raises `ValueError` for an unreadable source or record, for a run
    that is another one than that in its place, and for a place that is in use.
    """
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="import.", dir=root) as name:
        unpacked = Path(name)
        if source.startswith(PREFIX) or Path(source).is_dir():
            fetch_runs(source, unpacked)
        else:
            unpack(Path(source), unpacked)
        runs = sorted(path.parent.relative_to(unpacked) for path in unpacked.rglob("record.json"))
        decisions = {run: _decide(unpacked / run, RunDirectory(root / run)) for run in runs}
        for run, decision in decisions.items():
            if decision != "kept":
                _replace(unpacked / run, root / run)
    done: dict[str, list[str]] = {"new": [], "further": [], "kept": []}
    for run, decision in decisions.items():
        done[decision].append(str(PurePosixPath(run)))
    return done


def unpack(archive: Path, to: Path) -> None:
    """Extract an archive that `export_runs` made; raises `ValueError` for any other."""
    try:
        with tarfile.open(archive) as tar:
            members = tar.getmembers()
            refuse_unsafe(archive, members)
            tar.extractall(to, members)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"{archive} cannot be read as an archive: {error}") from error
    if not any(to.rglob("record.json")):
        raise ValueError(f"{archive} holds no runs")


def refuse_unsafe(archive: Path, members: Iterable[tarfile.TarInfo]) -> None:
    """Raise `ValueError` for a member that is no plain file, or that lies outside the archive."""
    for member in members:
        path = PurePosixPath(member.name)
        if not member.isfile() or path.is_absolute() or ".." in path.parts:
            raise ValueError(f"{archive} cannot be read: {member.name} is not a file of a run")


def _decide(incoming: Path, place: RunDirectory) -> str:
    theirs = read_record(incoming)
    if not place.record.exists():
        return "new"
    ours = read_record(place.path)
    if ours["run_id"] != theirs["run_id"]:
        raise ValueError(
            f"{place.path} holds run {ours['run_id']}, {theirs['run_id']} is to come to that "
            f"place; nothing was imported: move one of them away"
        )
    if (owner := place.owner()) is not None:
        raise ValueError(f"{place.path} is in use by {owner}; nothing was imported")
    return "further" if _progress(theirs, incoming) > _progress(ours, place.path) else "kept"


def _progress(record: Record, directory: Path) -> tuple[bool, int]:
    """Whether the run is finished, and its last check."""
    metrics = directory / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    return record["status"] == "completed", json.loads(lines[-1])["step"] if lines else 0


def _replace(new: Path, old: Path) -> None:
    """Put a directory in the place of another, which is removed last."""
    aside = old.with_name(f"{old.name}.replaced")
    old.parent.mkdir(parents=True, exist_ok=True)
    if old.exists():
        old.rename(aside)
    new.rename(old)
    shutil.rmtree(aside, ignore_errors=True)
