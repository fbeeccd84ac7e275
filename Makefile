# Two commands for a new machine: `make demo` and `make test`. Both make the environment (.venv) first.
PYTHON ?= python3
VENV := .venv
OLDEST := .venv-oldest
NEWEST := .venv-newest
VLLM := .venv-vllm
MINUTES ?= 9
RUN := $(VENV)/bin/python
PIP := -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-oldest test-newest test-vllm bench gpu results export reference quality clean

help: ## list what can be made
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/installed: pyproject.toml constraints/newest.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) $(PIP) torch -c constraints/newest.txt
	$(RUN) $(PIP) -e ".[dev]" -c constraints/newest.txt
	touch $@

$(OLDEST)/installed: pyproject.toml constraints/oldest.txt
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python $(PIP) torch -c constraints/oldest.txt
	$(OLDEST)/bin/python $(PIP) -e ".[dev]" -c constraints/oldest.txt
	touch $@

# vLLM's wheel brings vision and audio libraries that are built for CUDA, and break transformers beside a CPU torch.
$(VLLM)/installed: pyproject.toml
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python $(PIP) torch==2.13.0
	$(VLLM)/bin/python $(PIP) -e ".[vllm,training]" pytest
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

demo: $(VENV)/installed ## train a small model from random weights and compare every way to answer (1 to 5 minutes)
	$(RUN) demo.py

test: $(VENV)/installed ## the tests, without the slow ones (6 minutes)
	$(RUN) -m pytest -n 2 -m "not slow"

test-all: $(VENV)/installed ## all tests
	$(RUN) -m pytest -n 2

test-oldest: $(OLDEST)/installed ## all tests on the oldest versions that requirements.txt admits
	$(OLDEST)/bin/python -m pytest -n 2

# torch is held, since its newest build may be for another device.
test-newest: $(VENV)/installed ## the fast tests with what pip installs today, where that is not what was tested
	grep '^torch==' constraints/newest.txt > $(VENV)/torch.txt
	$(RUN) $(PIP) --dry-run --ignore-installed --report - -c $(VENV)/torch.txt ".[training,rl]" > $(VENV)/today.json
	$(RUN) tests/helpers/newest_versions.py constraints/newest.txt < $(VENV)/today.json || ( \
		$(PYTHON) -m venv $(NEWEST) && $(NEWEST)/bin/python $(PIP) torch -c $(VENV)/torch.txt && \
		$(NEWEST)/bin/python $(PIP) -e ".[dev]" -c $(VENV)/torch.txt && \
		$(NEWEST)/bin/python -m pytest -n 2 -m "not slow" )

test-vllm: $(VLLM)/installed ## the vLLM plugin's tests, with a vLLM of their own (x86; 5 to 10 minutes)
	$(VLLM)/bin/python -m pytest tests/engines/test_vllm_windows.py tests/engines/test_vllm.py

bench: $(VENV)/installed ## measure speed and memory, and compare with the last recorded run (10 minutes)
	$(RUN) -m benchmarks.speed.run

results: $(VENV)/installed ## compare all methods on a task and write docs/results.md's tables (TASK=chain; all tasks: hours)
	$(RUN) -m benchmarks.results.grid $(if $(TASK),--task $(TASK))

gpu: ## on a GPU, in MINUTES=9: tests, speed, trainings (PARTS=steps,answers: only these), with the PYTHON that is there
	$(PYTHON) -m benchmarks.gpu --minutes $(MINUTES) $(if $(PARTS),--parts $(PARTS))

export: $(VENV)/installed ## checkpoints/pccot-gpt2-chain as a Hub page would hold it, in outputs/export
	rm -rf outputs/export/pccot-gpt2-chain
	$(VENV)/bin/latent-cot export --model checkpoints/pccot-gpt2-chain outputs/export/pccot-gpt2-chain

reference: $(VENV)/installed ## write docs/reference.md from the flags' help texts and the configurations' docstrings
	$(RUN) -m latent_cot.training.reference docs/reference.md

quality: $(VENV)/installed ## format, lint, types
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy

clean: ## remove the environments and outputs
	rm -rf $(VENV) $(OLDEST) $(NEWEST) $(VLLM) outputs build
