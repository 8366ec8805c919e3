# make demo         a virtual environment, then the main job end to end on embedded data
# make shell        a shell in which hf-distill is on the path
# make test         a virtual environment, then the tests; FULL=1 runs all, half as long again
# make test-fast    the quick tests of the core, for the inner loop
# make test-oldest  the wheel in an empty environment with the oldest supported versions, tested
# make lint         ruff and mypy
# make bench        what steps cost, some twenty minutes; FULL=1 measures all settings and records them
PYTHON ?= python3
VENV := .venv
OLDEST := .venv-oldest
WHEEL := build/wheel/.built
# What is installed is pinned in this file; /dev/null is the newest of everything.
CONSTRAINTS ?= constraints.txt
PIP := pip --disable-pip-version-check
# Python compiles and keeps what it imports; all of it would take half of the time of an installation.
INSTALL := $(PIP) install --no-compile
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo shell test test-fast test-oldest lint bench clean

# The settings keep glibc from handing big blocks back to the system in every training step, which
# costs a fifth of the time on a CPU.
demo: $(VENV)/.installed
	MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592 \
		MALLOC_TOP_PAD_=268435456 $(VENV)/bin/hf-distill demo
	@echo "\`make shell\` opens a shell with hf-distill on the path."

shell: $(VENV)/.installed
	@echo "hf-distill is on the path of this shell; \`exit\` leaves it."
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" VIRTUAL_ENV="$(CURDIR)/$(VENV)" $${SHELL:-/bin/sh}

# -n 2: two processes with one thread each are faster here than one with two. Without FULL, a test of
# many architectures or losses runs with two of them, and what takes half a minute is left out.
test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist worksteal \
		$(if $(FULL),,--grid_cases 2 -m "not thorough") $(PYTEST_FLAGS)

FAST := tests/losses tests/heads tests/layers tests/compatibility tests/teachers \
	tests/test_trainer.py tests/test_layers_of_the_house.py --ignore tests/teachers/caching

# Without compilation and caching in processes, which make it twice as long.
test-fast: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 -q -m "not slow" -k "not compile" $(FAST) \
		$(PYTEST_FLAGS)

# `pytest`, not `python -m pytest`: the package must come from the wheel, not from this folder.
# Quick tests in one of their cases, without those that do not depend on the versions, or whose code
# other tests run as well.
OTHERS := alignment augmentation checkpoints demo docs labelling losses recipes reports security \
	shrinking sweeping
test-oldest: $(OLDEST)/.wheel
	OMP_NUM_THREADS=1 $(OLDEST)/bin/pytest -n 2 --dist worksteal -m "not slow" \
		--cases 1 $(OTHERS:%=--ignore tests/%) $(PYTEST_FLAGS)

lint: $(VENV)/.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: $(VENV)/.installed
	$(VENV)/bin/python benchmarks/bench.py $(if $(FULL),--full)

# torch first and alone: the constraint picks its CPU build. --use-pep517 for the pip that comes with
# Python 3.10, whose old way of building cannot build seqeval next to torch's setuptools.
$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	@echo "Installing PyTorch, transformers and what they need into $(VENV), once: some minutes."
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/$(INSTALL) -c $(CONSTRAINTS) torch
	$(VENV)/bin/$(INSTALL) --use-pep517 -c $(CONSTRAINTS) -e ".[all,test]"
	touch $@

$(WHEEL): setup.cfg pyproject.toml $(shell find hf_distill -type f ! -name "*.pyc") | $(VENV)/.installed
	rm -rf build/lib build/wheel
	$(VENV)/bin/$(PIP) wheel --no-deps --wheel-dir build/wheel .
	touch $@

$(OLDEST)/.installed: setup.cfg pyproject.toml constraints-oldest.txt $(VENV)/.installed | $(WHEEL)
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/$(INSTALL) -c constraints-oldest.txt torch
	$(OLDEST)/bin/$(INSTALL) --use-pep517 -c constraints-oldest.txt \
		"$$(echo build/wheel/*.whl)[metrics,plots,sweep,test]"
	touch $@

$(OLDEST)/.wheel: $(WHEEL) $(OLDEST)/.installed
	$(OLDEST)/bin/$(INSTALL) --no-deps --force-reinstall build/wheel/*.whl
	touch $@

clean:
	rm -rf $(VENV) $(OLDEST) build dist *.egg-info
