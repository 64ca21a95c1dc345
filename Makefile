# make demo, make test: from an empty machine with Python >= 3.11, make and a package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check
RUN := runs/demo

# XLA on CPU takes memory for temporaries anew at every step. Keeping what was freed, in huge pages, spares the page faults: a train
# step of the demo takes 0.7 of the time. Other C libraries than glibc do not look at this.
export GLIBC_TUNABLES := glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=100000000000

.PHONY: help install demo test lint bench peers clean
.DELETE_ON_ERROR:

help:
	@echo 'make demo     set up, then tokenizer -> data -> pretraining -> evaluation -> text; open $(RUN)/report.html (about 7 minutes)'
	@echo 'make test     set up, lint and all tests (about 10 minutes)'
	@echo 'make install  only .venv with the plamo2 command in it'
	@echo 'make lint     ruff and the import contracts'
	@echo 'make bench    speed of the train step and the tokenizer on this machine'
	@echo 'make peers    compare with other implementations (mlx-lm); needs the demo'

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "plamo2-jax needs Python 3.11 or later; try make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

$(VENV)/.installed-bench: install
	$(BIN)/python experiments/bench/train_step.py --output experiments/bench/train_step.json
	$(BIN)/plamo2 tokenizer train --input bundled:all:train --vocab-size 8192 --output runs/bench
	$(BIN)/python experiments/bench/tokenizer.py runs/bench --output experiments/bench/tokenizer.json

peers: $(VENV)/.installed-bench $(RUN)/report.html
	$(BIN)/python -m pytest -m peer

clean:
	rm -rf $(VENV) build dist *.egg-info src/*.egg-info
