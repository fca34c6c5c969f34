# Words for people; every target hands over to `advprune`. `make` alone lists them.
# All targets are phony: folders named pipeline, export, deploy and tests exist.
.PHONY: help setup pipeline plan verify latency bench gate baseline bundle report test test-slow test-tensorrt test-browser coverage mutants lint format lock audit sbom doctor docs clean

METHOD      ?= harp
SPARSITY    ?= 0.99
GRANULARITY ?=
COMPRESSION ?=
DATA        ?= digits
EXTRA       ?=
MODEL       ?=
PRESET      ?=
OBJECTIVE   ?=
SEED        ?= 0
DEVICE      ?= auto
EPS         ?=
RUN         ?= runs/latest
BASELINE    ?= baselines/digits.json
REASON      ?=
PYTHON      ?= python3.11
ARGS        ?=

BIN     := .venv/bin
READY   := .venv/.ready
# One budget: a compression takes the place of the sparsity.
BUDGET   = $(if $(COMPRESSION),--compression $(COMPRESSION),--sparsity $(SPARSITY))
RECIPE   = --method $(METHOD) $(BUDGET) $(if $(GRANULARITY),--granularity $(GRANULARITY)) --data $(DATA) $(if $(EXTRA),--extra-data $(EXTRA)) \
           --seed $(SEED) --device $(DEVICE) \
           $(if $(MODEL),--model $(MODEL)) $(if $(PRESET),--preset $(PRESET)) \
           $(if $(OBJECTIVE),--objective $(OBJECTIVE)) $(if $(EPS),--eps $(EPS)) $(ARGS)
COMPILE  = $(BIN)/uv pip compile pyproject.toml --overrides requirements/overrides.txt \
           --generate-hashes --no-emit-index-url --no-header --universal --python-version 3.11 -q

help:
	@echo "make pipeline    train, prune, quantise, export, attack and judge a model"
	@echo "                 METHOD=$(METHOD) SPARSITY=$(SPARSITY) DATA=$(DATA) MODEL= PRESET= OBJECTIVE= SEED=$(SEED) DEVICE=$(DEVICE) EPS= ARGS="
	@echo "                 COMPRESSION=  all parameters over those left, in place of SPARSITY"
	@echo "                 GRANULARITY=  what goes as one: weight, filter, channel or 2:4 (with SPARSITY=0.5)"
	@echo "                 EXTRA=        a folder of more training images"
	@echo "make plan        show the stages and what is cached, for the same variables"
	@echo "make report      print the report of RUN=$(RUN)"
	@echo "make verify      attack the engines of RUN anew;  make latency  time them"
	@echo "make gate        hold RUN against BASELINE=$(BASELINE);  make baseline REASON=  accept it as that"
	@echo "make bundle      what ships of RUN, to be checked on the device;  ARGS=\"--sign key.pem --archive\""
	@echo "make bench       measure every goal of speed into benchmarks/RESULTS.md;  ARGS=  names of some"
	@echo "make test        the fast tests;  make test-slow  the slow ones"
	@echo "make test-tensorrt  our calls against the published TensorRT bindings; fetches them"
	@echo "make test-browser  the pages in a headless Chromium, which must be installed"
	@echo "make coverage    the fast tests, and whether they reach every branch that they must"
	@echo "make mutants     put faults into modules and say which no test notices;  ARGS=  groups, --sample N"
	@echo "make lint        ruff, types, import contracts;  make format  rewrite in the one style"
	@echo "make doctor      what this machine has and lacks"
	@echo "make docs        write the pages of docs/ that are made from the program"
	@echo "make lock        resolve requirements/*.txt anew;  make clean  remove .venv and caches"
	@echo "make audit       look every locked release up among published vulnerabilities; asks a service"
	@echo "make sbom        a bill of what is locked, CycloneDX 1.6, into build/sbom.cdx.json"

setup: $(READY)

# uv comes with pip where the machine has none; versions are exact and hashed.
$(READY): requirements/dev.txt pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check \
	    --require-hashes --no-deps -r requirements/uv.txt
	@$(BIN)/uv pip sync --quiet --require-hashes --compile-bytecode --python $(BIN)/python requirements/dev.txt requirements/uv.txt
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

pipeline: setup
	@$(BIN)/advprune run $(RECIPE)

plan: setup
	@$(BIN)/advprune plan $(RECIPE)

verify report bundle: setup
	@$(BIN)/advprune $@ $(RUN) $(ARGS)

latency: setup
	@$(BIN)/advprune bench $(RUN) $(ARGS)

bench: setup
	@$(BIN)/python benchmarks/goals.py $(ARGS)

gate: setup
	@$(BIN)/advprune gate $(RUN) --baseline $(BASELINE) $(ARGS)

baseline: setup
	@$(BIN)/advprune gate $(RUN) --baseline $(BASELINE) --update-baseline --reason "$(REASON)" $(ARGS)

doctor: setup
	@$(BIN)/advprune doctor $(ARGS)

docs: setup
	@PYTHONPATH=.ci $(BIN)/python -m pages

# One thread per worker: two cores are shared by two workers, not fought over.
test: setup
	@OMP_NUM_THREADS=1 $(BIN)/pytest -n auto $(ARGS)

test-slow: setup
	@OMP_NUM_THREADS=1 $(BIN)/pytest -n auto -m slow $(ARGS)

# On the names of TensorRT 10.3, 10.16 and 11.4; needs the package index and a C compiler, no GPU.
test-tensorrt: setup
	@OMP_NUM_THREADS=1 $(BIN)/pytest -m tensorrt_contract $(ARGS)

# Pages as readers see them, in the system's Chromium: apt-get install chromium.
test-browser: setup
	@OMP_NUM_THREADS=1 $(BIN)/pytest -m browser $(ARGS)

coverage: setup
	@mkdir -p build
	@OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --cov --cov-report=json:build/coverage.json $(ARGS)
	@PYTHONPATH=tests $(BIN)/python -m mutation.coverage_goal build/coverage.json

mutants: setup
	@PYTHONPATH=.:tests OMP_NUM_THREADS=1 $(BIN)/python -m mutation $(ARGS)

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/basedpyright
	@$(BIN)/lint-imports

format: setup
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

lock: setup
	@$(COMPILE) -o requirements/run.txt
	@$(COMPILE) --group dev --group build -c requirements/run.txt -o requirements/dev.txt
	@echo uv | $(BIN)/uv pip compile - --generate-hashes --no-emit-index-url --no-header --universal --python-version 3.11 -q -o requirements/uv.txt

# Ends well only if all was looked up; that nobody could be asked is a failure here, too.
audit: setup
	@$(BIN)/python .ci/audit.py

sbom: setup
	@$(BIN)/python .ci/sbom.py build/sbom.cdx.json

clean:
	@rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache
