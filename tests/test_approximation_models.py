"""Q, K and V of encoders and of checkpoints are those that their attention receives."""

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch.testing import assert_close
from transformers import BertConfig, BertModel

from lra.approximation.checkpoints import CheckpointSource, expand_paths
from lra.approximation.encoders import initialized_bert, load_tokenizer, pretrained_bert
from lra.approximation.text import load_text, standard_library_prose
from lra.record import RunDirectory
from lra.run import run

WORDS = [f"w{i}" for i in range(50)]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A file of 1,300 words."""
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text(" ".join(WORDS[i * i % 47] for i in range(1300)))
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A BERT of three layers with its tokenizer, as transformers stores one."""
    path = tmp_path_factory.mktemp("model")
    tokenizer = Tokenizer(WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token=WORDS[0]))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(path / "tokenizer.json"))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=64,
    )  # fmt: skip
    BertModel(config, add_pooling_layer=False).save_pretrained(path)
    return path


@pytest.mark.parametrize("layer", [0, 2])
def test_an_encoder_is_read_in_blocks_of_its_512_positions(folder, text, layer):
    source = pretrained_bert(model=str(folder), layer=layer, download=False, text=text)
    given = source.projections(1, 600)
    model = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    ids = torch.tensor(load_tokenizer(folder).encode(load_text(text).content).ids)[600:1200]
    with torch.no_grad():
        blocks = [model(b[None], output_hidden_states=True).hidden_states for b in ids.split(512)]
    x = torch.cat([hidden[layer][0] for hidden in blocks])
    attention = model.encoder.layer[layer].attention.self
    for name in ("query", "key", "value"):
        expected = torch.nn.functional.linear(x, *getattr(attention, name).parameters())
        actual = {"query": given.q, "key": given.k, "value": given.v}[name]
        assert_close(actual[0, 3], expected[:, 24:])
    assert source.num_sequences(600) == 2
    with pytest.raises(ValueError, match="has 1300 tokens, fewer than 2000"):
        source.num_sequences(2000)


def test_an_initialized_bert_has_the_scale_of_its_release(folder, text):
    settings = {"num_heads": 4, "layer": 0, "tokenizer": str(folder), "text": text}
    source, again, other = (
        initialized_bert(hidden_size=64, **settings, seed=seed) for seed in (0, 0, 1)
    )
    value = source.model.encoder.layer[0].attention.self.value
    assert float(value.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    assert not value.bias.any()
    embedded = source.layer_input(source.token_ids[:512].long())
    assert_close(embedded.std(-1, correction=0), torch.ones(512), rtol=1e-3, atol=0)
    assert source.description == again.description
    assert source.description["weights_sha256"] != other.description["weights_sha256"]


def test_weights_that_are_not_here_are_not_fetched(text, tmp_path):
    with pytest.raises(FileNotFoundError, match="nor in the local cache: name a folder"):
        pretrained_bert(model=str(tmp_path / "none"), layer=0, download=False, text=text)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_text(str(tmp_path / "none.txt"))


def test_every_python_brings_text():
    prose = standard_library_prose()
    assert "assert" in next(prose)


@pytest.fixture(scope="module")
def trained(compose_run_in_module, data_dir, tmp_path_factory):
    """A run of four steps."""
    config = compose_run_in_module(
        "task=listops_short", f"data_dir={data_dir}", "num_features=8", "trainer.batch_size=8",
        "trainer.max_steps=4", "trainer.check_steps=4", "trainer.max_eval_examples=8",
        "trainer.warmup_steps=2", "trainer.min_steps=0", "tracker=none", "model.num_layers=2",
    )  # fmt: skip
    directory = RunDirectory(tmp_path_factory.mktemp("run"))
    run(config, config, directory, "train")
    return directory


@pytest.fixture(scope="module")
def compose_run_in_module():
    from conftest import ROOT
    from hydra import compose, initialize_config_dir

    def composed(*overrides):
        names = ["choices.task=listops_short", "choices.attention=skeinformer"]
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            return compose("train", [*names, *overrides])

    return composed


def test_a_checkpoints_projections_are_what_its_layer_receives(trained, data_dir):
    source = CheckpointSource(path=str(trained.path), layer=0, split="val", data_dir=str(data_dir))
    assert (source.step, source.lengths, source.num_sequences(64)) == (4, (64,), 70)
    assert source.label == "listops_short-skeinformer-seed_0-step_4"
    given = source.projections(3, 64)
    encoder = source.model.encoder
    batch = source.examples.batch(torch.tensor([3]).numpy())
    x = encoder.token_embedding(batch.tokens[0]) + encoder.position_embedding.weight
    layer = encoder.layers[0]
    projected = layer.attention.project_in(layer.attention_norm(x))[0]
    for number, actual in enumerate((given.q, given.k, given.v)):
        expected = projected[:, 64 * number : 64 * (number + 1)].unflatten(-1, (2, 32))
        assert_close(actual[0], expected.transpose(0, 1).detach())
    assert torch.equal(given.token_mask, batch.token_mask[0])
    deeper = CheckpointSource(path=str(trained.last), layer=1, split="val", data_dir=str(data_dir))
    assert torch.equal(deeper.projections(3, 64).q, deeper.projections(3, 64).q)


def test_a_checkpoint_that_is_none_says_so(trained, tmp_path, data_dir):
    (tmp_path / "last.pt").touch()
    with pytest.raises(FileNotFoundError, match=r"config.yaml does not exist"):
        CheckpointSource(path=str(tmp_path), layer=0, split="val", data_dir=str(data_dir))
    with pytest.raises(ValueError, match="has the layers 0 to 1"):
        CheckpointSource(path=str(trained.path), layer=2, split="val", data_dir=str(data_dir))
    assert expand_paths([str(trained.path / "*.pt")]) == [str(trained.best), str(trained.last)]
