"""The command line of scripts that take Hydra's overrides without being a Hydra application."""

import argparse
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Options = TypeVar("Options", bound="DataclassInstance")


def parse_overrides(arguments: Sequence[str], description: str | None) -> list[str]:
    """The overrides among the arguments; `--help` prints the description and ends the program."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    return list(parser.parse_args(arguments).overrides)


def read_options(kind: type[Options], overrides: Sequence[str]) -> tuple[Options, list[str]]:
    """Options from `key=value` where the dataclass has the key; the other overrides are returned.

    A list is written `key=a,b`. Raises `ValueError` for a value of another type.
    """
    types = {field.name: str(field.type) for field in fields(kind)}
    chosen, others = [], []
    for override in overrides:
        key, _, value = override.partition("=")
        if key not in types:
            others.append(override)
        elif types[key].startswith("list") and not value.startswith("["):
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
