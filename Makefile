# Each target does its own set-up: a private .venv, made once and again when the dependencies change.
# A current pip needs half a minute less; the one at hand fetches it (from 22.3 on), as `venv` would
# install an old one first. Python compiles what it imports, once: to compile all that is installed
# takes a minute longer.
PYTHON ?= python3
BIN = .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK = 1
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test docs faults kill-tests fuzz format clean

demo: .venv/installed
	$(BIN)/tf-alexnet demo examples/photos

test: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 5

# The pages, into build/docs; nothing is fetched from other hosts.
docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "build/docs/index.html (for the search: python3 -m http.server --directory build/docs)"

# Downloads, jobs and decoders cut, crowded and starved many times over: half an hour.
faults: .venv/installed
	$(BIN)/python -m pytest -m slow

# Extractions killed 240 times, here and on Ray: about an hour.
kill-tests: .venv/installed
	$(BIN)/python -m pytest -m kills

fuzz: .venv/installed
	$(BIN)/python tests/fuzz.py 100000

format: .venv/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.venv/installed: setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv --without-pip .venv
	$(PYTHON) -m pip --python $(BIN)/python install --quiet --upgrade pip || $(BIN)/python -m ensurepip
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[test]'
	touch $@

clean:
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache
