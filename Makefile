PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
unexport PYTHONDONTWRITEBYTECODE  # if it were set, each start would compile torch anew

# Made anew if its Python is gone, or the checkout was moved or copied: its scripts would run the code at the old place.
ifneq ($(shell exec 2>/dev/null; $(BIN)/python -c '' && cat $(INSTALLED)),$(CURDIR))
.PHONY: $(INSTALLED)
CLEAR := --clear
endif

.PHONY: help install demo small test lint bench clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-10s %s\n", $$1, $$2}'

install: $(INSTALLED)  ## set up .venv with the tested versions (once; the other targets do it themselves)

# BasicSR's build needs torch; without build isolation it uses the one installed here. --no-compile: only a tenth of
# 10,000 modules is ever imported, and Python compiles and caches those on import.
$(INSTALLED): setup.py pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; (3, 11) <= sys.version_info < (3, 13) or sys.exit("Python 3.11 or 3.12 is needed: make PYTHON=python3.12; to restore photographs on a newer one: pip install -e .")'
	$(PYTHON) -m venv $(CLEAR) $$([ "$$($(BIN)/python -V 2>&1)" = "$$($(PYTHON) -V)" ] || echo --clear) .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt setuptools
	$(BIN)/python -m pip install --quiet --no-compile --use-pep517 --no-build-isolation -c constraints.txt -e '.[dev]'
	@pwd -P > $@

demo: $(INSTALLED)  ## blur photographs, restore them, train the small weights on; demo/look/index.html, demo/report.html
	PATH="$(CURDIR)/$(BIN):$$PATH" ./demo.sh

small: $(INSTALLED)  ## train as the bundled weights were, from nothing, 1.5 hours on two cores; small/wrcan_small.safetensors
	PATH="$(CURDIR)/$(BIN):$$PATH" ./small.sh

test: $(INSTALLED) lint  ## ruff, the type checker and all tests
	$(BIN)/python -m pytest -q -n 2 --dist worksteal

lint: $(INSTALLED)  ## ruff and the type checker alone
	$(BIN)/ruff check .
	$(BIN)/mypy --num-workers 2

# basicsr sets this too: on a busy machine, threads that wait actively would disturb what is measured.
bench: export OMP_WAIT_POLICY := passive
bench: $(INSTALLED)  ## measure the training step, restoring and the data, an hour on two cores; JSON in benchmarks/results/
	$(BIN)/python benchmarks/train_step.py
	$(BIN)/python benchmarks/inference.py
	$(BIN)/python benchmarks/inference.py --blocks 4x16 --sizes 256x256 1280x720 --modes plain exact --rounds 2
	$(BIN)/python benchmarks/loader.py

clean:  ## remove what the demo and the tests wrote (not .venv, not small/)
	rm -rf demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
