# Two commands do everything on a fresh machine: `make all-pairs` and `make test`. Both set themselves up in .venv.
#
#   make all-pairs CORPUS=emodb DATA_ROOT=/data/emodb MODELS="byols soundstream-lyra" WEIGHTS_DIR=/data/weights

PYTHON ?= python3
VENV ?= .venv
CORPUS ?= demo
MODELS ?= wavlm-tiny xvector-tiny encodec-tiny soundstream-tiny
DATA_ROOT ?=
WEIGHTS_DIR ?=
# The tiny sizes have random weights only; every other encoder is pretrained unless told otherwise.
WEIGHTS ?= $(if $(filter %-tiny,$(MODELS)),random,pretrained)
FUSIONS ?= concat,attention,hyperbolic
PROTOCOL ?=
SEEDS ?= 5
CACHE ?= cache
RUNS ?= runs
DEVICE ?= auto
PYTEST_ARGS ?=

HYFUSE = $(VENV)/bin/hyfuse
INSTALLED = $(VENV)/.installed

.PHONY: setup all-pairs test lint bench clean

setup: $(INSTALLED)

# Made again only when what is to be installed has changed; pip, since uv does not see every configured wheel folder.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

all-pairs: $(INSTALLED)
	$(HYFUSE) extract $(foreach model,$(MODELS),--model $(model)) --corpus $(CORPUS) --weights $(WEIGHTS) \
	  --device $(DEVICE) --cache-dir $(CACHE) $(if $(DATA_ROOT),--data-root "$(DATA_ROOT)") \
	  $(if $(WEIGHTS_DIR),--weights-dir "$(WEIGHTS_DIR)")
	$(HYFUSE) compare --corpus $(CORPUS) --models "$(MODELS)" --fusions $(FUSIONS) --seeds $(SEEDS) \
	  --cache-dir $(CACHE) --runs-dir $(RUNS) $(if $(PROTOCOL),--protocol $(PROTOCOL))

test: $(INSTALLED)
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile $(PYTEST_ARGS)

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy pipelines hyfuse_cli

bench: $(INSTALLED)
	$(HYFUSE) bench extract
	$(HYFUSE) bench train

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
