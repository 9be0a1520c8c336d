# Two commands for a newcomer: `make sample` draws pictures from the bundled model, `make test` checks everything.
PYTHON ?= python3
JOBS ?= 2

BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt

.PHONY: sample test lint types suite clean

sample: .venv/.installed
	$(BIN)/odediff sample mnist --solver rk4 --nfe 20 --n 64 --seed 0 --out samples.png

test: lint types suite

lint: .venv/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.installed-test
	$(BIN)/mypy

suite: .venv/.installed-test
	$(BIN)/pytest -n $(JOBS)

clean:
	rm -rf .venv build dist *.egg-info odediff/_row*.so samples.png

# The stamps are what makes a second run quick: pip is asked again only after pyproject.toml, constraints.txt or the
# C kernel changed.
.venv/.installed: .venv/.made odediff/kernels/row.c
	$(INSTALL) --no-build-isolation -e .
	@touch $@

.venv/.installed-test: .venv/.made odediff/kernels/row.c
	$(INSTALL) --no-build-isolation -e '.[test]'
	@touch $@ .venv/.installed

# setuptools comes first and pinned: with it in place the build needs no unpinned environment of its own.
.venv/.made: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "odediff needs Python 3.11 or newer, and '$(PYTHON)' is: $$($(PYTHON) -V 2>&1); name another: make PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	@echo "Installing into .venv; the first time this downloads PyTorch, which takes some minutes ..."
	$(INSTALL) 'setuptools>=77'
	@touch $@
