# make help        the stages and the variables of a recipe
# make demo        all stages of every recipe on a generated corpus, and their comparison
# make test        install, then run the fast tests
SHELL := /bin/bash
.DEFAULT_GOAL := help
-include local.mk

# every recipe, unless recipe= is given
recipe_given := $(filter command file,$(firstword $(origin recipe)))
demo_recipes := $(if $(recipe_given),$(recipe),klassify multibranch fused)
recipe ?= klassify
override recipe := $(strip $(recipe))
MAKE_OWN := PYTHON SHELL submission seconds verbose out
run = recipes/$(recipe)/run.sh
ifeq ($(wildcard $(run)),)
$(error $(or $(shell recipes/klassify/run.sh --recipe '$(recipe)' 2>&1),recipe= is empty))
endif

# variables of a recipe are taken from the command line and local.mk, never from the environment
given = $(filter command file,$(firstword $(origin $(1))))
typed := $(foreach name,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $(name)))),$(name)))
kept := $(foreach name,$(shell $(run) --variables),$(if $(call given,$(name)),$(name)))
# unknown variables of the command line are passed on too: run.sh refuses them by name
names := $(filter-out recipe $(MAKE_OWN),$(sort $(typed) $(kept)))
quote = '$(subst ','\'',$(1))'
arguments = $(foreach name,$(names),$(name)=$(call quote,$($(name))))

.PHONY: help setup demo test test-all coverage test-cluster test-fairseq2 test-pandas3 fuzz lint results site stage0 stage1 stage2 stage3 stage4 compare reproduce clean names

help:
	@$(run) --help $(arguments)

# unknown names and missing earlier stages are reported before anything is installed
first_stage = $(firstword $(sort $(filter stage%,$(MAKECMDGOALS))))
check = --check-names $(if $(filter compare,$(MAKECMDGOALS)),--compare)
names:
	@$(run) $(if $(first_stage),--check --stage $(first_stage:stage%=%) --stop-stage $(first_stage:stage%=%),$(check)) \
	  $(if $(filter demo,$(MAKECMDGOALS)),$(demo_arguments),$(arguments))

# stages 0 to 4 on the generated corpus, then the comparison: size=tiny (smoke test), small, default, large (three seeds)
# root= in local.mk is that of real data
demo_arguments = data=demo $(foreach name,$(filter-out data $(if $(filter root,$(typed)),,root),$(names)),$(name)=$(call quote,$($(name))))
demo_own = $(if $(recipe_given),recipe=$(call quote,$(recipe))) $(if $(call given,verbose),verbose=$(call quote,$(verbose)))
demo: setup
	@$(if $(call given,dry),set -e; for recipe in $(demo_recipes); do recipes/$$recipe/run.sh $(demo_arguments); done; \
	  $(run) --compare split=testA $(demo_arguments),.venv/bin/klassify demo $(filter-out data=demo,$(demo_arguments)) $(demo_own))

stage0 stage1 stage2 stage3 stage4: setup
	@$(run) --stage $(@:stage%=%) --stop-stage $(@:stage%=%) $(arguments)

# the reported systems of every trained recipe side by side: tables and one page
compare: setup
	@$(run) --compare $(arguments)

# package a submission again from its manifest and compare bytes: submission=ID (klassify ledger lists IDs) or its folder
reproduce: setup
	$(if $(call given,dry),@echo + ,@).venv/bin/klassify reproduce $(call quote,$(submission))

# dry=1 installs nothing
setup: names $(if $(call given,dry),,.venv/installed)

.venv/installed: setup.cfg pyproject.toml constraints.txt | names
	@recipes/setup.sh .venv

ALL_TESTS = --ignore tests/slurm tests
test: setup
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -q -n 2 --dist worksteal -m "not slow and not long" $(ALL_TESTS)

test-all: setup
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -q -n 2 --dist worksteal $(ALL_TESTS)

# which lines all but the slow tests run, and why not the others; killed processes leave no record, so tests/faults is left out
coverage: setup
	COVERAGE_FILE=$(CURDIR)/.coverage OMP_NUM_THREADS=1 .venv/bin/python -m pytest -q -n 2 --dist worksteal \
	  -m "not slow" --cov klassify --cov-report json:coverage.json --ignore tests/faults $(ALL_TESTS)
	.venv/bin/python -m tests.coverage_gaps coverage.json

# a real Slurm of five nodes on this machine; needs root, and apt to install it
test-cluster: setup
	@tests/slurm/run

# corrupted and hostile input for some minutes: make fuzz seconds=600 seed=7
fuzz: setup
	OMP_NUM_THREADS=1 .venv/bin/python -m tests.fuzz $(if $(seconds),--seconds $(seconds)) $(if $(call given,seed),--seed $(seed))

# fairseq2 pins torch 2.9.1, so it has its own environment (several GB), with a transformers that works with it
test-fairseq2: .venv-fairseq2/installed
	OMP_NUM_THREADS=1 .venv-fairseq2/bin/python -m pytest -q tests/models/frontends/test_ssl.py tests/models/frontends/test_fairseq2.py

.venv-fairseq2/installed: setup.cfg pyproject.toml
	@CONSTRAINTS=/dev/null EXTRAS=fairseq2,dev PINS='torch==2.9.1 transformers==4.57.6' recipes/setup.sh .venv-fairseq2

# small: pandas 3 (Python 3.11 and up) on top of the packages of .venv; the tests that read and write tables
TABLES = lists scores submission evaluation localisation report systems grid
test-pandas3: .venv-pandas3/installed
	PYTHONPATH=$(CURDIR) OMP_NUM_THREADS=1 .venv-pandas3/bin/python -m pytest -q -n 2 --dist worksteal -m "not slow" \
	  $(TABLES:%=tests/%)

.venv-pandas3/installed: .venv/installed
	.venv/bin/python -m venv .venv-pandas3
	cd .venv-pandas3/lib/python3* && echo ../../../../.venv/lib/$${PWD##*/}/site-packages > site-packages/klassify-venv.pth
	.venv-pandas3/bin/python -m pip install -q --disable-pip-version-check --no-deps 'pandas>=3,<4'
	touch $@

lint: setup
	.venv/bin/ruff check . && .venv/bin/ruff format --check .

# every table of recipes/*/RESULTS.md that has a marker, made again: hours, continues when repeated; size=tiny out=DIR tries it
results: setup
	.venv/bin/python benchmarks/results.py $(if $(call given,size),--size $(size)) $(if $(call given,out),--out $(call quote,$(out)))

# the pages as one site: build/site/index.html
site: .venv/site
	@NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build -q --strict && echo "build/site/index.html"

.venv/site: .venv/installed
	@EXTRAS=docs recipes/setup.sh .venv && touch $@

# removes caches; keeps the outputs of runs
clean:
	rm -rf build dist .pytest_cache .ruff_cache .coverage* coverage.json
	find klassify tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
