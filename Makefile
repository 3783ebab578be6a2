# make demo | table2 | test | test-slow | test-slurm | fuzz | test-faults | check | bench | bench-gpu | bench-memory |
# bench-scale | bench-trainers | compare-earlier-version | plan | verify | prune | store | report.
# All of them make .venv first, once.
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

.PHONY: demo table2 test test-slow test-slurm fuzz test-faults check bench bench-gpu bench-memory bench-scale bench-trainers compare-earlier-version plan verify prune store report

demo: $(READY)
	$(BIN)/snakemake --cores $(CORES)

table2: $(READY)
	$(BIN)/snakemake --cores $(CORES) table2

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

# Damaged files and configurations for every reader: make fuzz CASES=3000 SEED=1, so many of each; `make test` has 50.
fuzz: $(READY)
	@echo "make fuzz CASES=$(CASES) SEED=$(SEED)"
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --cases $(CASES) --seed $(SEED)
	OMP_NUM_THREADS=1 DMD_FUZZ_CASES=$(CASES) $(BIN)/python -m pytest --hypothesis-seed=$(SEED) tests/fuzz/test_config.py

# Faults in the midst of a small chain, one in each run, about a minute each: writes bench/results/faults.json after
# every run. AT_ONCE=2 runs them two at a time.
test-faults: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults --runs $(RUNS) --seed $(SEED) --at-once $(AT_ONCE) --output bench/results/faults.json

# Full-size networks and every architecture: minutes, and gigabytes of memory.
test-slow: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -s

# The workflow on a SLURM of two nodes on this machine; root installs Debian's packages where they are missing. No part of
# .ci/run, which would then take more than half an hour.
test-slurm: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/slurm -m slurm -s

check: $(READY)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/snakefmt --check Snakefile workflow/rules
	$(BIN)/snakemake --lint
	$(BIN)/mypy

# Stages against their parts, on an otherwise idle machine: writes bench/results/parts-cpu.json.
bench: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.parts

# The same on a GPU, at the paper's sizes: writes bench/results/gpu-CARD.json. TINY=1 proves on a CPU that it runs.
bench-gpu: $(READY)
	$(BIN)/python -m bench.gpu $(if $(TINY),--tiny)

# Memory of whole fine-tuning and of adapters: writes bench/results/memory.json.
bench-memory: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.memory

# Twelve million rows, thousands of jobs, and readers of pairs: writes bench/results/scale.json and readers.json.
bench-scale: $(READY)
	export OMP_NUM_THREADS=1; status=0; \
	for part in scale readers; do $(BIN)/python -m bench.$$part || status=1; done; exit $$status

# Updates and pairs of this tree against those of commit 29f82d6, in turn: writes bench/results/trainers.json.
# make bench-trainers SEGMENTS=2 is quick, and its intervals are wide.
bench-trainers: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.trainers $(if $(SEGMENTS),--segments $(SEGMENTS))

# Every stage of this tree against commit 29f82d6, from equal inputs; exits 1 if one makes anything else.
# make compare-earlier-version QUICK=1 shortens updates, pairs and samples; CASE=toy2d takes one case.
compare-earlier-version: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.earlier_version $(CASE) $(if $(QUICK),--quick)

# make plan EXPERIMENT=digits: jobs, network calls, time and disk of what a run would make.
plan: $(READY)
	@$(BIN)/python workflow/scripts/plan.py $(EXPERIMENT)

# Finds damaged artifacts and removes them with all that was made from them.
verify: $(READY)
	$(BIN)/python -m dmd.verify results --delete

# make prune lists what no experiment owns; make prune DELETE=1 removes it.
prune: $(READY)
	@$(BIN)/python workflow/scripts/prune.py $(if $(DELETE),--delete)

# Copies pairs that are in results/ to the storage of config.yaml.
store: $(READY)
	@$(BIN)/python workflow/scripts/store.py $(EXPERIMENT)

report: $(READY)
	$(BIN)/snakemake --report results/report.html

# torch comes first and alone: its own index decides between the CPU and the CUDA build of this machine.
$(READY): envs/requirements.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed, $(PYTHON) is " + sys.version.split()[0] + "; name another: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' envs/requirements.txt)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r envs/requirements.txt
	@rm -f .venv/.ready-* && touch $@
