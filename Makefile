# `make` lists the commands. Each sets up what it needs in .venv first.
#
# What is given as VARIABLE=value is data: make never expands it and no shell reads it. Only what
# stands on the command line counts; a SEED that somebody exported for another program does not.
VARIABLES := WORLD ROLLOUTS BASELINE CANDIDATE MODEL SEED ARTIFACTS YES MAX_CALLS LIVE PYTHON
given = $(if $(filter command,$(origin $(1))),$(value $(1)))
$(foreach name,$(VARIABLES),$(eval export GIVEN_$(name) := $$(call given,$(name))))

VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip install --quiet --disable-pip-version-check

# Sets and hashes come in the same order everywhere, and nbval needs the figures of the inline backend.
export PYTHONHASHSEED := 0
unexport MPLBACKEND $(VARIABLES)

# An environment that does not work is made anew: one that was left half made, or lost its Python.
WORKS := $(RUN) -c 'import pip, sys; sys.exit(sys.prefix == sys.base_prefix)'
BROKEN := $(shell test ! -e $(VENV) || $(WORKS) 2>/dev/null || echo broken)

.PHONY: help demo test interop lab notebooks html experiments lint bench chaos organism clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile
	@echo "  variables of demo: WORLD ROLLOUTS BASELINE CANDIDATE MODEL SEED ARTIFACTS YES MAX_CALLS LIVE"
	@echo "  of all commands:   PYTHON, the interpreter that .venv is made with"

demo: $(VENV)/core ## run the four notebooks in order
	@case "$$GIVEN_MODEL" in \
		local|record:*:local) MAKEFLAGS= $(MAKE) -s $(VENV)/local ;; \
		openai:*|record:*:openai:*) MAKEFLAGS= $(MAKE) -s $(VENV)/openai ;; \
	esac
	@set --; \
	for name in WORLD ROLLOUTS BASELINE CANDIDATE MODEL SEED ARTIFACTS MAX_CALLS LIVE; do \
		eval "value=\$$GIVEN_$$name"; \
		test -z "$$value" || set -- "$$@" "--$$(echo $$name | tr A-Z_ a-z-)=$$value"; \
	done; \
	case "$$GIVEN_YES" in 1|[yY]|[yY][eE][sS]|[tT][rR][uU][eE]) set -- "$$@" --yes ;; esac; \
	exec $(RUN) -m safety_lib demo "$$@"

test: $(VENV)/dev ## check everything: library, statistics, notebooks
	$(RUN) -m pytest -n auto --dist loadfile
	$(RUN) -m pytest --nbval --nbval-current-env --nbval-cell-timeout=120 \
		--nbval-sanitize-with=tests/nbval_sanitize.cfg -p no:randomly -p no:cacheprovider notebooks
	@! git rev-parse --git-dir >/dev/null 2>&1 || git diff --exit-code --stat -- artifacts notebooks

interop: $(VENV)/dev ## test the adapters with the real frameworks, in environments of their own
	$(RUN) tests/interop

lab: $(VENV)/core ## open the notebooks in JupyterLab
	$(RUN) -m jupyter lab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/notebooks

notebooks: $(VENV)/core ## run the notebooks and store them with their outputs
	$(RUN) -c "import safety_lib.pipeline.refresh as r; r.refresh_notebooks(); r.write_picture()"
	$(RUN) -c "from safety_lib.report.documents import write_documents; write_documents('artifacts')"
	$(RUN) -c "from safety_lib.commands import write_commands; write_commands()"

html: $(VENV)/core ## one site of notebooks, report, documents and API, in artifacts/site
	$(RUN) -c "from safety_lib.pipeline.site import build_site; print(build_site())"

experiments: $(VENV)/core ## run what takes longer than a notebook may, into artifacts/experiments
	$(RUN) -m safety_lib.experiments

lint: $(VENV)/dev ## ruff and mypy, notebooks included
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(RUN) -m nbqa mypy notebooks

organism: $(VENV)/organism ## teach, test and describe the model organism; what was stopped goes on
	nice $(RUN) -m safety_lib.organism make

chaos: $(VENV)/dev ## try bad inputs and kills by the hundred, on a seed of its own
	$(RUN) tests/chaos

bench: $(VENV)/dev ## measure the budgets
	$(RUN) tests/bench.py

clean: ## remove what was generated and is not committed
	rm -rf artifacts/runs artifacts/site .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# Named by a stamp of its own, which is there only once pip is.
$(VENV)/made: $(BROKEN)
	@$(if $(BROKEN),echo "$(VENV) does not work and is made anew";) \
	python="$$GIVEN_PYTHON"; \
	for found in python3.11 python3.12 python3.13 python3 python; do \
		test -z "$$python" || break; \
		"$$found" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null \
			&& python="$$found"; \
	done; \
	test -n "$$python" || { echo "error: no Python 3.11, 3.12 or 3.13 found; set PYTHON=..." >&2; exit 1; }; \
	if $(WORKS) 2>/dev/null; then touch $@; exit 0; fi; \
	"$$python" -m venv --clear $(VENV) >/dev/null && $(WORKS) && touch $@ || { \
		echo "error: $$python cannot make an environment with pip in it. On Debian and Ubuntu:" \
			"apt install python3-venv; elsewhere install ensurepip, or name another with PYTHON=..." >&2; \
		exit 1; }

.PHONY: broken
broken:

# What is installed is what the lock says, by the hash of every file; then this project, which has none.
define install
$(PIP) --require-hashes --no-deps -r .lock/$(1).txt
$(PIP) --no-deps --no-build-isolation -e .
endef

$(VENV)/core: $(VENV)/made pyproject.toml .lock/core.txt
	$(call install,core)
	@touch $@

$(VENV)/dev: $(VENV)/made pyproject.toml .lock/dev.txt
	$(call install,dev)
	@touch $@ $(VENV)/core $(VENV)/openai $(VENV)/local

$(VENV)/openai: $(VENV)/core .lock/openai.txt
	$(call install,openai)
	@touch $@

$(VENV)/local: $(VENV)/core .lock/local.txt
	$(call install,local)
	@touch $@

$(VENV)/organism: $(VENV)/core .lock/organism.txt
	$(call install,organism)
	@touch $@
