"""How far attention variants are from softmax attention: Figure 1 of the paper, and beyond.

    python scripts/approximate.py study=figure1                  # the paper's four, on its sources
    python scripts/approximate.py attention=mine,skeinformer source=mine lengths=[1024,4096] \\
        temperature=[1,2,4,8]
    python scripts/approximate.py source=checkpoint checkpoint=RUN_DIRECTORY lengths=[2048]
    python scripts/approximate.py source=file file=PATH.npz      # arrays q, k, v
    python scripts/approximate.py attention=all source=gaussian source.score_scale=2

`attention` and `source` take names of files in conf/attention and conf/source (`a,b`, `glob(a*)`,
`all`), `attention.KEY=VALUE` and `source.KEY=VALUE` change one of their keys. The other keys stand,
explained, in conf/approximation.yaml.

Interrupted, the same command goes on. What it measured is kept by setting below outputs/, and is
not measured again. Writes a CSV and pictures beside, and says what they show.
"""

import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException, InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from tqdm import tqdm

from lra.approximation.checkpoints import expand_paths
from lra.approximation.figure import draw_pictures
from lra.approximation.findings import findings
from lra.approximation.sources import Source
from lra.approximation.study import Group, Study, StudySettings, approximates_softmax, variants
from lra.approximation.summary import markdown_tables, summarize, write_csv
from lra.command_line import parse_overrides
from lra.paths import CONF_DIR
from lra.variants import select, selected_variants


def main(arguments: Sequence[str]) -> int:
    """Measure what is missing, then print tables and findings and draw; return the exit status."""
    names = {"attention": "", "source": ""}
    overrides: dict[str, list[str]] = {"attention": [], "source": [], "study": []}
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key in names:
            names[key] = value
        else:
            overrides[key.split(".")[0] if "." in key else "study"].append(argument)
    config = composed(overrides["study"])
    values: Any = OmegaConf.to_container(config, resolve=True)
    settings = StudySettings(**{field.name: values[field.name] for field in fields(StudySettings)})
    attentions = softmax_variants(names["attention"] or config.attentions)
    chosen = variants(attentions, settings.num_features, overrides["attention"])
    directory = Path(config.out) / config.study
    study = Study(settings, directory)
    groups: list[Group] = []
    for name in select(names["source"] or config.sources, source_names(), "source"):
        for checkpoint in expand_paths(values["checkpoint"]):
            source = build_source(name, checkpoint, overrides)
            groups += study.groups(name, source, chosen)
    measure(study, groups)
    report(groups, directory, config.study)
    return 0


def softmax_variants(selection: str) -> list[str]:
    """The selected variants, but for those that are no approximation of softmax attention."""
    names = selected_variants(selection)
    taken = [name for name in names if approximates_softmax(name)]
    for name in sorted(set(names) - set(taken)):
        print(f"left out: {name}, which has one projection for queries and keys", file=sys.stderr)
    if not taken:
        raise ValueError(f"attention={selection}: no variant is left")
    return taken


def composed(overrides: Sequence[str]) -> DictConfig:
    """The configuration of the study, or of one source with `+source=NAME`."""
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return compose("approximation", list(overrides))


def source_names() -> list[str]:
    """Every source that has a YAML."""
    return sorted(path.stem for path in (CONF_DIR / "source").glob("*.yaml"))


def build_source(name: str, checkpoint: str | None, overrides: dict[str, list[str]]) -> Source:
    """A source, with one of the checkpoints."""
    given = [] if checkpoint is None else [f"checkpoint='{checkpoint}'"]
    config = composed([f"+source={name}", *overrides["study"], *given, *overrides["source"]])
    try:
        source: Source = instantiate(config.source)
    except InstantiationException as error:
        raise error.__cause__ or error from error
    return source


def measure(study: Study, groups: Sequence[Group]) -> None:
    """Measure all that is missing, with a progress bar over sequences."""
    num_missing = sum(group.num_missing for group in groups)
    with tqdm(total=num_missing, unit="sequence", disable=None) as bar:
        for group in groups:
            if group.num_missing:
                first_cell = group.cells[0][1]
                bar.set_description(f"{first_cell.identity['source_label']}, n={group.num_tokens}")
                study.measure(group, bar.update)


def report(groups: Sequence[Group], directory: Path, name: str) -> None:
    """Print tables and findings, and write them, the CSV and the pictures."""
    rows = [summarize(cell) for group in groups for _, cell in group.cells]
    text = "\n\n".join([*markdown_tables(rows), "\n".join(findings(rows))])
    print(text)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{name}.md").write_text(f"{text}\n")
    write_csv(directory / f"{name}.csv", rows)
    pictures = draw_pictures(directory / name, rows)
    print(f"\nwritten: {', '.join(map(str, [directory / f'{name}.md', '.csv', *pictures]))}")


if __name__ == "__main__":
    try:
        sys.exit(main(parse_overrides(sys.argv[1:], __doc__)))
    except (ValueError, OSError, HydraException, OmegaConfBaseException) as error:
        sys.exit(f"{type(error).__name__}: {error}")
