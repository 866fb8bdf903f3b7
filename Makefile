# Two commands: `make quickstart` and `make test`. `make help` lists the rest.
PYTHON ?= python3
SHORT ?=
TORCH ?= 2.13.0
ARGS ?=

# Waiting threads that spin make small CPU runs several times slower.
export OMP_WAIT_POLICY ?= passive

.DEFAULT_GOAL := help
.PHONY: help install quickstart quickstart-seg finetuning test lint format benchmark gpu sanitize static-build other-torch docs ablation

help:  ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "  PYTHON=python3 chooses the Python, ARGS=... is passed on (make test ARGS='-k ops')"

install:  ## prepare this Python: torch, Detectron2 (if missing), comer_d2 with its operator
	@$(PYTHON) tools/install.py

quickstart: install  ## train, evaluate and draw a small detector on this CPU (SHORT=1: minutes less, worse pictures)
	@$(PYTHON) tools/quickstart.py $(if $(filter-out 0,$(SHORT)),--short) $(ARGS)

quickstart-seg: install  ## the same for panoptic segmentation with Mask2Former (ARGS="--task semantic" or instance)
	@$(PYTHON) tools/quickstart.py --task panoptic $(if $(filter-out 0,$(SHORT)),--short) $(ARGS)

test: install  ## run every test (ARGS="-m 'not slow'" for the quick ones)
	@$(PYTHON) -m pytest -q -rs --durations=10 $(ARGS)

lint:  ## check style, formatting and types
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m ruff format --check .
	@$(PYTHON) -m mypy

finetuning: install  ## what each part of a recipe gives on your photos (ARGS="--task ... --data ... --vit ...", hours on a CPU)
	@$(PYTHON) tools/finetuning.py $(ARGS)

ablation: install  ## the paper's ladder: a plain ViT, and each part added (ARGS as for finetuning)
	@$(PYTHON) tools/finetuning.py --ladder paper $(ARGS)

docs:  ## build docs/ and the reference as a site, in build/site
	@NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict --quiet

format:  ## fix style and formatting
	@$(PYTHON) -m ruff check --fix .
	@$(PYTHON) -m ruff format .

benchmark: install  ## time the operator against its PyTorch reference
	@$(PYTHON) benchmarks/op.py $(ARGS)

gpu:  ## build, test and time everything on this machine's GPU, eight minutes (needs torch, timm, pytest)
	@$(PYTHON) benchmarks/gpu.py $(ARGS)

sanitize:  ## run the operators' CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer
	@PYTHON=$(PYTHON) tools/ops_build.sh sanitize $(ARGS)

static-build:  ## run the operators' tests on a build that has libstdc++ linked in
	@PYTHON=$(PYTHON) tools/ops_build.sh static $(ARGS)

other-torch:  ## run the operators' tests on this binary under another torch (TORCH=2.13.0)
	@PYTHON=$(PYTHON) tools/other_torch.sh $(TORCH) $(ARGS)
