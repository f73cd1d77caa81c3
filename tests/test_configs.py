"""Every configuration composes, builds, and has a reader for each of its keys."""

import pytest
import torch
from conftest import ATTENTIONS, ROOT, TASKS
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import get_method, instantiate

from attention.base import AttentionDims
from lra.model import Classifier
from lra.provenance import governed_keys, overrides
from lra.report.rows import TASKS as FIVE_TASKS
from lra.report.rows import paper_rows
from lra.run import refuse_false_label
from lra.tasks.store import Sequences, write_store

TABLE_1 = {
    "softmax", "softmax_no_dropout", "v_mean", "bigbird", "performer", "nystromformer", "reformer",
    "linformer", "linformer_jlt", "informer", "informer_masked", "skeinformer",
    "skeinformer_uniform", "skeinformer_no_norm", "skeinformer_simple_norm", "skeinformer_no_reuse",
}  # fmt: skip
PROTOCOLS = ("clean", "paper")


def test_every_row_of_table_1_is_one_file():
    assert set(ATTENTIONS) >= TABLE_1


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_every_variant_builds_in_the_papers_backbone_and_trains_a_step(compose_run, attention):
    config = compose_run(f"attention={attention}", "num_features=16")
    model: Classifier = instantiate(config.model)(
        instantiate(config.attention),
        vocab_size=16,
        max_seq_len=130,
        num_sequences=2,
        num_classes=2,
    )
    tokens = torch.randint(16, (2, 2, 130))
    mask = torch.arange(130).expand(2, 2, 130) < torch.tensor([[130, 70], [1, 64]])[..., None]
    optimizer = instantiate(config.optimizer)(model.parameters())
    torch.nn.functional.cross_entropy(model(tokens, mask), torch.tensor([0, 1])).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.step()
    moved = [not torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True)]
    assert sum(moved) > 0.8 * len(moved)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_task_composes_under_every_protocol(compose_run, task, protocol):
    config = compose_run(f"task={task}", f"protocol={protocol}")
    get_method(config.prepare._target_)
    instantiate(config.trainer)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = instantiate(config.optimizer)([parameter])
    assert type(optimizer).__name__ == {"clean": "Adam", "paper": "AdamW"}[protocol]
    instantiate(config.scheduler)(optimizer)
    assert config.model.pooling == {"clean": "token_mean", "paper": "padded_mean"}[protocol]


def test_the_papers_budget_for_listops(compose_run):
    config = compose_run("task=listops", "attention=skeinformer")
    assert config.attention.num_samples == config.attention.num_pilots == 256
    trainer = config.trainer
    assert (trainer.batch_size, trainer.max_steps, trainer.warmup_steps) == (256, 20_000, 1000)
    assert (trainer.check_steps, trainer.patience, config.optimizer.lr) == (500, 10, 1e-4)
    assert config.task.max_seq_len == 2048
    assert config.prepare.rule.min_length == 501


@pytest.mark.parametrize("path", sorted((ROOT / "conf/experiment").glob("*.yaml")))
def test_every_experiment_expands_to_runs_that_compose(compose_run, path):
    config = compose_run(f"experiment={path.stem}")
    instantiate(config.trainer)
    [sweep] = [line.split("-m ")[1] for line in path.read_text().splitlines() if " -m " in line]
    assert sweep == f"experiment={path.stem}"


