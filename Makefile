# Each target does its own set-up: a private .venv, made once and again when the dependencies change.
# A current pip needs half a minute less. Python compiles what it imports, once: to compile all that
# is installed takes a minute longer.
PYTHON ?= python3
BIN = .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK = 1
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test docs faults kill-tests fuzz format clean

demo: .venv/installed
	$(BIN)/tf-alexnet demo examples/photos

# In two parts, each in new processes, and in the order of the alphabet: the largest tests (a browser
# with its server, full-size networks) would take too much memory together.
test: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	for part in a-k l-z; do \
		$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 5 tests/test_[$$part]*.py || exit 1; \
	done

# The pages, into build/docs; nothing is fetched from other hosts.
docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "build/docs/index.html (for the search: python3 -m http.server --directory build/docs)"

# Downloads, jobs and decoders cut, crowded and starved many times over: many minutes.
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
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[test]'
	touch $@

clean:
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache
