# `make demo` and `make test` set themselves up on a fresh machine: both install into .venv first.
PYTHON ?= python3
VENV ?= .venv
PIP = $(VENV)/bin/python -m pip
export HF_HUB_OFFLINE ?= 1

.PHONY: demo test campaign lint types install install-dev clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt --editable ".[judges]"
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install --quiet --constraint constraints.txt --editable ".[judges,dev]"
	touch $@

install: $(VENV)/.installed

install-dev: $(VENV)/.installed-dev

# glibc keeps what it has freed: given back and taken again, large activations cost a tenth of the demo's time.
demo: export MALLOC_MMAP_THRESHOLD_ ?= 1073741824
demo: export MALLOC_TRIM_THRESHOLD_ ?= 2147483648
demo: $(VENV)/.installed
	$(VENV)/bin/srgym train experiment=oars $(ARGS)

test: $(VENV)/.installed-dev
	$(VENV)/bin/python -m pytest -n auto $(ARGS)

# What goes wrong, on purpose: a quarter of an hour; the table goes into docs/reliability.md.
campaign: $(VENV)/.installed-dev
	SRGYM_CAMPAIGN_PAGE=1 $(VENV)/bin/python -m pytest -m campaign tests/campaign $(ARGS)

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(VENV)/.installed-dev
	$(VENV)/bin/mypy -p srgym

clean:
	rm -rf $(VENV) build dist src/*.egg-info