def sweep(*command):
    """The runs of `train.py -m`, in order, each as a mapping of its overrides."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("train", command[:1], return_hydra_config=True)
    params = [f"{key}={value}" for key, value in config.hydra.sweeper.params.items()]
    parsed = OverridesParser.create().parse_overrides([*params, *command])
    [runs] = BasicSweeper.split_arguments(parsed, None)
    return [dict(override.split("=", 1) for override in run) for run in runs]


@pytest.mark.parametrize("experiment", ["table1", "table1_paper"])
def test_table_1_is_five_tasks_sixteen_rows_three_seeds_the_first_seed_first(experiment):
    runs = sweep(f"experiment={experiment}")
    rows = set(paper_rows("paper" if "paper" in experiment else "clean"))
    for seed in range(3):
        block = runs[80 * seed : 80 * (seed + 1)]
        assert {run["seed"] for run in block} == {str(seed)}
        assert {(r["task"], r["attention"]) for r in block} == {
            (task, attention) for task in FIVE_TASKS for attention in rows
        }
    assert len(runs) == 240


def test_table_1_is_narrowed_and_widened_on_the_command_line():
    runs = sweep("experiment=table1", "task=listops", "attention=skeinformer,mine", "seed=0,1,2,3")
    assert len(runs) == 8
    assert {run["attention"] for run in runs[:2]} == {"skeinformer", "mine"}


def test_the_runs_of_figure_2_are_runs_of_table_1(compose_run):
    overrides = [[f"{k}={v}" for k, v in run.items()] for run in sweep("experiment=figure2")]
    assert len(overrides) == 5 * 8
    for run in overrides:
        of_table_1 = compose_run("experiment=table1", *run)
        assert compose_run("experiment=figure2", *run) == of_table_1


def test_the_runs_of_figure_3_have_directories_of_their_own(compose_run):
    names = {
        compose_run("experiment=figure3", "task=text", *(f"{k}={v}" for k, v in run.items())).name
        for run in sweep("experiment=figure3")
    }
    assert len(names) == 18


@pytest.mark.parametrize("attention", [a for a in ATTENTIONS if a.startswith("skeinformer_")])
def test_an_ablation_differs_from_its_parent_in_what_it_ablates(compose_run, attention):
    parent = dict(compose_run("attention=skeinformer").attention)
    child = dict(compose_run(f"attention={attention}").attention)
    different = {key for key in parent if parent[key] != child[key]}
    assert different
    if not attention.endswith("_released"):
        assert len(different) == 1


def test_what_a_run_changes_is_told_apart_from_what_the_protocol_says(compose_run):
    plain = compose_run("protocol=paper")
    changed = compose_run("protocol=paper", "protocol.pooling=token_mean", "trainer.batch_size=8")
    assert overrides(changed, plain) == {
        "protocol.pooling": "token_mean",
        "trainer.batch_size": 8,
    }
    governed = governed_keys(plain)
    assert {"protocol.pooling", "optimizer.lr", "trainer.clip_grad_norm"} <= governed
    assert "trainer.batch_size" not in governed


def test_a_stand_in_is_never_filed_under_the_tasks_name(compose_run, tmp_path):
    config = compose_run("task=text", f"data_dir={tmp_path}")
    reviews = Sequences.of([(b"good", 1), (b"bad", 0)])
    source = {"kind": "stand-in", "name": "IMDB train halves"}
    splits = dict.fromkeys(("train", "val", "test"), reviews)
    write_store(tmp_path / "text", task="text", source=source, splits=splits)
    task = instantiate(config.task)
    with pytest.raises(ValueError, match=r"IMDB train halves: its results need .* label=NAME"):
        refuse_false_label(task, config.label, config.choices.task)
    refuse_false_label(task, "imdb_train_halves", config.choices.task)


def test_a_position_beyond_the_longest_sequence_does_not_exist(compose_run):
    core = instantiate(compose_run().attention)(AttentionDims(2, 32, 2048))
    assert core.dims.max_seq_len == 2048


@pytest.mark.parametrize(
    "path", sorted((ROOT / "conf/launcher").glob("*.yaml")), ids=lambda p: p.stem
)
def test_a_launcher_changes_where_a_run_goes_and_nothing_of_the_run(compose_run, path):
    plugin = {"local": "submitit", "slurm": "submitit"}.get(path.stem, path.stem)
    pytest.importorskip(f"hydra_plugins.hydra_{plugin}_launcher")
    assert compose_run(f"launcher={path.stem}") == compose_run()
