# The two commands of the README are `make demo` and `make test`; both set up what they need.
PYTHON ?= python3
BIN := .venv/bin
# More threads than ranks can use only get in each other's way; see docs/decisions.md.
export OMP_NUM_THREADS ?= 1

.PHONY: demo test test-slow check lint types check-gpu-build mutants wan-tiny

.venv/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: run make PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

demo: .venv/.ready
	$(BIN)/jano-dist generate "a red ball moves left over a navy striped background" --nproc 2 --seed 1 --out out/demo
	@echo 'To go on: export PATH="$$PWD/$(BIN):$$PATH", then jano-dist --help'

# Two at a time: most tests wait, for programs to start or for ranks to be found dead.
test: check
	$(BIN)/pytest -n 2 --dist worksteal

# What `make test` leaves out; the result is recorded in tests/slow.md.
test-slow: .venv/.ready
	$(BIN)/python -m tests.record_slow

check: lint types

lint: .venv/.ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: .venv/.ready
	$(BIN)/mypy

# PyTorch's CUDA build and xfuser, without a GPU: shapes through GPU kernels, and xfuser's attention backends.
# 6 GB, in a virtual environment of its own; no part of `make test`.
check-gpu-build: .venv-gpu/.ready
	.venv-gpu/bin/python -m pytest tests/gpu_build

.venv-gpu/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-gpu
	.venv-gpu/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[gpu]" pytest hypothesis
	@touch $@

# Changes one thing at a time in the rooms and sees whether a test notices: most of an hour for all of them.
# One room: make mutants ROOM=tokens. See tests/mutants/README.md.
mutants: .venv/.mutants
	$(BIN)/python -m tests.mutants $(ROOM)

.venv/.mutants: .venv/.ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[mutants]"
	@touch $@

# Trains wan-tiny anew: hours on two CPU cores. See training/wan_tiny/README.md.
wan-tiny: .venv/.ready
	$(BIN)/python -m training.wan_tiny
