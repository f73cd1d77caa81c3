"""Which settings may leave padding out."""

from attention.base import AttentionCore
from lra.model import Classifier
from lra.settings import TrainerSettings


def refuse_shorter_padding(settings: TrainerSettings, model: Classifier) -> None:
    """Raise `ValueError` where less padding would change results, or cost instead of saving."""
    if not settings.bucket and not model.packed:
        return
    if settings.bucket and model.packed:
        raise ValueError(
            "model.packed=true leaves nothing to save for trainer.bucket=true; use one of the two"
        )
    if settings.bucket and model.pooling == "padded_mean":
        raise ValueError(
            "trainer.bucket=true changes the padded length that model.pooling=padded_mean divides "
            "by; use trainer.bucket=false"
        )
    key = "trainer.bucket" if settings.bucket else "model.packed"
    if model.packed and settings.compile:
        raise ValueError(
            "model.packed=true gives every batch other shapes, and trainer.compile=true would "
            "compile for each; use one of the two"
        )
    if settings.cuda_graph:
        raise ValueError(
            f"{key}=true gives every batch other shapes, and trainer.cuda_graph=true would capture "
            f"each; use one of the two"
        )
    for core in (module for module in model.modules() if isinstance(module, AttentionCore)):
        if reason := core.not_promised().get("padding_length"):
            raise ValueError(
                f"{key}=true changes what {type(core).__name__} computes ({reason}); "
                f"use {key}=false"
            )
