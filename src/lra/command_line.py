"""The command line of scripts that take Hydra's overrides without being a Hydra application."""

import argparse
from collections.abc import Sequence
from typing import TypeVar, get_origin, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

Options = TypeVar("Options")


def parse_overrides(arguments: Sequence[str], description: str | None) -> list[str]:
    """The overrides among the arguments; `--help` prints the description and ends the program."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    return list(parser.parse_args(arguments).overrides)


def read_options(kind: type[Options], overrides: Sequence[str]) -> tuple[Options, list[str]]:
    """Options of a dataclass from `key=value`, and the overrides whose keys it does not have.

    A list is written `key=a,b`. Raises `ValueError` for a value of another type.
    """
    types = get_type_hints(kind)
    chosen, others = [], []
    for override in overrides:
        key, _, value = override.partition("=")
        if key not in types:
            others.append(override)
        elif get_origin(types[key]) is list and not value.startswith("["):
            chosen.append(f"{key}=[{value}]")
        else:
            chosen.append(override)
    try:
        merged = OmegaConf.merge(OmegaConf.structured(kind), OmegaConf.from_dotlist(chosen))
        options = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ValueError(f"{error.full_key}: {error.msg}") from error
    assert isinstance(options, kind)
    return options, others
