"""The attention variants of `conf/attention`, by name."""

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from attention.base import AttentionCore, AttentionDims
from lra.paths import CONF_DIR


def variant_names() -> list[str]:
    """Every variant that has a YAML."""
    return sorted(path.stem for path in (CONF_DIR / "attention").glob("*.yaml"))


def selected_variants(selection: str) -> list[str]:
    """The variants that a selection names: `a`, `a,b`, `glob(a*)` or `all`.

    Raises ValueError for a name or a pattern without a variant.
    """
    return select(selection, variant_names(), "attention variant")


def select(selection: str, known: Sequence[str], kind: str) -> list[str]:
    """The known names that a selection names: `a`, `a,b`, `glob(a*)` or `all`.

    Raises ValueError, saying of which kind, for a name or a pattern that matches none.
    """
    chosen: list[str] = []
    for part in selection.split(","):
        pattern = part.removeprefix("glob(").removesuffix(")") if part != "all" else "*"
        matches = [name for name in known if fnmatchcase(name, pattern)]
        if not matches:
            raise ValueError(f"no {kind} {part!r}; there are {', '.join(known)}")
        chosen += [name for name in matches if name not in chosen]
    return chosen


def load_attention(
    name: str, num_features: int, overrides: Sequence[str] = ()
) -> Callable[[AttentionDims], AttentionCore]:
    """The factory that `conf/attention/<name>.yaml` describes.

    `overrides` are Hydra's, such as `attention.dropout=0`. Raises ValueError for an unknown name.
    """
    return instantiate(composed(name, num_features, overrides))


def load_miniature(
    name: str, num_features: int, block_size: int, overrides: Sequence[str] = ()
) -> Callable[[AttentionDims], AttentionCore]:
    """The factory with few features and small blocks, so that short sequences exercise it.

    A hyper-parameter named `block_size` or `chunk_size` is set, unless an override sets it.
    """
    settings = composed(name, num_features, ())
    blocks = [key for key in ("block_size", "chunk_size") if key in settings]
    sizes = [f"attention.{key}={block_size}" for key in blocks]
    return load_attention(name, num_features, [*sizes, *overrides])


def composed(name: str, num_features: int, overrides: Sequence[str]) -> dict[str, Any]:
    """The resolved node `attention` of a run with this variant."""
    if name not in variant_names():
        raise ValueError(f"no attention variant {name!r}; there are {', '.join(variant_names())}")
    roots = [f"+attention={name}", f"+num_features={num_features}"]
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        config = compose(overrides=[*roots, *overrides])
    resolved = OmegaConf.to_container(config, resolve=True)
    assert isinstance(resolved, dict)
    return resolved["attention"]
