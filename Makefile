# `make demo` and `make test` do all their own set-up; they need Python 3.10 or later and nothing else.
PYTHON ?= python3
# For the lowest versions, the lowest Python: by its name, or as pyenv has it.
PYTHON_OLDEST ?= $(or $(lastword $(wildcard $(HOME)/.pyenv/versions/3.10.*/bin/python)),$(shell command -v python3.10),$(PYTHON))
BIN := .venv/bin
OLDEST := .venv-oldest/bin

.PHONY: demo test test-oldest lint bench clean

demo: .venv/installed
	@echo
	@echo "Executing notebooks/sam_finetune.ipynb. Two ranks say hello within seconds; then they train,"
	@echo "two to six minutes on two cores, and print a line for each of eight epochs."
	$(BIN)/python notebooks/execute.py notebooks/sam_finetune.ipynb
	@echo
	@echo "Done: open notebooks/sam_finetune.ipynb, for example with $(BIN)/jupyter lab"

# Most tests wait for processes, so two at a time; a file's tests share a kernel and stay together.
test: .venv/installed
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not alone and not gpu"
	$(BIN)/python -m pytest -m "alone and not gpu"

# With the lowest versions that pyproject.toml allows. Old libraries warn of new ones: no errors here.
test-oldest: .venv-oldest/installed
	$(OLDEST)/python -m pytest -W default -n 2 --dist loadfile -m "not alone and not gpu" $(OLDEST_TESTS)

# A slice of them, for CI's time: what leans on torch, IPython, ipykernel, NumPy and transformers.
OLDEST_TESTS := tests/unit tests/sam/test_model.py \
	$(addprefix tests/integration/test_,cell.py results.py session.py)

lint: .venv/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# Some thirty minutes, on an idle machine. The plot is the README's. In an environment of its own:
# what is measured beside us puts extensions into JupyterLab, which change what the tests see.
bench: .venv-bench/installed
	.venv-bench/bin/python -m tests.benchmarks.start --plot tests/benchmarks/start.png
	.venv-bench/bin/python -m tests.benchmarks.values
	.venv-bench/bin/python -m tests.benchmarks.sam

# $(call install,FOLDER,PYTHON,CONSTRAINTS,EXTRA): torch first, at the version of the constraints file:
# what comes later finds it there. stardist without its dependencies, because only the picture of
# nuclei in it is wanted, not TensorFlow. torchvision, for transformers' pipelines in one test, where
# only that test looks: beside the CPU build of torch, importing it fails. Bytecode is made by all
# cores at the end; pip would make it by one. What cannot be compiled is meant so: templates, and
# tests of other Pythons.
define install
	@echo "Installing into $(1): one to five minutes, most of it for torch and what it needs."
	$(2) -m venv $(1)
	$(1)/bin/python -m pip install --no-compile --constraint $(3) torch
	$(1)/bin/python -m pip install --no-compile --constraint $(3) --editable '.[$(4)]'
	$(1)/bin/python -m pip install --no-compile --no-deps stardist
	$(1)/bin/python -m pip install --no-compile --no-deps --constraint $(3) --target $(1)/torchvision torchvision
	@echo "Compiling bytecode: a minute or two, without further words"
	@$(1)/bin/python -m compileall -qq -j 0 $(1) || true
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
