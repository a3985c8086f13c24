# make demo    set up, train for three minutes, look at the result
# make test    set up, check style and types, run the tests
# make quick    style, and the tests that find most in a minute: while you work
# make test-long     the tests that take long by nature, and all others with more examples; PART=long: the former alone
# make test-plain    the tests of what is computed, on this processor as if it were a plain one: AVX2, no bf16, no int8
# make knobs    write docs/knobs.md anew, and make glossary docs/glossary.md
# make bench   what we are measured by beside the peers at hand, in a quarter of an hour: ROWS="1 2", OUT=records/NAME,
#              NANOGPT=FOLDER with a checkout of it
# make soak    kill, damage and starve of disk a thousand runs, for hours; goes on where it stopped: OUT=FOLDER
# make test-space    start the app of a Space, with gradio in an environment of its own
#
# PYTHON=python3.12        another Python (3.11 or newer)
# TORCH_INDEX=URL          another package index for torch alone, such as PyTorch's own, which has a smaller build for CPUs

PYTHON ?= python3
TORCH_INDEX ?=
OS_NAME := $(shell uname -s)
NVIDIA_DRIVER ?= /proc/driver/nvidia/version
PART ?=
ROWS ?=
OUT ?=
NANOGPT ?=
BIN := .venv/bin

# What is computed, and so may depend on the processor.
NUMBERS := tests/model tests/base/test_machine.py \
	$(addprefix tests/train/test_,accumulation.py loop.py muon.py optim.py precision.py) \
	$(addprefix tests/infer/test_,beams.py decode.py quantize.py sampler.py score.py) \
	$(addprefix tests/exchange/test_,gguf.py references.py systems.py transformers.py with_code.py)
QUICK := tests/test_house.py tests/test_help.py tests/base/test_settings.py tests/base/test_errors.py tests/runs \
	tests/model/test_gpt.py tests/model/test_loss.py tests/infer/test_sampler.py tests/recipes/test_recipes.py \
	$(addprefix tests/train/test_,metrics.py muon.py optim.py schedule.py loop.py)
# Of these, what takes seconds.
SLOW := markov or opens_in_transformers or one_short_line or memory_are_told or last_digits
# What is imported is compiled then, not all that comes: of torch and its like most is never met.
PIP := $(BIN)/python -m pip install -q --no-compile -c constraints.txt
PLAIN := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadgroup

# What is compiled of Python is kept, or every child of the tests would compile all of it again.
export PYTHONDONTWRITEBYTECODE =

.PHONY: demo test quick test-long test-plain test-space soak bench check style types suite size knobs glossary clean

demo: .venv/ready-to-run
	$(BIN)/hornbook train demo

# The types are checked beside the tests: alone, that keeps one core of two waiting.
test: style
	@$(MAKE) --no-print-directory -j 2 types suite

suite: .venv/ready-to-test
	OMP_NUM_THREADS=1 $(PYTEST)

quick: .venv/ready-to-test
	$(BIN)/ruff check .
	OMP_NUM_THREADS=1 $(PYTEST) $(QUICK) -k "not ($(SLOW))"

test-long: .venv/ready-to-test
	OMP_NUM_THREADS=1 HORNBOOK_LONG=1 $(PYTEST) -m "$(PART)" --timeout 1800

test-plain: .venv/ready-to-test
	OMP_NUM_THREADS=1 $(PLAIN) $(PYTEST) $(NUMBERS)

# gradio 6 wants a pillow older than the one that draws our curves, so its environment looks into ours for the rest.
test-space: .venv/ready-to-test
	$(BIN)/python -m venv .venv/space
	.venv/space/bin/python -m pip install -q gradio==6.31.0
	$(BIN)/python -c 'import site; print(f"import site; site.addsitedir({site.getsitepackages()[0]!r})")' \
		> "$$(.venv/space/bin/python -c 'import site; print(site.getsitepackages()[0])')/ours.pth"
	OMP_NUM_THREADS=1 .venv/space/bin/python -m pytest -p no:cacheprovider tests/exchange/test_space.py

bench: .venv/ready-to-test
	$(BIN)/python bench/rows.py $(if $(ROWS),--rows $(ROWS)) $(if $(OUT),--out $(OUT)) $(if $(NANOGPT),--peer $(NANOGPT))

soak: .venv/ready-to-test
	OMP_NUM_THREADS=1 PYTHONPATH=tests:tests/train $(BIN)/python bench/soak.py $(if $(OUT),--out $(OUT))

check: style types

style: .venv/ready-to-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/ready-to-test
	$(BIN)/mypy

# torch for Linux brings CUDA with it, driver or not.
size:
	@if [ -n "$(TORCH_INDEX)" ]; then echo "torch is taken from TORCH_INDEX; a build for CPUs takes about 1 GB of disk"; \
	elif [ "$(OS_NAME)" != Linux ]; then echo "about 1 GB of disk will be taken"; \
	elif [ -e "$(NVIDIA_DRIVER)" ]; then echo "torch with CUDA will take about 6 GB of disk"; \
	else echo "no NVIDIA driver here, and torch with CUDA would take about 6 GB of disk: its build for CPUs takes 1 GB;"; \
		echo "stop with Ctrl-C, and: make demo TORCH_INDEX=URL  (PyTorch's installation page names the URL for CPUs)"; fi

.venv/ready-to-run: pyproject.toml constraints.txt
	@$(MAKE) -s size
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "hornbook needs Python 3.11 or newer: make PYTHON=python3.12"; exit 2; }
	@$(PYTHON) -m venv .venv || \
		{ echo "this Python cannot make a virtual environment; on Debian: apt install python3-venv"; exit 2; }
	@echo "installing torch, and what else is needed, into .venv: this once, some minutes"
	$(if $(TORCH_INDEX),$(PIP) --no-deps --index-url $(TORCH_INDEX) torch)
	$(PIP) -e .
	@touch $@

.venv/ready-to-test: .venv/ready-to-run
	$(PIP) -e '.[test]'
	@touch $@

knobs: .venv/ready-to-run
	$(BIN)/python -c 'from hornbook.cli.knobs import markdown; print(markdown(), end="")' > docs/knobs.md

glossary: .venv/ready-to-run
	$(BIN)/python -c 'from hornbook.base.glossary import markdown; print(markdown(), end="")' > docs/glossary.md

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis
