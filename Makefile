# make serve   a server that answers for the example tasks, on a fresh clone
# make test    linters, type checks and tests, on a fresh clone
# Both make .venv and install into it, pinned by constraints.txt. PYTHON=... chooses the interpreter.
# make gpu-check   kernels on this machine's GPU, then benchmarks; needs no installation. REHEARSE=1 without a GPU
VENV ?= .venv
export VENV

.PHONY: serve test check gpu-check clean
serve: $(VENV)/.serve
	@exec $(VENV)/bin/prefixbank serve $(ARGS)

test: $(VENV)/.dev
	@exec scripts/check

check: test

gpu-check:
	@exec scripts/gpu-check $(ARGS)

$(VENV)/.serve: pyproject.toml constraints.txt
	@scripts/install $(VENV) serve,minilm
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt
	@scripts/install $(VENV) dev
	@touch $@ $(VENV)/.serve

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
