# make demo | table2 | methods | methods-few | methods-eight | methods-long | methods-switches | methods-search |
# fashion | test | test-slow | test-slurm | fuzz | test-faults | check | bench | bench-gpu | bench-memory | bench-scale |
# plan | verify | prune | store | report.
# Each target creates .venv first if it does not exist.
PYTHON ?= python3
CORES ?= all
EXPERIMENT ?=
CASES ?= 1000
SEED ?= 0
RUNS ?= 100
AT_ONCE ?= 1
BIN := .venv/bin
READY := .venv/.ready-$(shell cksum < envs/requirements.txt | cut -d ' ' -f 1)
SOURCES := dmd tests workflow/scripts $(wildcard bench)

.PHONY: demo table2 methods methods-few methods-eight methods-long methods-switches methods-search fashion test test-slow test-slurm fuzz test-faults check bench bench-gpu bench-memory bench-scale plan verify prune store report

demo: $(READY)
	$(BIN)/snakemake --cores $(CORES)

table2: $(READY)
	$(BIN)/snakemake --cores $(CORES) table2

# All methods of one network call on digits, three seeds each, and bench/results/methods-report.md with cost and
# intervals. QUICK=1: one seed, a quarter of the updates, in a folder of its own. An interrupted run goes on.
methods: $(READY)
ifdef QUICK
	$(BIN)/python -m bench.methods_quick --folder bench/.quick --cores $(CORES)
else
	$(BIN)/snakemake --cores $(CORES) results/tables/methods.md results/tables/methods-images.png
	$(BIN)/python -m bench.methods_report methods
endif

# Methods of two to eight calls, and those that take guidance as an input.
methods-few: $(READY)
	$(BIN)/snakemake --cores $(CORES) results/tables/methods-few.md results/tables/methods-few-calls.png results/tables/methods-guided.md
	$(BIN)/python -m bench.methods_report methods-few

# DMD, its ablations and other methods with eight seeds each; methods with four times as many updates; switches of DMD.
methods-eight methods-long methods-switches: $(READY)
	$(BIN)/snakemake --cores $(CORES) results/tables/$@.md
	$(BIN)/python -m bench.methods_report $@

# Methods on Fashion-MNIST.
fashion: $(READY)
	$(BIN)/snakemake --cores $(CORES) results/tables/fashion.md results/tables/fashion-calls.png results/tables/fashion-images.png
	$(BIN)/python -m bench.methods_report fashion

# Searches the learning rates of methods of one call: writes bench/results/search.json.
methods-search: $(READY)
	$(BIN)/python -m bench.search --folder bench/.search --cores $(CORES)

# Python keeps its bytecode, since the tests start some hundred processes.
test: $(READY)
	env -u PYTHONDONTWRITEBYTECODE OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --durations=40 --durations-min=4

# Gives every reader CASES damaged files, and as many damaged configurations (in `make test`: 25). For example:
# make fuzz CASES=3000 SEED=1.
fuzz: $(READY)
	@echo "make fuzz CASES=$(CASES) SEED=$(SEED)"
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --cases $(CASES) --seed $(SEED)
	OMP_NUM_THREADS=1 DMD_FUZZ_CASES=$(CASES) $(BIN)/python -m pytest --hypothesis-seed=$(SEED) tests/fuzz/test_config.py

# Injects one fault into each of RUNS runs of a small workflow, about half a minute each, and writes
# bench/results/faults.json after every run. AT_ONCE=2 runs two at a time.
test-faults: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults --runs $(RUNS) --seed $(SEED) --at-once $(AT_ONCE) --output bench/results/faults.json

# Tests with full-size networks and every architecture; they take minutes and gigabytes of memory.
test-slow: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -s

# Runs the workflow on a two-node SLURM on this machine. It needs root and installs missing Debian packages. .ci/run
# leaves it out, since it would then take more than half an hour.
test-slurm: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/slurm -m slurm -s

check: $(READY)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/snakefmt --check Snakefile workflow/rules
	$(BIN)/snakemake --lint
	$(BIN)/mypy

# Measures stages against their parts, on an otherwise idle machine: writes bench/results/parts-cpu.json.
bench: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.parts

# Measures on a GPU at the paper's sizes: writes bench/results/gpu-CARD.json. TINY=1 tests the code on a CPU.
bench-gpu: $(READY)
	$(BIN)/python -m bench.gpu $(if $(TINY),--tiny)

# Measures the memory of full fine-tuning and of adapters: writes bench/results/memory.json.
bench-memory: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.memory

# Measures twelve million rows, thousands of jobs, and readers of pairs: writes bench/results/scale.json, readers.json.
bench-scale: $(READY)
	export OMP_NUM_THREADS=1; status=0; \
	for part in scale readers; do $(BIN)/python -m bench.$$part || status=1; done; exit $$status

# make plan EXPERIMENT=digits prints the jobs, network calls, time and disk of a run; without EXPERIMENT, of the demo.
plan: $(READY)
	@$(BIN)/python workflow/scripts/plan.py $(EXPERIMENT)

# Finds damaged artifacts and removes them with all that was made from them.
verify: $(READY)
	$(BIN)/python -m dmd.verify results --delete

# make prune lists files in results/ that no experiment owns; make prune DELETE=1 removes them.
prune: $(READY)
	@$(BIN)/python workflow/scripts/prune.py $(if $(DELETE),--delete)

# make store EXPERIMENT=NAME uploads the pairs of an experiment from results/ to the `storage` of config.yaml.
store: $(READY)
	@$(BIN)/python workflow/scripts/store.py $(EXPERIMENT)

report: $(READY)
	$(BIN)/snakemake --report results/report.html

# torch is installed first and alone; the package index that pip uses decides whether it is a CPU or a CUDA build.
$(READY): envs/requirements.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed, $(PYTHON) is " + sys.version.split()[0] + "; name another: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' envs/requirements.txt)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r envs/requirements.txt
	@rm -f .venv/.ready-* && touch $@
