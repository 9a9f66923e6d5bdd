# make install | demo | test | lint | typecheck.  Everything runs in .venv, made when it is missing.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed
PEERS := .venv/peers_installed

.PHONY: install demo test lint typecheck clean

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
	$(BIN)/python -m experiments.robust_fusion --dataset=digits --num_attack=200 --workdir=runs/demo

# Experiments compile far more than they compute: the second half takes half as long without XLA's
# optimisation. What the library promises is tested as users run it.
test: $(PEERS)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadscope --ignore tests/experiments
	XLA_FLAGS=--xla_backend_optimization_level=0 \
	  $(BIN)/python -m pytest --numprocesses 2 --dist loadscope tests/experiments

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: $(PEERS)
	$(BIN)/pyright
	$(BIN)/pyright --project tests

clean:
	rm -rf .venv build *.egg-info
