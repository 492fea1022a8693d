# `make demo` and `make test` set themselves up on a fresh machine: both install into .venv first.
PYTHON ?= python3
VENV ?= .venv
PAGES = $(wildcard docs/tutorials/*.md)
NOTEBOOKS = $(PAGES:docs/%.md=build/%.ipynb)
LIBRARY = $(wildcard agents/*.py envs/*.py policies/*.py policies/*/*.py rewards/*.py rewards/*/*.py runners/*/*.py src/srgym/*.py)
PIP = $(VENV)/bin/python -m pip
export HF_HUB_OFFLINE ?= 1

.PHONY: demo test campaign lint types install install-dev docs docs-serve tutorials wheel clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt --editable ".[judges]"
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install --quiet --constraint constraints.txt --editable ".[judges,dev]"
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(PIP) install --quiet --constraint constraints.txt --editable ".[judges,docs]"
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

# The pages of docs/tutorials, run as notebooks; again where a page or the library has changed.
tutorials: $(NOTEBOOKS)

build/tutorials/%.ipynb: docs/tutorials/%.md tools/tutorials.py $(LIBRARY) | $(VENV)/.installed-docs
	$(VENV)/bin/python tools/tutorials.py $*

# The site, into build/site; a warning is an error, and so is a page that asks anybody else for anything.
docs docs-serve: export NO_MKDOCS_2_WARNING ?= 1
docs: $(NOTEBOOKS)
	$(VENV)/bin/mkdocs build --quiet --strict
	! grep -rnE '<(script|img|iframe|source)[^>]* src="(https?:)?//|<link[^>]* href="https?://' --include='*.html' build/site
	! grep -rnE 'url\(["'"'"']?(https?:)?//' --include='*.css' build/site

docs-serve: $(NOTEBOOKS)
	$(VENV)/bin/mkdocs serve

# The wheel, and the smoke experiment by it alone, away from the checkout.
wheel: $(VENV)/.installed-dev
	rm -rf build/lib build/wheel && mkdir -p build/wheel
	$(PIP) wheel --quiet --no-deps --wheel-dir dist .
	$(VENV)/bin/python tools/try_wheel.py dist build/wheel

clean:
	rm -rf $(VENV) build dist src/*.egg-info
