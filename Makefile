# Everything from nothing: Python >= 3.11 and make. The virtual environment is this project's own.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready

.PHONY: help demo test test-slow wheel-test campaigns calibration mutation lint bench overhead figures reproduce clean

help:
	@echo "make demo       derive, simulate and compare on handwritten digits (about a minute)"
	@echo "make test       linters, types and the test suite (about seven minutes)"
	@echo "make test-slow  digits at full size, twenty seeds of every claim and mutant (about half an hour)"
	@echo "make wheel-test build wheel and sdist, install the wheel into an empty environment, play the README there (about five minutes)"
	@echo "make campaigns  random calls, kills, damaged files and many problems, seeded, until something fails (about an hour)"
	@echo "make calibration  200 random right theorems, none to be refuted, and each with one coefficient off, all to be (about an hour)"
	@echo "make mutation   plant faults in the source, one at a time, and see that the fast tests notice (about an hour)"
	@echo "make bench      speed beside diffrax, torchsde, numpy and floors, on a machine that does nothing else (about three minutes)"
	@echo "make overhead   what RW-SAM and m-SAM cost beside SAM, on such a machine (about a minute)"
	@echo "make reproduce  the quick presets of all experiments; goes on where it was stopped (about ten minutes)"
	@echo "make figures    make every figure under figures/ anew, these among them (about half an hour)"

$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "sdesam needs Python 3.11 or newer; set PYTHON=python3.11 or similar")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $(READY)

demo: $(READY)
	$(BIN)/sdesam compare m-usam --problem digits --lr 0.1 --rho 0.1 --batch 16 --micro 16,4,1 --runs 64 --output figures --name demo

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -n 2

test-slow: $(READY)
	$(BIN)/python -m pytest -n 2 -m slow

wheel-test: $(READY)
	$(BIN)/python -m pytest -m "slow or not slow" tests/test_wheel.py

campaigns: $(READY)
	$(BIN)/python -m tests.campaigns.command_line --count 300
	$(BIN)/python -m tests.campaigns.api --count 200
	$(BIN)/python -m tests.campaigns.kills --count 100
	$(BIN)/python -m tests.campaigns.stores --count 400
	$(BIN)/python -m tests.campaigns.memory --count 500

calibration: $(READY)
	$(BIN)/python -m tests.campaigns.calibration --theorems 200

mutation: $(READY)
	$(BIN)/python -m tests.mutations

bench: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	$(BIN)/sdesam bench

overhead: $(READY)
	$(BIN)/python -m benchmarks.overhead

figures: demo reproduce
	$(BIN)/python -m experiments.digits_m_usam
	$(BIN)/python -m experiments.digits_m_sam
	$(BIN)/python -m experiments.rw_sam_effective
	$(BIN)/python -m experiments.fresh_micro_batches
	$(BIN)/sdesam verify all --output figures/report --json figures/report/report.json

reproduce: $(READY)
	$(BIN)/sdesam reproduce all --preset quick

clean:
	rm -rf $(VENV)
