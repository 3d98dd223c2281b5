# PYTHON's environment has the project with its extras demo and test; launch/test.sh makes one.
PYTHON ?= python

.PHONY: check quick style

check: style
	$(PYTHON) -m pytest

# the fast tests, under a minute
quick: style
	$(PYTHON) -m pytest -m "not slow" tests/unit

style:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
