# make demo    set up, train for three minutes, look at the result
# make test    set up, check style and types, run every test
#
# PYTHON=python3.12        another Python (3.11 or newer)
# TORCH_INDEX=URL          another package index for torch alone, such as PyTorch's own, which has a smaller build for CPUs

PYTHON ?= python3
TORCH_INDEX ?=
BIN := .venv/bin

.PHONY: demo test check clean

demo: .venv/ready-to-run
	$(BIN)/hornbook train demo

test: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4

check: .venv/ready-to-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/ready-to-run: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "hornbook needs Python 3.11 or newer: make PYTHON=python3.12"; exit 2; }
	@$(PYTHON) -m venv .venv || \
		{ echo "this Python cannot make a virtual environment; on Debian: apt install python3-venv"; exit 2; }
	$(if $(TORCH_INDEX),$(BIN)/python -m pip install -q -c constraints.txt --no-deps --index-url $(TORCH_INDEX) torch)
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	@touch $@

.venv/ready-to-test: .venv/ready-to-run
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[test]'
	@touch $@

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis
