# make evolve   a fresh clone to an evolved memory and its table
# make test     all tests
# make real     a memory on a real language model, beside the full cache and the two best other policies
# make ui       look at the generations in a browser
# make docs     the pages of docs/ as a site
PYTHON ?= python3
VENV ?= .venv
# What is evolved and evaluated: a memory for every size; configs/recall.yaml has the paper's, which decides by a threshold.
CONFIG ?= configs/recall-budget.yaml
RUN ?=
# Where pip looks for torch besides PyPI, for instance an index of CPU wheels.
TORCH_INDEX ?=
PYTEST_ARGS ?=
# For instance --seed 1 --folder build/chaos, or --small.
CHAOS_ARGS ?=
# For instance --seconds 60 --seed 1, or --kind jobs --only 17.
FUZZ_ARGS ?=
# For instance --quick.
BENCH_ARGS ?=

BIN := $(VENV)/bin
# Spinning threads on shared cores cost a factor of ten.
export OMP_WAIT_POLICY ?= PASSIVE
export GOMP_SPINCOUNT ?= 0

.PHONY: evolve resume evaluate transfer real inspect headline model test fuzz chaos cluster-test bench bench-dispatch bench-memory bench-kernel lint architecture docs setup ui report clean

evolve: setup
	$(BIN)/namm evolve $(CONFIG)

resume: setup
	$(BIN)/namm evolve --resume $(or $(RUN),$(CONFIG))

# All policies at all sizes with the memory that is shipped, or NAMM=runs/recall-budget/namm.
NAMM ?= models/$(basename $(notdir $(CONFIG)))-namm
evaluate: setup
	$(BIN)/namm evaluate $(CONFIG) --namm $(NAMM)

# The paper's kind of memory, unchanged, on a larger language model, on video and on control.
TRANSFER_NAMM ?= models/recall-namm
transfer: setup
	$(BIN)/namm transfer --namm $(TRANSFER_NAMM)

# A memory, the full cache and the two best other policies on a real language model, at one size: one table, one
# picture, within 15 minutes on two cores (docs/real.md). What was interrupted goes on.
REAL_NAMM ?= $(firstword $(wildcard models/smollm2-namm) models/recall-namm)
REAL_SIZE ?= 0.3
REAL_SAMPLES ?= 48
REAL_POLICIES ?= {name: expected_attention, over: layer, sinks: 4, epsilon: 0, floor: 2.5},{name: keydiff, over: layer, sinks: 4}
# bfloat16 where the processor multiplies it (four times as fast); scores are those of that arithmetic.
REAL_DTYPE ?= $(if $(shell grep -m1 -E 'avx512_bf16|amx_bf16' /proc/cpuinfo 2>/dev/null),bfloat16,float32)
REAL_NAME ?= real-$(subst /,-,$(REAL_NAMM))-$(REAL_SIZE)
REAL_ASKED = --budgets none --size $(REAL_SIZE) --samples $(REAL_SAMPLES) --validation 6 --timing 0
REAL_NEW = configs/smollm2.yaml model.dtype=$(REAL_DTYPE) --name $(REAL_NAME) --namm $(REAL_NAMM) --policies "$(REAL_POLICIES)" $(REAL_ASKED)
REAL_BEGUN = $(wildcard $(or $(NAMM_RUNS),runs)/$(REAL_NAME)/evaluate.yaml)
real: setup
	$(BIN)/namm models fetch smollm2
	$(BIN)/namm evaluate $(if $(REAL_BEGUN),--resume $(REAL_NAME) --samples $(REAL_SAMPLES),$(REAL_NEW))

inspect: setup
	$(BIN)/namm inspect $(NAMM) --config $(CONFIG) --out build/inspection

headline: setup
	$(BIN)/python benchmarks/headline.py

model: setup
	$(BIN)/python -m workers.pretraining.language --out models/recall-small

# Two at a time, since many tests wait for processes of their own; a file's tests stay together, in order.
test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

# A job killed at from all sides against the same job left alone; within 20 minutes on two cores.
chaos: setup
	$(BIN)/python -m tests.system.chaos $(CHAOS_ARGS)

# Random damage to all that is read from outside: no traceback, no hang, no secret, no wrong answer; 15 minutes.
fuzz: setup
	$(BIN)/python -m tests.fuzz $(FUZZ_ARGS)

# A real cluster on this machine, in network namespaces; needs root, says so where it is not.
cluster-test: setup
	$(BIN)/python -m tests.system.cluster

# What the memory costs on a CPU beside the full cache: tokens per CPU-second, memory, where the time goes.
bench: setup
	$(BIN)/python -m benchmarks.throughput $(BENCH_ARGS)
	$(BIN)/python -m benchmarks.real_model --if-fetched

# What handing out the work costs, and what a second worker brings.
bench-dispatch: setup
	$(BIN)/python -m benchmarks.dispatch

# Peak memory of 1 to 32 sequences beside the stock cache's.
bench-memory: setup
	$(BIN)/python -m benchmarks.memory

# The fused kernels beside their roofline; needs a GPU, says so where there is none.
bench-kernel: setup
	$(BIN)/python -m benchmarks.kernel

# Style and types.
lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# The rules of the house: floors, circles, sizes, what may be loaded, and what adding a part takes.
architecture: setup
	$(BIN)/python -m tests.architecture

# The pages of docs/, and the API from docstrings, as a site; fails on a warning, a broken link or a misspelt word.
# NO_MKDOCS_2_WARNING hides a notice of Material about another project; --quiet would hide warnings from --strict, too.
docs: $(VENV)/.docs-installed
	$(BIN)/python -m codespell_lib
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "open build/site/index.html in a browser"

ui: setup
	$(BIN)/namm ui

report: setup
	$(BIN)/namm report $(or $(RUN),$(basename $(notdir $(CONFIG))))

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "namm needs Python 3.10 or newer: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV); this takes a few minutes the first time"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -c constraints.txt -e ".[benchmarks,dev]"
	@touch $@

$(VENV)/.docs-installed: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache
