# make install | demo | quick | test | extended | test-matrix | lint | typecheck | imports. All of it
# runs in .venv, made when it is missing.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed
PEERS := .venv/peers_installed

.PHONY: install demo quick test extended test-matrix lint typecheck imports clean

install: $(STAMP)

# The stamp is written last, so an interrupted install is never taken for a whole one.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt \
	  --build-constraint constraints.txt --editable ".[experiments,dev]"
	touch $(STAMP)

# Torch, which only tests compare with, takes gigabytes.
$(PEERS): $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[torch]"
	touch $(PEERS)

demo: $(STAMP)
	$(BIN)/python -m experiments.robust_fusion --suite=demo --dataset=digits --workdir=runs/demo

# Tests compile far more than they compute; --unoptimised makes that three times as fast. What is
# promised of the solvers and shown in README.md is tested as users run it.
AS_USERS_RUN := tests/linalg tests/test_portability.py tests/test_readme.py
# Two processes share the cores: with as many threads as cores in each, they wait for one another.
PYTEST := OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 \
  $(BIN)/python -m pytest --numprocesses 2 --dist loadscope

test: $(PEERS)
	$(PYTEST) $(AS_USERS_RUN)
	$(PYTEST) --unoptimised $(AS_USERS_RUN:%=--ignore=%)

# One case of everything that is promised, before a commit.
quick: $(PEERS)
	$(PYTEST) --quick --unoptimised

# What is worth having, but not at each commit: long fuzzing, all combinations.
extended: $(PEERS)
	$(PYTEST) -m extended

# By hand, before bounds in pyproject.toml change: an hour or two, and 8 GB in .matrix.
test-matrix: $(STAMP)
	$(BIN)/python tests/matrix.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache --no-logo

typecheck: $(PEERS)
	$(BIN)/pyright
	$(BIN)/pyright --project tests

# The picture of the imports, as GitHub and other viewers of Markdown draw it.
imports: $(STAMP)
	$(BIN)/python -m tests.draw_imports > docs/imports.md

clean:
	rm -rf .venv .matrix build *.egg-info
