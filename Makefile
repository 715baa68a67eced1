# Everything runs in .venv, which `make serve`, `make test` and the others make by themselves;
# the clients of `make clients` run beside it in .venv-clients, the peers of `make compare` in .venv-peers.
#   ARGS=...     goes to the command:  make serve ARGS="--port 9000"
#   PYTHON=...   makes the environment (3.10 or newer);   TORCH=cpu|cuda forces a build of torch
PYTHON ?= python3
TORCH ?= auto
ARGS ?=
OUT ?= benchmarks/results
SECONDS ?= 60
MINUTES ?= 30
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.set-up-$(TORCH)
CLIENTS := .venv-clients
CLIENTS_STAMP := $(CLIENTS)/.set-up
PEERS := .venv-peers
PEERS_STAMP := $(PEERS)/.set-up

.PHONY: help setup serve test sim soak-sim chaos hostile fuzz clients check bench compare soak kernels gpu
.DEFAULT_GOAL := help

help: ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16
	@sed -nE 's/^#   ?(.*)/  \1/p' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv, install everything, warm the kernel cache

$(STAMP): pyproject.toml constraints.txt .ci/set_up.py
	@command -v $(PYTHON) >/dev/null || { echo "setup: there is no $(PYTHON); install Python 3.10 or newer, or name one with PYTHON=..." >&2; exit 1; }
	@$(PYTHON) .ci/set_up.py $(VENV) $(TORCH)
	@rm -f $(VENV)/.set-up-* && touch $@

serve: $(STAMP) ## serve the embedded model on http://127.0.0.1:8000
	@$(BIN)/python -m server serve $(ARGS)

test: $(STAMP) ## run the tests
	@$(BIN)/python -m pytest $(ARGS)

sim: $(STAMP) ## simulate 1,000,000 steps with faults, and catch planted bugs
	@$(BIN)/python -m pytest tests/simulation $(ARGS)

soak-sim: $(STAMP) ## simulate until it is interrupted:  ARGS="--seed 7 --hours 8"
	@$(BIN)/python -m tests.simulation $(ARGS)

chaos: $(STAMP) ## kill processes under open streams;  ARGS=--long: 200 kills, 10,000 cuts
	@$(BIN)/python -m pytest tests/chaos $(ARGS)

hostile: $(STAMP) ## send everything that a client can send, and look for what it leaves
	@$(BIN)/python -m pytest tests/hostile $(ARGS)

fuzz: $(STAMP) ## fuzz HTTP bytes and timed requests for SECONDS=60;  ARGS="--kind raw --seed 7"
	@$(BIN)/python -m tests.hostile.fuzz --seconds $(SECONDS) $(ARGS)

clients: $(CLIENTS_STAMP) ## run lm-evaluation-harness, guidellm and schemathesis against the server
	@$(BIN)/python -m pytest tests/clients $(ARGS)

$(CLIENTS_STAMP): $(STAMP) tests/clients/requirements.txt .ci/set_up_clients.py
	@$(BIN)/python .ci/set_up_clients.py $(CLIENTS) && touch $@

check: $(STAMP) ## formatting, lint, types, import contracts, what is forbidden
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python .ci/forbid.py

bench: $(STAMP) ## measure; writes tables, JSON and plots to benchmarks/results
	@$(BIN)/python -m benchmarks $(ARGS)

compare: $(PEERS_STAMP) ## measure beside transformers, CTranslate2 and llama.cpp;  ARGS="--quick --models 124M"
	@$(BIN)/python -m benchmarks.compare --out $(OUT) $(ARGS)

$(PEERS_STAMP): $(STAMP) benchmarks/compare/requirements.txt benchmarks/compare/set_up.py
	@$(BIN)/python benchmarks/compare/set_up.py $(PEERS) && touch $@

soak: $(STAMP) ## look for what grows, under mixed and hostile load with kills, for MINUTES=30
	@$(BIN)/python -m benchmarks.soak --minutes $(MINUTES) --out $(OUT) $(ARGS)

kernels: $(STAMP) ## compile the GPU kernels for every chip, without a GPU, and check their machine code
	@$(BIN)/python -m benchmarks.kernels.compile $(ARGS)

gpu: ## measure everything on a GPU, in under 9 minutes; writes gpu.json and gpu.png to OUT=...
	@$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m benchmarks.gpu --out $(OUT) $(ARGS)
