# make demo    the whole story on a throw-away directory
# make test    the tests
# make lint    ruff, mypy --strict, import-linter
# make wheels-check    wheels of everything smsnapd needs exist for manylinux2014
# make wheelhouse      smsnapd's wheel and those, in WHEELHOUSE=wheelhouse, for notebooks without a way to PyPI
# Each makes .venv first if it is not there. PYTHON=… picks the interpreter, PYTEST=… adds to pytest's options.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
PYTHON ?=
PYTEST ?=
WHEEL_PYTHONS := 3.11 3.12 3.13

WHEELHOUSE ?= wheelhouse

.PHONY: demo test lint format wheels-check wheelhouse clean

demo: $(VENV)/.runtime
	$(BIN)/smsnap demo

test: $(VENV)/.test
	$(BIN)/python -m pytest --timeout 600 $(PYTEST)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# What is asked for: the names of pyproject.toml, not those that happen to be installed.
wheels-check: $(VENV)/bin/python
	@requirements=$$(mktemp) && directory=$$(mktemp -d) && trap 'rm -rf "$$requirements" "$$directory"' EXIT; \
	$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' > "$$requirements"; \
	for version in $(WHEEL_PYTHONS); do \
		$(PIP) download --only-binary=:all: --platform manylinux2014_x86_64 --implementation cp \
			--python-version $$version --dest "$$directory/$$version" --requirement "$$requirements"; \
		echo "Python $$version: $$(ls "$$directory/$$version" | wc -l) wheels for manylinux2014 x86_64, $$(du -sh "$$directory/$$version" | cut -f1)"; \
	done

# For on-start: aws s3 cp --recursive wheelhouse s3://bucket/smsnapd/. Whatever else lies there stays, as a
# standalone Python does (cpython-*-x86_64-unknown-linux-gnu-install_only.tar.gz).
wheelhouse: $(VENV)/bin/python
	@mkdir -p $(WHEELHOUSE); rm -f $(WHEELHOUSE)/*.whl
	$(PIP) wheel --no-deps --wheel-dir $(WHEELHOUSE) .
	@for version in $(WHEEL_PYTHONS); do \
		$(PIP) download --only-binary=:all: --platform manylinux2014_x86_64 --implementation cp \
			--python-version $$version --dest $(WHEELHOUSE) $(WHEELHOUSE)/smsnapd-*.whl; \
	done
	@echo "$(WHEELHOUSE): $$(ls $(WHEELHOUSE)/*.whl | wc -l) wheels for Python $(WHEEL_PYTHONS), $$(du -sh $(WHEELHOUSE) | cut -f1)"

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis

# A candidate counts only if it runs: version managers leave names in the path that do not.
$(VENV)/bin/python:
	@for candidate in $(PYTHON) $(if $(PYTHON),,python3.13 python3.12 python3.11 python3); do \
		if "$$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			echo "making $(VENV) with $$("$$candidate" --version)"; exec "$$candidate" -m venv $(VENV); \
		fi; \
	done; \
	echo "smsnapd needs Python 3.11 or newer, with venv, and found none." >&2; \
	echo "Install one (Amazon Linux 2023: dnf install python3.12; Debian: apt-get install python3-venv)" >&2; \
	echo "or name it: make PYTHON=/path/to/python3.12" >&2; exit 1

$(VENV)/.runtime: $(VENV)/bin/python pyproject.toml
	$(PIP) install --editable .
	@touch $@

$(VENV)/.test: $(VENV)/bin/python pyproject.toml
	$(PIP) install --editable '.[test]'
	@touch $@ $(VENV)/.runtime

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml
	$(PIP) install --editable '.[dev]'
	@touch $@ $(VENV)/.test $(VENV)/.runtime
