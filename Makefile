# PYTHON's environment has the project with its extras demo and test; launch/test.sh makes one.
PYTHON ?= python
# the tests, shared by a process a core, eight at most
SHARED = --numprocesses logical --maxprocesses 8 --dist loadscope --no-loadscope-reorder

.PHONY: check quick style

check: style
	$(PYTHON) -m pytest $(SHARED)

# the fast tests: two and a half minutes on two cores
quick: style
	$(PYTHON) -m pytest $(SHARED) -m "not slow" tests/unit

style:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
