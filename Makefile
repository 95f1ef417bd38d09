# The only entry points. Each sets itself up: Python >= 3.11 with venv, make and git are all that must be there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SETUP := $(VENV)/.ready
CHAPTERS := $(sort $(wildcard book/[0-9][0-9]-*.ipynb))

.PHONY: book test serve lab bench clean

book: $(SETUP)
	@$(BIN)/python tools/set_repository.py --hint
	$(BIN)/jupyter-book build . -W -n --keep-going -q
	@echo "The book is in _build/html: open _build/html/index.html, or run 'make serve'."

test: book
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n 2 --dist loadfile
	BDL_EXPLORE=still OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --nbval-lax --nbval-current-env --nbval-cell-timeout=120 $(CHAPTERS)

serve: book
	@echo "http://127.0.0.1:8000/ (stop with Ctrl-C)"
	@$(BIN)/python -m http.server --directory _build/html --bind 127.0.0.1 8000

lab: $(SETUP)
	$(BIN)/jupyter lab book

bench: $(SETUP)
	$(BIN)/pip install -q -c constraints.txt -e ".[bench]"
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

clean:
	rm -rf _build $(VENV)

$(SETUP): pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; assert sys.version_info >= (3, 11), 'Python 3.11 or newer is needed: make PYTHON=python3.12 ...'"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[book,test]"
	touch $@
