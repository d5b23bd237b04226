# `make demo` and `make test` do all their own set-up; they need Python 3.10 or later and nothing else.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint bench clean

demo: .venv/installed
	$(BIN)/jupyter execute --inplace notebooks/sam_finetune.ipynb
	@echo "Done: open notebooks/sam_finetune.ipynb, for example with $(BIN)/jupyter lab"

# Most tests wait for processes, so two at a time; a file's tests share a kernel and stay together.
test: .venv/installed
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not alone and not gpu"
	$(BIN)/python -m pytest -m "alone and not gpu"

lint: .venv/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# Some thirty minutes, on an idle machine. The plot is the README's.
bench: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python -m tests.benchmarks.start --plot tests/benchmarks/start.png
	$(BIN)/python -m tests.benchmarks.values
	$(BIN)/python -m tests.benchmarks.sam

# torch first, at the version of the constraints file: what comes later finds it there. stardist
# without its dependencies, because only the picture of nuclei in it is wanted, not TensorFlow.
# torchvision, for transformers' pipelines in one test, where only that test looks: beside the CPU
# build of torch, importing it fails. Bytecode is made by all cores at the end; pip would make it by
# one. What cannot be compiled is meant so: templates, and tests of other Pythons.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-compile --no-deps stardist
	$(BIN)/python -m pip install --quiet --no-compile --no-deps --constraint constraints.txt --target .venv/torchvision torchvision
	@$(BIN)/python -m compileall -qq -j 0 .venv/lib .venv/torchvision || true
	touch $@

clean:
	rm -rf .venv
