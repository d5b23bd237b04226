# `make demo` and `make test` set up their environment themselves. They need only Python 3.10 or later.
PYTHON ?= python3
# The lowest supported Python, for the lowest versions: from pyenv, or python3.10 on the PATH.
PYTHON_OLDEST ?= $(or $(lastword $(wildcard $(HOME)/.pyenv/versions/3.10.*/bin/python)),$(shell command -v python3.10),$(PYTHON))
BIN := .venv/bin
OLDEST := .venv-oldest/bin

# Hundreds of processes of the tests import the package: the first one compiles it for all.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test test-slow test-oldest lint bench chaos clean

demo: .venv/installed
	@echo
	@echo "Executing notebooks/sam_finetune.ipynb. Two ranks start within seconds and train for two to"
	@echo "six minutes on two cores. They print a line for each of eight epochs."
	$(BIN)/python notebooks/execute.py notebooks/sam_finetune.ipynb
	@echo
	@echo "Done: open notebooks/sam_finetune.ipynb, for example with $(BIN)/jupyter lab"

# Three processes on two cores, since most tests wait; the tests of a file share a kernel and stay
# together. The files are in the order of collection, so that the small ones come last.
PARALLEL := $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

# `make test SLOW=1` runs those of `make test-slow` among them, which takes less than one after the other.
test: .venv/installed
	$(PARALLEL) -m "$(if $(SLOW),,not slow and )not alone and not gpu"
	$(BIN)/python -m pytest -m "alone and not gpu" tests/integration

# More minutes again: trainings, notebooks, torchrun, clusters, front ends, a random fault of each kind.
test-slow: .venv/installed
	$(PARALLEL) -m "slow and not gpu" tests/browser tests/integration tests/sam tests/chaos

# With the lowest versions that pyproject.toml allows. Warnings are not errors here: old libraries warn.
test-oldest: .venv-oldest/installed
	$(OLDEST)/python -m pytest -W default -n 3 --dist loadfile -m "not alone and not gpu and not slow" $(OLDEST_TESTS)

# The tests that depend most on torch, IPython, ipykernel, NumPy and transformers; all take too long.
OLDEST_TESTS := tests/unit tests/sam/test_model.py \
	$(addprefix tests/integration/test_,cell.py results.py)

lint: .venv/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# About thirty minutes on an idle machine. The README links to the plot. In a separate environment,
# because the tools that it compares with install JupyterLab extensions, which break the tests.
# `make bench AGAINST=DIR` compares with another checkout instead, in two minutes.
AGAINST :=
ifneq ($(AGAINST),)
bench: .venv/installed
	$(BIN)/python -m tests.benchmarks.checkouts $(AGAINST)
else
bench: .venv-bench/installed
	.venv-bench/bin/python -m tests.benchmarks.start --plot tests/benchmarks/start.png
	.venv-bench/bin/python -m tests.benchmarks.values
	.venv-bench/bin/python -m tests.benchmarks.nodes
	.venv-bench/bin/python -m tests.benchmarks.many_nodes
	.venv-bench/bin/python -m tests.benchmarks.page
	.venv-bench/bin/python -m tests.benchmarks.sam
endif

# Random faults in real kernels, ten minutes on two idle cores. A fault is the same for a seed and a
# number: `make chaos SEED=7 COUNT=100`, and `python -m tests.chaos --seed 7 --only 12` for one.
SEED := 1
COUNT := 300
chaos: .venv/installed
	$(BIN)/python -m tests.chaos --seed $(SEED) --count $(COUNT)

# $(call install,FOLDER,PYTHON,CONSTRAINTS,EXTRA): torch first, at the version of the constraints file,
# so that the other packages find it. stardist and segment-anything without dependencies (TensorFlow,
# torchvision), because only an image and single modules of them are needed. torchvision, for the
# transformers pipelines in one test, in a folder of its own, because importing it fails with the CPU
# build of torch. What cells and tests import is compiled at the end, once for all their processes.
define install
	@echo "Installing into $(1): one to five minutes, most of it for torch and what it needs."
	$(2) -m venv $(1)
	$(1)/bin/python -m pip install --no-compile --constraint $(3) torch
	$(1)/bin/python -m pip install --no-compile --constraint $(3) --editable '.[$(4)]'
	$(1)/bin/python -m pip install --no-compile --no-deps stardist segment-anything
	$(1)/bin/python -m pip install --no-compile --no-deps --constraint $(3) --target $(1)/torchvision torchvision
	@echo "Importing the libraries for the first time: up to a minute"
	@$(1)/bin/python -c "from ddp_magic import prelude; [getattr(prelude, n) for n in prelude.HOMES]"
	touch $@
endef

.venv/installed: pyproject.toml constraints.txt
	$(call install,.venv,$(PYTHON),constraints.txt,dev)

.venv-bench/installed: pyproject.toml constraints.txt
	$(call install,.venv-bench,$(PYTHON),constraints.txt,bench)

.venv-oldest/installed: pyproject.toml constraints-oldest.txt
	$(call install,.venv-oldest,$(PYTHON_OLDEST),constraints-oldest.txt,dev)

clean:
	rm -rf .venv .venv-bench .venv-oldest
