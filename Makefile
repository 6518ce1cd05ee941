# Two commands: `make demo` shows the method at work, `make test` checks the code. Both make .venv when it is not there.
PYTHON ?= python3
VENV ?= .venv
DEMO_DIR ?= demo
# What pip is told to install torch with; set TORCH for a particular build.
TORCH ?= torch torchvision

PIP := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check
RUN := $(VENV)/bin/python -m

.PHONY: demo test clean
.DEFAULT_GOAL := help

help:
	@echo "make demo   sample, train a LoRA for a few minutes, sample again; see $(DEMO_DIR)/report.md"
	@echo "make test   lint, type-check, run the tests"

demo: $(VENV)/installed
	$(RUN) training.demo --out $(DEMO_DIR)

test: $(VENV)/installed
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(RUN) pytest -q -n auto --dist loadfile

# The stamp makes a second run quick; it is older than its requirements when those change.
$(VENV)/installed: pyproject.toml requirements.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH)
	$(PIP) --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) $(DEMO_DIR) *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
