# Two commands on a fresh machine: `make demo` and `make test`. Both make .venv themselves.

PYTHON ?= python3
BIN := .venv/bin
TYPED := build/typed/ds2deploy
RESULTS ?= benchmarks/results
MINUTES ?= 10

# pip's last line every ten seconds, so that a log shows how far it is; its own bar needs a terminal.
INSTALL := $(BIN)/python .ci/watch.py $(BIN)/python -m pip install --progress-bar raw

# What `make test` leaves out; `make test-all` has everything.
MARKS ?= not slow and not thorough

# One tree with export/ and runtimes/ as the subpackages that they are, for what reads sources.
LINKED = @rm -rf build/typed && mkdir -p $(TYPED) && \
	ln -s $(CURDIR)/ds2deploy/* $(CURDIR)/export $(CURDIR)/runtimes $(TYPED)/

.PHONY: venv demo test test-all test-gpu test-aarch64 test-pythons fuzz bench bench-check lint format wheel release-check docs clean

# On Linux pip's usual torch brings CUDA libraries of several GB. Where pip is pointed at a CPU
# build (PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS), that one is preferred: "2.13.0+cpu" ranks higher.
.venv/ready: pyproject.toml
	@echo "Making .venv: takes a minute, or several if torch must be downloaded"
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "ds2deploy needs Python 3.10 or newer: make PYTHON=python3.11")'
	$(PYTHON) .ci/watch.py $(PYTHON) -m venv .venv
	$(BIN)/python .ci/watch.py $(BIN)/python -m pip install -qq --upgrade pip
	$(INSTALL) --editable '.[all-cpu]'
	@touch $@

venv: .venv/ready

demo: .venv/ready
	$(BIN)/ds2deploy demo --out runs/demo

# Two processes of one thread each: most of a test is Python, and threads of two processes that wait
# for each other take longer than one after the other. What was compiled once is kept, whatever the
# environment says: most tests of a command start a Python of their own.
test: .venv/ready
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 \
		$(BIN)/python -m pytest --ignore tests/gpu -n 2 --dist worksteal -m "$(MARKS)" \
		--durations 20 --durations-min 5 $(TESTS)

test-all:
	$(MAKE) test MARKS=

test-gpu: .venv/ready
	$(BIN)/python -m pytest tests/gpu

# Fuzzes the readers of files from outside for MINUTES minutes in all, and writes what it finds to
# build/fuzz: add a new finding, made small, to tests/fuzz/corpus. After `pip install atheris`,
# `tests/fuzz/run.py --engine atheris` follows the code that is reached.
fuzz: .venv/ready
	nice -n 10 $(BIN)/python tests/fuzz/run.py --minutes $(MINUTES) --out build/fuzz

.venv/peers: .venv/ready
	$(INSTALL) --editable '.[all-cpu,peers]'
	@touch $@

# The wheel under emulation of aarch64: several minutes. Exit code 2, with what is missing, elsewhere.
test-aarch64: .venv/ready wheel
	bash .ci/aarch64.sh

# The wheel in every Python that is here, with the newest dependencies and, in 3.10, the oldest.
test-pythons: .venv/ready wheel
	bash .ci/pythons.sh

# Half an hour on two cores, which nothing else should use meanwhile. gpu.py ends with 2 where
# there is no GPU, and says so.
bench: .venv/peers
	$(BIN)/python benchmarks/latency.py --out $(RESULTS)
	$(BIN)/python benchmarks/limits.py --out $(RESULTS)
	$(BIN)/python benchmarks/throughput.py --out $(RESULTS)
	$(BIN)/python benchmarks/startup.py --out $(RESULTS)
	$(BIN)/python benchmarks/training.py --out $(RESULTS)
	$(BIN)/python benchmarks/features.py --out $(RESULTS)
	$(BIN)/python benchmarks/language_model.py --out $(RESULTS)
	$(BIN)/python benchmarks/decoding.py --out $(RESULTS)
	$(BIN)/python benchmarks/gpu.py --out $(RESULTS) || [ $$? -eq 2 ]
	$(BIN)/python benchmarks/report.py $(RESULTS)

# Ratios against the committed ones; never seconds.
bench-check: .venv/ready
	$(BIN)/python benchmarks/check.py

# Apart, so that what builds the site cannot hinder `make demo` and `make test`.
.venv/docs: .venv/ready
	$(INSTALL) --editable '.[all-cpu,docs]'
	@touch $@

# The site in build/site; a warning, such as a link that leads nowhere, is an error.
docs: .venv/docs
	$(LINKED)
	$(BIN)/python docs/scripts/imports.py docs/images/imports.svg
	$(BIN)/python docs/scripts/pictures.py docs/images
	$(BIN)/python docs/scripts/command_line.py docs/reference/command-line.md
	$(BIN)/python docs/scripts/recipe.py docs/reference/recipe.md
	NO_COLOR=1 $(BIN)/zensical build --clean --strict

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(LINKED)
	cd build/typed && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p ds2deploy

format: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Needs none of the packages of .venv: the small environment takes seconds.
build/packager/ready:
	$(PYTHON) -m venv build/packager
	build/packager/bin/python -m pip install -qq 'build>=1.2'
	@touch $@

wheel: build/packager/ready
	rm -rf dist build/lib build/bdist.*
	build/packager/bin/python -m build --wheel

# Builds sdist and wheel, checks them, and installs each in an empty environment: several minutes.
release-check: .venv/ready
	bash .ci/release.sh

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
