# Two commands for a new machine: `make demo` and `make test`. Both make the environment first.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: demo test quality checkpoint-code clean

$(VENV)/installed: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

demo: $(VENV)/installed
	$(RUN) demo.py

test: $(VENV)/installed
	$(RUN) -m pytest -n 2

quality: $(VENV)/installed
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .

# The shipped checkpoint carries the code that reads it: after a change of models/, copy it there again.
checkpoint-code:
	for folder in checkpoints/*/; do for file in $$folder*.py; do \
		cp models/$$(basename $$file) $$file 2>/dev/null || cp example.py $$file; done; done

clean:
	rm -rf $(VENV) outputs
