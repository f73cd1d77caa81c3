"""The study: which cells there are, and measuring what they lack."""

import hashlib
import inspect
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from hydra.utils import get_object, instantiate

from attention.base import AttentionCore, AttentionDims
from attention.conformance.cost import multiply_adds
from lra import provenance
from lra.approximation.cells import Cell, open_cell
from lra.approximation.errors import (
    ExactAttention,
    attend,
    exact_attention,
    root_mean_square,
    row_sums,
    spectral_norm,
)
from lra.approximation.predictions import prediction
from lra.approximation.sources import Source, stream_seed
from lra.paths import REPOSITORY
from lra.run import choose_device
from lra.variants import composed, load_attention

DTYPES = {"float32": torch.float32, "float64": torch.float64}
SECONDS_BETWEEN_SAVES = 10.0


@dataclass(frozen=True, kw_only=True)
class StudySettings:
    """`conf/approximation.yaml`: each key is explained there."""

    num_features: Sequence[int]
    lengths: Sequence[int] | None
    temperature: Sequence[float]
    num_trials: int
    dtype: Literal["float32", "float64"]
    seed: int
    device: str

    def __post_init__(self) -> None:
        for name in ("num_features", "temperature", "lengths"):
            values = getattr(self, name)
            if values is not None and (not values or min(values) <= 0):
                raise ValueError(f"{name}={list(values)} is not a list of positive numbers")
        if self.num_trials < 2:
            raise ValueError(f"num_trials={self.num_trials}: a standard error takes two or more")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype={self.dtype} is not one of {', '.join(DTYPES)}")


@dataclass(frozen=True)
class Variant:
    """A core at one number of features; None where the variant has no such number."""

    name: str
    num_features: int | None
    config: dict[str, Any]
    code_sha256: str
    """Of the module of its class: trials of a variant that has changed since are not continued."""
    build: Callable[[AttentionDims], AttentionCore]


def variants(
    names: Iterable[str], num_features: Sequence[int], overrides: Sequence[str]
) -> list[Variant]:
    """Every variant at every number of features; once, if its YAML does not ask for it."""
    found = []
    for name in names:
        depends = composed(name, 1, overrides) != composed(name, 2, overrides)
        for d in num_features if depends else num_features[:1]:
            config = composed(name, d, overrides)
            module = inspect.getsourcefile(get_object(config["_target_"]))
            found.append(
                Variant(
                    name=name,
                    num_features=d if depends else None,
                    config=config,
                    code_sha256=hashlib.sha256(Path(str(module)).read_bytes()).hexdigest(),
                    build=instantiate(config),
                )
            )
    return found


def approximates_softmax(name: str) -> bool:
    """Whether a variant takes Q and K apart: Reformer has one projection for both."""
    core = load_attention(name, num_features=8)(AttentionDims(1, 8, 64))
    return core.projections != "qk,v"


@dataclass(frozen=True)
class Group:
    """The cells that share their sequences, and so exact attention."""

    source: Source
    num_tokens: int
    temperature: float
    num_sequences: int
    cells: list[tuple[Variant, Cell]]

    @property
    def num_missing(self) -> int:
        """Sequences that some cell lacks."""
        return self.num_sequences - min(cell.num_sequences for _, cell in self.cells)


