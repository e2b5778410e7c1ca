# Everything starts here: `make demo` and `make test` set up what they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# DeepSpeed compiles its C++ operations on first use; they are kept with the environment.
export TORCH_EXTENSIONS_DIR := $(CURDIR)/$(VENV)/torch_extensions

.PHONY: help env demo test test-fast test-cluster test-trackers torture check bench tables clean

help:
	@echo "make demo       environment, then the demo: a student learns from stored teachers (10 minutes on 2 cores)"
	@echo "make test       environment, then the whole suite, on three processes"
	@echo "make test-fast  the suite without what takes more than five seconds a test, on three processes"
	@echo "make test-cluster  a real Slurm of two machines, and hosts that die, on two processes (apt-get install slurmctld slurmd slurm-client munge iproute2)"
	@echo "make test-trackers  wandb, MLflow and optuna-dashboard themselves, installed into the environment first"
	@echo "make torture    random kills of pack, targets, train, sweep and a Slurm job, KILLS=25 each (hours; goes on where it was)"
	@echo "make check      ruff and pyright"
	@echo "make tables     the papers' systems, three seeds, on SpokenAffect and open corpora (hours; goes on where it was)"
	@echo "make clean      remove the environment and caches; runs and data stay"
	@echo "make bench      loader, packing, targets, prosody, sweep, checkpoints (prints; never fails on time)"

env: $(VENV)/.ready

$(VENV)/.ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	@# torch first and alone: a range would let pip take the CUDA build on a machine without a GPU
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' requirements.lock)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	$(BIN)/python -m ser.doctor --mend --build
	@touch $@

demo: env
	$(BIN)/ser run demo

test: env
	@# whole runs come first, so that they do not end up alone on one process
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder --ignore tests/cluster_suite

test-fast: env
	$(BIN)/python -m pytest -m "not slow" -n 3 --dist loadfile --ignore tests/cluster_suite

# Its daemons and network namespaces want to be root; what lacks packages or rights is skipped, and fails with
# SER_REQUIRE_SLURM=1, SER_REQUIRE_HOSTS=1 and SER_REQUIRE_KUBECTL=1. Its tests wait more than they compute: two processes halve the time.
test-cluster: env
	$(BIN)/python -m pytest tests/cluster_suite -n 2 --dist loadfile --no-loadscope-reorder

# wandb, MLflow and optuna-dashboard are optional, and no part of the lock; their tests fail here where they are skipped elsewhere.
test-trackers: env
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -r tests/trackers.lock
	SER_REQUIRE_TRACKERS=1 $(BIN)/python -m pytest tests/ser/test_trackers.py

# Small disks are mounted where this is root; clocks jump where libfaketime is installed; else those faults are skipped.
KILLS ?= 25
SEED ?= 0
torture: env
	$(BIN)/python -m tests.torture --seed $(SEED) --kills $(KILLS)

check: env
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/pyright

bench: env
	for name in loader packing targets prosody sweep checkpoints; do $(BIN)/python -m tests.bench.$$name; done

# Each keeps what is finished, so that this may be stopped and called again; the tables are kept with their date.
SYSTEMS := mitra2022 mitra2023 emodistill oliveira2023 mtkd2025 fused
tables: env
	set -e; for size in tiny open; do for name in $(SYSTEMS); do \
		$(BIN)/ser run $$name/$$size; \
		cp runs/$$name-$$size/report.md tests/bench/results/$$name-$$size-$$(date +%F).md; \
	done; done

# What is built and cached only: trainings and datasets are never removed from here.
clean:
	rm -rf $(VENV) .ruff_cache .pytest_cache .hypothesis build *.egg-info
	find . -name __pycache__ -type d -not -path "./runs/*" -not -path "./data/*" -prune -exec rm -rf {} +
