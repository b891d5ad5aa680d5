# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo web test test-docs test-web test-vllm test-vllm-slow test-train test-versions docs dist dist-tests lint train-mini bench clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

setup: $(STAMP)  ## make the environment in .venv

# torch first and alone: the index may serve a CPU wheel for the pinned version only.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test,lint]"
	touch $(STAMP)

demo: $(STAMP)  ## answer a question about a picture with all visual tokens and with 10 % of them
	$(BIN)/globalcom2 ask --retention 0.1 --picture globalcom2-demo.png

web: .venv-web/.installed  ## open the page: your own picture and question
	.venv-web/bin/globalcom2 web

test: $(STAMP)  ## run the tests
	$(BIN)/python -m pytest -n 2

docs: .venv-web/.installed  ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 .venv-web/bin/mkdocs build --strict

test-docs: .venv-web/.installed  ## run every code block of README and docs, and the notebooks
	HF_HUB_OFFLINE=1 .venv-web/bin/python -m pytest tests/docs
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 .venv-web/bin/python -m pytest --nbmake notebooks

test-web: .venv-web/.installed  ## run the tests of the page in a browser (needs chromium)
	HF_HUB_OFFLINE=1 .venv-web/bin/python -m pytest tests/web

# The page, the documentation and the notebooks share an environment: gradio needs an older Pillow than we do.
.venv-web/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-web
	.venv-web/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	.venv-web/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test,web,docs,notebooks,browser]"
	touch $@

test-vllm: .venv-vllm/.installed  ## run the tests of the vLLM plugin, in an environment of their own
	HF_HUB_OFFLINE=1 .venv-vllm/bin/python -m pytest tests/engine -m "not slow"

test-vllm-slow: .venv-vllm/.installed  ## the same for engines on several processes and for Ray
	HF_HUB_OFFLINE=1 .venv-vllm/bin/python -m pytest tests/engine -m slow

.venv-vllm/.installed: pyproject.toml tests/engine/environment.py
	$(PYTHON) tests/engine/environment.py .venv-vllm
	touch $@

test-train: .venv-train/.installed  ## run the tests with trl's, transformers' and PEFT's trainers, in an environment of their own
	HF_HUB_OFFLINE=1 .venv-train/bin/python -m pytest tests/train
	HF_HUB_OFFLINE=1 PYTHONPATH=.venv-train/lowest .venv-train/bin/python -m pytest tests/train/test_train_peft.py

.venv-train/.installed: pyproject.toml constraints.txt tests/train/environment.py
	$(PYTHON) tests/train/environment.py .venv-train
	touch $@

test-versions: $(STAMP)  ## run the tests with several versions of transformers; writes docs/transformers-versions.md
	$(BIN)/python tests/versions.py

dist:  ## build sdist and wheel into dist/, check what is inside, try the wheel in a fresh environment
	$(PYTHON) tests/distribution.py

dist-tests:  ## the same, and run the sdist's own tests
	$(PYTHON) tests/distribution.py --tests

lint: $(STAMP)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)  ## print how long selection takes
	$(BIN)/python benchmarks/selection.py

train-mini: $(STAMP)  ## train a mini model from nothing; resumes after a stop
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[train]"
	PYTHON=$(abspath $(BIN))/python $(MAKE) -C training/mini

clean:  ## remove the environment and caches
	rm -rf .venv .venv-web .venv-vllm .venv-train site .pytest_cache .mypy_cache .ruff_cache .hypothesis
