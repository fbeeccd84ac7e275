# Two commands for a new machine: `make demo` and `make test`. Both make the environment first.
PYTHON ?= python3
VENV := .venv
OLDEST := .venv-oldest
RUN := $(VENV)/bin/python
PIP := -m pip install --quiet --disable-pip-version-check

.PHONY: demo test test-oldest bench quality checkpoint-code clean

$(VENV)/installed: requirements.txt requirements-dev.txt constraints/newest.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) $(PIP) torch -c constraints/newest.txt
	$(RUN) $(PIP) -r requirements-dev.txt -c constraints/newest.txt
	touch $@

$(OLDEST)/installed: requirements.txt requirements-dev.txt constraints/oldest.txt
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python $(PIP) torch -c constraints/oldest.txt
	$(OLDEST)/bin/python $(PIP) -r requirements-dev.txt -c constraints/oldest.txt
	touch $@

demo: $(VENV)/installed
	$(RUN) demo.py

test: $(VENV)/installed
	$(RUN) -m pytest -n 2

test-oldest: $(OLDEST)/installed
	$(OLDEST)/bin/python -m pytest -n 2

bench: $(VENV)/installed
	$(RUN) benchmarks/run.py

quality: $(VENV)/installed
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .

# The shipped checkpoint carries the code that reads it: after a change of models/, copy it there again.
checkpoint-code:
	for folder in checkpoints/*/; do for file in $$folder*.py; do \
		cp models/$$(basename $$file) $$file 2>/dev/null || cp example.py $$file; done; done

clean:
	rm -rf $(VENV) $(OLDEST) outputs
