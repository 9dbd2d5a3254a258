# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
PY := .venv/bin/python

.PHONY: demo test check bench clean
demo: .venv/ready
	.venv/bin/myna demo -o demo

test: .venv/ready
	$(PY) -m pytest

check: .venv/ready
	$(PY) -m pip install --quiet -c constraints.txt -e ".[dev]"
	.venv/bin/ruff format --check src tests benchmarks examples
	.venv/bin/ruff check src tests benchmarks examples

# the environment is made anew when what it is made from changes
.venv/ready: pyproject.toml constraints.txt
	test -x $(PY) || $(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet -c constraints.txt -e ".[demo,test]"
	touch $@

clean:
	rm -rf .venv demo
