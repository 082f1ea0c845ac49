# Every target works on a fresh clone: it builds .venv when that is missing or out of date.
PYTHON ?= python3
VENV   := .venv
CONSTRAINTS := constraints.txt
STAMP  := $(VENV)/.installed
RUN    := $(VENV)/bin/python
ARGS   ?=
SCALE  ?= needle
AUDIT  := pip-audit==2.10.1
SECONDS ?= 600
MINUTES ?= 9
ARTIFACTS ?=
DATA   ?=
IMAGE  ?=
REPRODUCE = $(RUN) reproduce.py scale=$(SCALE) $(if $(ARTIFACTS),"artifacts='$(ARTIFACTS)'") $(if $(DATA),"data_root=$(DATA)")

.DEFAULT_GOAL := help
.PHONY: help install update audit test chaos fuzz gpu coverage test-oldest test-newest lint format \
	docs check predict demo reproduce reproduce-plan clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP)  ## build .venv with pinned versions (about 6.3 GB, a few minutes)

$(STAMP): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python 3.11 or newer is needed, and $(PYTHON) is $$($(PYTHON) --version 2>&1);" \
		     "name another one: make PYTHON=python3.12"; exit 1; }
	@echo "==> creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@echo "==> installing packages $(CONSTRAINTS:%=of %) (PyTorch is the large one)"
	@$(RUN) -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS:%=-c %) -e '.[dev]'
	@touch $@
	@echo "==> ready: $(RUN)"

# pip resolves without installing; only names and versions are kept of what it found
update: $(STAMP)  ## resolve all packages anew into constraints.txt (then make test, and read the diff)
	@$(RUN) -m pip install --quiet --disable-pip-version-check --dry-run --ignore-installed \
		--report $(VENV)/report.json '.[dev]'
	@$(RUN) -c 'import json; \
		found = json.load(open("$(VENV)/report.json"))["install"]; \
		about = (package["metadata"] for package in found); \
		pins = {a["name"] + "==" + a["version"] for a in about if a["name"] != "lfvit"}; \
		head = open("constraints.txt").readline(); \
		open("constraints.txt", "w").write(head + "\n".join(sorted(pins, key=str.lower)) + "\n")'
	@echo "==> constraints.txt is written; now: git diff constraints.txt, make install, make test, make audit"

audit:  ## look the versions of constraints.txt up among known vulnerabilities (needs the network)
	@test -x $(VENV)/audit/bin/pip-audit || { $(PYTHON) -m venv $(VENV)/audit && \
		$(VENV)/audit/bin/python -m pip install --quiet --disable-pip-version-check $(AUDIT); }
	@$(VENV)/audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict || { \
		echo "==> not clean: raise the packages listed above in pyproject.toml, then make update;"; \
		echo "    where it says that a package could not be audited or reached, nothing was checked:"; \
		echo "    the package index itself has to be reachable, not a mirror of it"; exit 1; }

test: $(STAMP)  ## run the test suite (a few minutes on 2 cores; ARGS="-k selection" for a part)
	$(RUN) -m pytest -n auto --maxprocesses 4 --dist loadfile $(ARGS)

chaos: $(STAMP)  ## the long tests: processes killed, disks full, long fuzzing (see docs/reliability.md)
	$(RUN) -m pytest -m chaos $(ARGS)

fuzz: $(STAMP)  ## damaged files and odd command lines, SECONDS=600 for each target (ARGS="-k images")
	FUZZ_SECONDS=$(SECONDS) $(RUN) -m pytest tests/fuzz -rP --show-capture=stdout $(ARGS)

gpu: $(STAMP)  ## on a GPU: its tests, speed, a fine-tuning and a profile, in MINUTES=9 (DATA=folder of images)
	$(RUN) scripts/gpu.py --minutes $(MINUTES) $(if $(DATA),--data "$(DATA)") $(ARGS)

coverage: $(STAMP)  ## the test suite with the lines it runs: printed, and in htmlcov/
	$(RUN) -m pytest -n auto --maxprocesses 4 --dist loadfile --cov --cov-report=html --cov-report=term $(ARGS)

test-oldest:  ## the suite with the lower bounds of pyproject.toml, in .venv-oldest
	$(MAKE) test VENV=.venv-oldest CONSTRAINTS=constraints-oldest.txt

test-newest:  ## the suite with the newest versions there are, in .venv-newest
	$(MAKE) test VENV=.venv-newest CONSTRAINTS=

lint: $(STAMP)  ## check style, types and the direction of imports
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports
	$(VENV)/bin/mypy

format: $(STAMP)  ## put the style in order
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

docs: $(STAMP)  ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build

check: lint docs coverage  ## all of that, as continuous integration does
	$(MAKE) reproduce SCALE=smoke

predict: $(STAMP)  ## classify photographs with the default model of the zoo (IMAGE=FILE_OR_FOLDER)
	$(if $(IMAGE),,$(error IMAGE is not set; name a photograph or a folder: make predict IMAGE=FILE_OR_FOLDER))
	$(RUN) predict.py "image=$(IMAGE)" $(ARGS)

demo: $(STAMP)  ## a page to try two small models in the browser: passes, region, threshold, cost
	$(RUN) -m lfvit demo $(ARGS)

reproduce: $(STAMP)  ## the papers' tables and figures (SCALE=needle|smoke|finetune|finetune_cpu|imagenette_cpu|imagenette|imagenet ARTIFACTS= DATA=)
	$(REPRODUCE) $(ARGS)

reproduce-plan: $(STAMP)  ## what reproduce would run, and how long it would take here
	$(REPRODUCE) plan=true $(ARGS)

clean:  ## remove .venv and caches; outputs/ stays
	rm -rf $(VENV) .venv-oldest .venv-newest htmlcov .coverage* .pytest_cache .mypy_cache .ruff_cache .hypothesis src/*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