class Study:
    """Measures the variants on the sources, in cells below `directory`."""

    def __init__(self, settings: StudySettings, directory: Path) -> None:
        self.settings = settings
        self.directory = directory
        self.device = choose_device(settings.device)
        self.dtype = DTYPES[settings.dtype]
        self.details = {
            "git": provenance.git_state(REPOSITORY),
            "environment": provenance.environment(self.device),
        }

    def groups(self, name: str, source: Source, chosen: Sequence[Variant]) -> list[Group]:
        """The groups of a source, with what there is of their cells.

        Raises ValueError for a length the source does not have or has only one trial of, and for
        cells that are damaged or hold something else.
        """
        found = []
        for num_tokens in self.settings.lengths or source.lengths:
            available = source.num_sequences(num_tokens)
            wanted = -(-self.settings.num_trials // source.num_heads)
            num_sequences = wanted if available is None else min(wanted, available)
            if num_sequences * source.num_heads < 2:
                raise ValueError(
                    f"source={name} has a single head of a single sequence, n={num_tokens}: a "
                    f"standard error takes two or more"
                )
            for temperature in self.settings.temperature:
                cells = [
                    (variant, self.cell(name, source, variant, num_tokens, temperature))
                    for variant in chosen
                ]
                found.append(Group(source, num_tokens, temperature, num_sequences, cells))
        return found

    def cell(
        self, name: str, source: Source, variant: Variant, num_tokens: int, temperature: float
    ) -> Cell:
        """The cell of a setting, as far as it has come."""
        label = f"{name}-{source.label}" if source.label else name
        d = "" if variant.num_features is None else f"-d_{variant.num_features}"
        folder = self.directory / "cells" / label / f"n_{num_tokens}-temperature_{temperature:g}"
        identity = {
            "source": name,
            "source_label": label,
            "description": source.description,
            "num_heads": source.num_heads,
            "head_dim": source.head_dim,
            "num_tokens": num_tokens,
            "temperature": float(temperature),
            "attention": variant.name,
            "num_features": variant.num_features,
            "attention_config": variant.config,
            "attention_code_sha256": variant.code_sha256,
            "dtype": self.settings.dtype,
            "seed": self.settings.seed,
        }
        return open_cell(folder / f"{variant.name}{d}.json", identity, dict(self.details))

    def measure(self, group: Group, advance: Callable[[], object]) -> None:
        """Add the sequences that a group lacks; `advance` is called after each.

        Saves from time to time and when interrupted: the next call goes on from there.
        """
        first = group.num_sequences - group.num_missing
        last_save = time.monotonic()
        try:
            for sequence in range(first, group.num_sequences):
                self.measure_sequence(group, sequence)
                advance()
                if time.monotonic() - last_save > SECONDS_BETWEEN_SAVES:
                    self.save(group)
                    last_save = time.monotonic()
        finally:
            self.save(group)

    def save(self, group: Group) -> None:
        """Write every cell of the group."""
        for _, cell in group.cells:
            cell.save()

    @torch.no_grad()
    def measure_sequence(self, group: Group, sequence: int) -> None:
        """Add one sequence to every cell that lacks it."""
        given = group.source.projections(sequence, group.num_tokens)
        exact = exact_attention(given.prepared(group.temperature, self.dtype, self.device))
        v_mean = spectral_norm(exact.v_mean_error)
        seeds = [stream_seed(self.settings.seed, sequence, part) for part in (0, 1)]
        for variant, cell in group.cells:
            if cell.num_sequences > sequence:
                continue
            with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
                torch.manual_seed(seeds[0])
                core = self.build(variant, group)
                measured = measure_core(core, exact, seeds[1]) | {"v_mean_spectral": v_mean}
            if not all(values.isfinite().all() for values in measured.values()):
                raise ValueError(f"{cell.path}: sequence {sequence} gives a number not finite")
            cell.add({key: values.tolist() for key, values in measured.items()})
            if "multiply_adds" not in cell.details:
                cell.details |= self.describe(core, exact)

    def build(self, variant: Variant, group: Group) -> AttentionCore:
        """A new core; what it draws at construction comes from the generator's state."""
        source = group.source
        dims = AttentionDims(source.num_heads, source.head_dim, group.num_tokens)
        return variant.build(dims).to(device=self.device, dtype=self.dtype).eval()

    def describe(self, core: AttentionCore, exact: ExactAttention) -> dict[str, Any]:
        """What a core is and costs."""
        inputs = exact.projections
        arguments = (inputs.q, inputs.k, inputs.v, inputs.token_mask)
        names = [name for name, _ in core.named_parameters()]
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            count = multiply_adds(core, arguments) / core.dims.num_heads / len(inputs.q)
        return {
            "effective_features": core.effective_features,
            "multiply_adds": count,
            "untrained_parameters": names,
        }


def measure_core(core: AttentionCore, exact: ExactAttention, seed: int) -> dict[str, torch.Tensor]:
    """The measures of `lra.approximation.cells`, a number a head."""
    inputs = exact.projections
    error = exact.output - attend(core, inputs, seed)
    sums = row_sums(core, inputs, seed)
    measured = {
        "spectral": spectral_norm(error),
        "frobenius": error.flatten(1).norm(dim=-1),
        "row_sum": root_mean_square(sums - 1, inputs.token_mask),
        "exact_spectral": exact.spectral,
        "exact_frobenius": exact.frobenius,
    }
    predicted = prediction(core, exact, seed)
    if predicted is not None:
        measured[f"predicted_{predicted.norm}_square"] = predicted.squares
    return measured
