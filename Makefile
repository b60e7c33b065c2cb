# Everything a user or developer runs. `make` lists the targets.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python

.DEFAULT_GOAL := help
.PHONY: help quickstart test check lint types every-test fast-tests test-slow durations bench gpu golden defaults \
	backbones costs tutorial docs clean

help:
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

# A stamp per set of dependencies: made again only where setup.py has changed.
$(VENV)/.installed: setup.py
	$(PYTHON) -m venv $(VENV)
	@echo "installing sat_vg and what it needs into $(VENV) (a minute or two, once)"
	$(PY) -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PY) -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

quickstart: $(VENV)/.installed ## install and run the main job on the built-in scenes (under 3 minutes of training)
	$(PY) -m sat_vg.backbone_finetuning.train

test: $(VENV)/.installed-dev lint ## lint, types and all tests
	@$(MAKE) --no-print-directory -j 2 types every-test

check: $(VENV)/.installed-dev lint ## lint, types and the fast tests, in one to two minutes
	@$(MAKE) --no-print-directory -j 2 types fast-tests

lint: $(VENV)/.installed-dev
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .

types: $(VENV)/.installed-dev
	$(PY) -m mypy

# One process more than two cores, as many of these tests wait for processes that they have started.
every-test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 3 --dist worksteal -m "not slow"

# Files that build large networks, or take 4 seconds of a core and more; `make test` runs them.
LARGE := $(patsubst %,--ignore=tests/unit/%.py,$(addprefix models/test_,adapters attention auxiliary_heads dilation \
	explain finetune_model folded frozen_norm image_batches input_bands pooling table weight_files weights) \
	$(addprefix data/test_,augmentation decoded_cache differing_files duplicates fill_values named_datasets scenes shards \
	shard_sources spatial_split) $(addprefix training/test_,batch_sources depthwise epoch_curves equivalences \
	linear_probe) $(addprefix reports/test_,comparison_report evaluation_reports overlays) \
	$(addprefix evaluation/test_,costs counted_memory) $(addprefix scenes/test_,maps search))

fast-tests: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2 --dist worksteal -m "not slow and not recipe" tests/unit $(LARGE) \
		tests/golden/test_golden_loss.py::test_losses_are_those_on_file

test-slow: $(VENV)/.installed-dev ## the tests that take many minutes
	$(PY) -m pytest -m slow

durations: $(VENV)/.installed-dev ## the tests of `make test` that take the longest
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2 --dist worksteal -m "not slow" --durations=60 --durations-min=1

bench: $(VENV)/.installed-dev ## speed as ratios; more rows with UCMERCED=DIR EUROSAT=DIR WEIGHTS=mobilenet_v2.pth
	$(PY) tests/bench/speed.py $(if $(UCMERCED),--ucmerced $(UCMERCED)) $(if $(EUROSAT),--eurosat $(EUROSAT)) \
		$(if $(WEIGHTS),--weights $(WEIGHTS)) $(BENCH)

gpu: $(VENV)/.installed-dev ## checks and rates on one GPU, under 6 minutes, without network: gpu.json
	$(PY) tests/gpu/run.py --out gpu.json

golden: $(VENV)/.installed-dev ## write the golden losses anew and print the difference
	OMP_NUM_THREADS=1 $(PY) tests/golden/test_golden_loss.py

defaults: $(VENV)/.installed-dev ## record the defaults of FinetuneConfig, after one was changed or a field added
	$(PY) -c "from sat_vg.backbone_finetuning.configs import finetune_config; finetune_config.record_defaults()"

backbones: $(VENV)/.installed-dev ## measure the listing of all backbones anew
	PYTHONPATH=tests $(PY) tests/contract/test_every_backbone.py

costs: $(VENV)/.installed-dev ## measure what the table of `sat-vg recommend` lacks; on another machine all speeds anew
	$(PY) tests/bench/backbone_costs.py

tutorial: $(VENV)/.installed-dev ## run docs/tutorial.ipynb and store its outputs
	$(PY) tests/recipe/test_tutorial.py

docs: $(VENV)/.installed-dev ## build the documentation as a site; open site/index.html, no server needed
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

clean: ## remove the environment, the built site and caches; runs and checkpoints stay
	rm -rf $(VENV) site .pytest_cache .mypy_cache .ruff_cache *.egg-info
