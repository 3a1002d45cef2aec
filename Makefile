# make help        the stages and the variables of a recipe
# make demo        everything, on a corpus that the toolkit makes itself: both recipes and their comparison
# make test        set up and run the tests
SHELL := /bin/bash
.DEFAULT_GOAL := help
-include local.mk

# both recipes, unless one is asked for
demo_recipes := $(if $(filter command file,$(firstword $(origin recipe))),$(recipe),klassify multibranch)
recipe ?= klassify
VARIABLES := split recipe data from size root conf system submit1 submit2 vqvae lmm audio seed jobs devices workers force dry
VARIABLES += launcher shards parallel time train_time nodes gpus partition gpu_partition account modules sbatch

# a variable counts when it is given to make or stands in local.mk, never when it leaks from the environment
given = $(if $(filter command file,$(firstword $(origin $(1)))),$(1)=$(call quote,$($(1))))
quote = '$(subst ','\'',$(1))'
arguments = $(foreach name,$(filter-out recipe,$(VARIABLES)),$(call given,$(name)))
unknown = $(filter-out $(VARIABLES) $(MAKE_OWN),$(foreach word,$(MAKEOVERRIDES),$(firstword $(subst =, ,$(word)))))
MAKE_OWN := PYTHON SHELL submission seconds
run = recipes/$(recipe)/run.sh

ifneq ($(strip $(foreach word,$(MAKEOVERRIDES),$(findstring =,$(word)))),)
ifneq ($(strip $(unknown)),)
$(error unknown variable: $(unknown). Known: $(VARIABLES))
endif
endif
ifeq ($(wildcard $(run)),)
$(error no recipe $(recipe). There are: $(notdir $(patsubst %/run.sh,%,$(wildcard recipes/*/run.sh))))
endif

.PHONY: help setup demo test test-all coverage test-cluster test-fairseq2 fuzz lint stage0 stage1 stage2 stage3 stage4 compare reproduce clean

help:
	@$(run) --help

# stages 0 to 4 on the generated corpus: size=tiny (smoke test), default, large (three training seeds); then one page
seeds = $(if $(filter command file,$(origin seed)),$(seed),$(if $(filter large,$(size)),1 2 3,1))
demo_arguments = data=demo $(filter-out data=% seed=%,$(arguments))
demo: setup
	@set -e; for recipe in $(demo_recipes); do \
	  recipes/$$recipe/run.sh --stage 0 --stop-stage 1 --wait $(demo_arguments); \
	  for seed in $(seeds); do recipes/$$recipe/run.sh --stage 2 --stop-stage 4 $(demo_arguments) seed=$$seed; done; \
	done
	@$(run) --compare split=testA $(demo_arguments) seed=$(firstword $(seeds))

stage0 stage1 stage2 stage3 stage4: setup
	@$(run) --stage $(@:stage%=%) --stop-stage $(@:stage%=%) $(arguments)

# all reported systems of every recipe that has been trained, side by side: tables and one page
compare: setup
	@$(run) --compare $(arguments)

# a package again from its manifest, byte by byte: submission=ID (klassify ledger lists them) or its folder
reproduce: setup
	$(if $(dry),@echo +,@).venv/bin/klassify reproduce $(call quote,$(submission))

setup: .venv/installed

.venv/installed: setup.cfg pyproject.toml constraints.txt
	@recipes/setup.sh .venv

ALL_TESTS = --ignore tests/slurm tests
test: setup
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -q -n 2 --dist worksteal -m "not slow" $(ALL_TESTS)

test-all: setup
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -q -n 2 --dist worksteal $(ALL_TESTS)

# which share of the lines the fast tests run, and what they do not run and why; what is killed leaves no record
coverage: setup
	COVERAGE_FILE=$(CURDIR)/.coverage OMP_NUM_THREADS=1 .venv/bin/python -m pytest -q -n 2 --dist worksteal -m "not slow" --cov klassify \
	  --cov-report json:coverage.json --ignore tests/faults $(ALL_TESTS)
	.venv/bin/python -m tests.coverage_gaps coverage.json

# a real Slurm of five nodes on this machine; needs root, and apt to install it
test-cluster: setup
	@tests/slurm/run

# broken and hostile input for some minutes: make fuzz seconds=600 seed=7
fuzz: setup
	OMP_NUM_THREADS=1 .venv/bin/python -m tests.fuzz $(if $(seconds),--seconds $(seconds)) $(if $(call given,seed),--seed $(seed))

# fairseq2 pins torch 2.9.1: an environment of its own (several GB), with the transformers that goes with it
test-fairseq2: .venv-fairseq2/installed
	OMP_NUM_THREADS=1 .venv-fairseq2/bin/python -m pytest -q tests/models/frontends/test_ssl.py tests/models/frontends/test_fairseq2.py

.venv-fairseq2/installed: setup.cfg pyproject.toml
	@CONSTRAINTS=/dev/null EXTRAS=fairseq2,dev PINS='torch==2.9.1 transformers==4.57.6' recipes/setup.sh .venv-fairseq2

lint: setup
	.venv/bin/ruff check . && .venv/bin/ruff format --check .

# what runs made stays; only caches go
clean:
	rm -rf build dist .pytest_cache .ruff_cache .coverage* coverage.json
	find klassify tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
