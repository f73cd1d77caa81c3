# `make help` lists the targets. PYTHON, VENV, TORCH and STUDY can be set: make setup TORCH=torch==2.14.1
PYTHON ?= python3
VENV ?= .venv
TORCH ?= $(shell grep '^torch==' constraints.txt)
STUDY ?= table1
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup lint format type test demo table1 table2 table3 figure1 figure2 figure3 tradeoff report smoke clean

help:  ## list the targets
	@grep -E '^[a-z0-9]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(READY)  ## create the virtual environment from pinned versions

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	sed 's/^torch==.*/$(TORCH)/' constraints.txt > $(VENV)/constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -c $(VENV)/constraints.txt -e '.[dev]'
	touch $@

lint: $(READY)  ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY)  ## apply formatting and safe fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

type: $(READY)  ## check types
	$(BIN)/mypy

test: $(READY)  ## run the tests
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto

demo: $(READY)  ## the main job: ListOps, four variants, tables and a picture
	$(BIN)/python scripts/prepare_data.py task=listops
	$(BIN)/python scripts/prepare_data.py task=listops_short
	$(BIN)/python scripts/train.py -m experiment=demo_efficiency
	$(BIN)/python scripts/train.py -m experiment=demo_learning
	$(BIN)/python scripts/make_table.py runs --study demo
	$(BIN)/python scripts/make_figure.py runs --study demo

table1: $(READY)  ## accuracy, from whatever runs STUDY (table1) has
	$(BIN)/python scripts/make_table.py 1 --study $(STUDY)

figure2: $(READY)  ## validation loss against time, from the runs of STUDY
	$(BIN)/python scripts/make_figure.py 2 --study $(STUDY)

figure3: $(READY)  ## batch size and learning rate, from the runs of figure3
	$(BIN)/python scripts/make_figure.py 3 --study figure3

tradeoff: $(READY)  ## accuracy, time and memory, from the runs of STUDY
	$(BIN)/python scripts/make_figure.py tradeoff --study $(STUDY)

report: $(READY)  ## one HTML page of the runs of STUDY
	$(BIN)/python scripts/make_report.py --study $(STUDY)

smoke: $(READY)  ## every row on every task, three steps on random tokens; table and report
	$(BIN)/python scripts/prepare_data.py task=all --synthetic 8 data_dir=data/synthetic
	$(BIN)/python scripts/train.py -m experiment=smoke
	$(BIN)/python scripts/make_table.py 1 --study smoke
	$(BIN)/python scripts/make_report.py --study smoke

$(VENV)/.approximation: $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check -c $(VENV)/constraints.txt -e '.[approximation]'
	touch $@

figure1: $(VENV)/.approximation  ## the approximation study: Figure 1, and over temperature
	$(BIN)/python scripts/approximate.py study=figure1
	$(BIN)/python scripts/approximate.py study=figure1_temperature lengths=[1024] \
	  attention=v_mean,skeinformer,skeinformer_uniform,skeinformer_no_reuse,informer,nystromformer \
	  num_features=[256] temperature=[1,2,4,8] num_trials=192

table2: $(READY)  ## minutes per 1,000 steps and the largest batch, five tasks; half an hour
	$(BIN)/python scripts/bench_step.py

table3: $(READY)  ## multiply-adds by counting, beside the published formulas
	$(BIN)/python scripts/table3.py

clean:  ## remove the environment and caches; data and outputs stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build src/*.egg-info
	find . -name __pycache__ -type d -exec rm -rf {} +
