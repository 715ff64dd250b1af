# `make demo` and `make test` do all the set-up on a fresh machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export TRITON_DEFAULT_FP_FUSION ?= 1
unexport PYTHONDONTWRITEBYTECODE  # each process of the tests would compile everything again

.PHONY: demo test coverage mutants soak lint tested kernels-aot kernels-docs kernels-static kernels-oldest clean

demo: $(VENV)/.installed
	rm -rf dist/digits-demo && mkdir -p dist/digits-demo
	$(BIN)/kdcompile init --example digits dist/digits-demo
	$(BIN)/kdcompile build dist/digits-demo --target jetson -o dist/digits-jetson
	$(BIN)/kdcompile report dist/digits-jetson

test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/pytest --durations=10 -n 2 --dist loadfile --no-loadscope-reorder

# the same with coverage, which takes twice as long
coverage: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/pytest --cov --cov-report=term:skip-covered -n 2 --dist loadfile --no-loadscope-reorder

# thresholds and guards of statistics, gates and the regression check are changed one at a time, and
# those that no test notices are printed: hours on one core; FILES=... for some files
mutants: $(VENV)/.installed
	OMP_NUM_THREADS=1 nice $(BIN)/python tests/support/mutants.py $(FILES)

# kills, faults, builds side by side, full disks, fuzzers: under an hour; what each tried and found is
# printed, and written into docs/reliability.md
soak: SHELL := /bin/bash
soak: $(VENV)/.installed
	mkdir -p build
	set -o pipefail; OMP_NUM_THREADS=1 $(BIN)/pytest -m soak -n 2 --dist loadfile --no-loadscope-reorder -rP --durations=0 | tee build/soak.txt
	$(BIN)/python tests/support/soak_results.py build/soak.txt docs/reliability.md

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/typecheck build/lib build/bdist*
	$(BIN)/pip install -q --no-deps --target build/typecheck .
	$(BIN)/mypy
	cd build/typecheck && ../../$(BIN)/lint-imports ../../pyproject.toml --no-cache
	$(BIN)/python .ci/tested.py audit

# the set of dependencies that CI installs, by hash: run it where CI runs, and after pyproject.toml
tested: $(VENV)/.installed
	$(BIN)/python .ci/tested.py write

# every configuration of every kernel for every card: most of an hour on two cores
kernels-aot: $(VENV)/.installed
	TRITON_INTERPRET=0 $(BIN)/python -m kdcompile.kernels._aot --all --table
	TRITON_INTERPRET=0 $(BIN)/python -m kdcompile.kernels._aot --all --table --aligned

# bytes, instructions and launches of every kernel, counted without a GPU: half an hour on one core
kernels-static: $(VENV)/.installed
	OMP_NUM_THREADS=1 TRITON_INTERPRET=0 $(BIN)/python benchmarks/kernels_static.py
	OMP_NUM_THREADS=1 TRITON_INTERPRET=0 $(BIN)/python benchmarks/static_cpu.py
	$(MAKE) kernels-docs

# the kernels' tests under the oldest Triton that they run on, whose interpreter needs NumPy before
# 2.4: half an hour on one core
OLDEST := build/oldest
kernels-oldest: $(OLDEST)/.installed
	OMP_NUM_THREADS=1 $(OLDEST)/bin/pytest -W "ignore:Conversion of an array:DeprecationWarning" tests/kernels

$(OLDEST)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/pip install -q -c constraints.txt -e '.[cpu]' triton==3.6.0 'numpy<2.4' hypothesis pytest
	touch $@

kernels-docs: $(VENV)/.installed
	$(BIN)/python -m kdcompile.kernels._docs docs/kernels.md --csv benchmarks/kernels.csv \
		--static benchmarks/kernels_static.csv --cpu benchmarks/kernels_cpu.csv

# TESTED=1, which .ci/run sets, installs the tested set by hash, and not what is newest
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(if $(TESTED),$(BIN)/python .ci/tested.py install,$(BIN)/pip install -q -c constraints.txt -e '.[cpu,rtx,dev]')
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
