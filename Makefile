# make demo: an environment and `mdmf demo`, without torch.   make test: the tests.
# Variables: PYTHON, an interpreter of version 3.11 or newer.  VENV, where the environment goes.
#   TORCH, what installs torch. PyPI's build for Linux brings several GB of CUDA; the build without:
#   make test TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
#   CONSTRAINTS, a file of versions: make test VENV=.venv-lowest CONSTRAINTS=.ci/lowest.txt
VENV ?= .venv
TORCH ?= torch==2.13.0
CONSTRAINTS ?=
PYTHON ?= $(shell for p in python3.12 python3.13 python3.11 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

.PHONY: demo test environment clean

demo: $(VENV)/.demo
	$(VENV)/bin/mdmf demo

test: environment
	$(VENV)/bin/pytest

environment: $(VENV)/.test

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer found; give one: make PYTHON=/path/to/python" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet -e '.[cpu]'
	@touch $@

$(VENV)/.test: pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet $(TORCH)
	$(VENV)/bin/python -m pip install --quiet $(addprefix -c ,$(CONSTRAINTS)) -e '.[cpu,openvino,export,evaluate,scale,heif,jxl,video,provenance,dev]'
	@touch $@

clean:
	rm -rf $(VENV) .venv-lowest mdmf-demo build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
