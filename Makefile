# Every target does its own set-up: the first makes .venv (minutes), later ones find it ready (a fraction of a second).
#   make lab PYTHON=python3.12        another Python
#   make test ARGS="-k simulate"      arguments for the command behind a target

PYTHON ?= python3
ARGS ?=

.PHONY: help lab run test check bench soak clean
.NOTPARALLEL:

help:
	@echo "make lab     open the labs in JupyterLab"
	@echo "make run     run every lab without a browser; reports go to runs/"
	@echo "make test    run the whole test suite, labs included"
	@echo "make check   check format, lint and types"
	@echo "make bench   measure pipelab beside its peers"
	@echo "make soak    launch 200 times, with kills at random; is anything left?"
	@echo "make clean   remove .venv, runs/ and caches"

lab run test check bench soak:
	@$(PYTHON) tools/bootstrap.py $@ -- $(ARGS)

clean:
	rm -rf .venv runs build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
