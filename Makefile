# Needs git, make and Python 3.11 or later; everything else goes into .venv.
#   make demo    start three nodes on this machine, generate, verify the receipt
#   make test    the tests, in two processes (make WORKERS=1 test: in one);   make lint, make types: style and types
#   make check   lint, types and tests
#   make fuzz    a coverage-guided minute for every parser;   make soak: the long tests
#   make soak HOURS=10   a swarm under churn for so long, and a report of it in build/soak
#   make sweep   every model class of transformers against itself, cut; remakes docs/models.md (long)
#   make site    the pages as a site in build/site
#   make clients others' clients: chat, structure, tools, an agent of 20 turns, against a gateway of a real ring
#   make programs Claude Code, Codex and aider, each once against a gateway (downloads 1 GB)
#   make llama   llama.cpp's own tests of its server, downloaded, against gateways of a real ring (minutes)
#   make schemas JSON Schema's own tests, downloaded, over what a request's schema is compiled to, and types of pydantic (seconds)
#   make mutants small changes put into frames, rows, sampler, sessions and receipts, and what tests see of them (hours);
#                make MUTANTS='swarm.ring.frame*' mutants for a part of it
#   make bench   the benchmarks (long);   make clean: remove what make made
# Another Python: make PYTHON=python3.12 demo.   Other words for pip: make PIP_ARGS='--index-url ...' demo.

PYTHON   ?= python3
PIP_ARGS ?=
PYTEST_ARGS ?=
WORKERS  ?= 2
USUAL    := not soak and not sweep and not gpu and not fuzz
# Real processes on a machine that others use can miss a deadline: a test that fails is run once more, and named at the
# end if it passes then. RERUNS=0: not.
RERUNS   ?= 1
TESTS     = $(BIN)/python -m pytest --reruns $(RERUNS) -r fER
DEMO_ARGS ?=
MUTANTS ?=
BIN      := .venv/bin
INSTALL  := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) --constraint constraints.txt

.PHONY: demo test lint types check fuzz soak sweep clients clients-node programs llama schemas mutants bench site clean
.DELETE_ON_ERROR:

demo: .venv/.demo
	$(BIN)/swarm demo $(DEMO_ARGS)

test: .venv/.test
	$(TESTS) -m "alone and $(USUAL)" $(PYTEST_ARGS) || [ $$? = 5 ] # 5: none of these were asked for
	$(TESTS) -n $(WORKERS) --dist loadgroup --no-loadscope-reorder -m "not alone and $(USUAL)" $(PYTEST_ARGS) || [ $$? = 5 ]

lint: .venv/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: .venv/.test
	$(BIN)/mypy

check: lint types test

fuzz: .venv/.fuzz
	$(BIN)/python -m pytest -m fuzz $(PYTEST_ARGS)

# With HOURS: churn alone for so long, its figures kept and reported in build/soak; cut off, it goes on when started again.
soak: .venv/.test
ifdef HOURS
	nice -n 5 $(BIN)/python -m tests.soak --hours $(HOURS) $(SOAK_ARGS)
else
	$(BIN)/python -m pytest -m "soak and not gpu" $(PYTEST_ARGS)
endif

sweep: .venv/.test
	$(BIN)/python -m tests.models --write

clients: .venv/.test .venv-clients/.made
	$(BIN)/python -m tests.clients.gateway .venv-clients/bin/python tests/clients/structured.py
	$(BIN)/python -m tests.clients.gateway .venv-clients/bin/python tests/clients/plain.py
	$(BIN)/python -m tests.clients.gateway .venv-clients/bin/python tests/clients/agent.py
	$(BIN)/python -m tests.clients.gateway .venv-clients/bin/python tests/clients/examples.py
	@if command -v npm >/dev/null; then $(MAKE) --no-print-directory clients-node; else echo "no npm: Node's clients not tried"; fi

# Beside their packages, where Node looks for them.
clients-node: .venv/.test .venv-clients/node/.made
	cp tests/clients/node/clients.mjs .venv-clients/node/
	$(BIN)/python -m tests.clients.gateway node .venv-clients/node/clients.mjs
	$(BIN)/python -m tests.clients.gateway .venv-clients/bin/python tests/clients/examples.py .venv-clients/node
	cp tests/clients/node/zod.mjs .venv-clients/node/
	node .venv-clients/node/zod.mjs | $(BIN)/python -m tests.clients.typed -

programs: .venv/.test .venv-clients/programs/.made
	$(BIN)/python -m tests.clients.programs .venv-clients/programs

llama: .venv/.test .venv-clients/.made
	$(BIN)/python -m tests.clients.llama .venv-clients/bin/python

schemas: .venv/.test
	$(BIN)/python -m tests.clients.schemas
	$(BIN)/python -m tests.clients.typed

mutants: .venv/.mutants
	OMP_NUM_THREADS=1 $(BIN)/mutmut run $(MUTANTS)
	$(BIN)/mutmut results | tail -n 40

bench: .venv/.bench
	$(BIN)/python -m tests.bench.ring_pass
	$(BIN)/swarm bench speculation

# Its tools in an environment of their own: they have nothing to do with the program.
site: .venv-site/.made
	NO_MKDOCS_2_WARNING=1 .venv-site/bin/mkdocs build --strict --quiet

.venv-site/.made: docs/requirements.txt
	@$(PYTHON) -m venv .venv-site
	@.venv-site/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -r $<
	@touch $@

.venv/bin/python:
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) is not installed; install Python 3.11 or later, or name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: needs Python 3.11 or later, $(PYTHON) is $$($(PYTHON) -V 2>&1); name another: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "make: $(PYTHON) cannot make virtual environments; install its venv module (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@echo "making .venv with $$($(PYTHON) -V)"
	@rm -rf .venv && $(PYTHON) -m venv .venv

# One stamp per set of extras; a change of what is to be installed makes it stale.
.venv/.demo .venv/.test .venv/.bench: .venv/.%: .venv/bin/python pyproject.toml constraints.txt
	@echo "installing wanswarm ($*); the first time takes a few minutes"
	@$(INSTALL) --editable '.[$(EXTRAS)]'
	@touch $@

# What is added to the tests' packages: without building ours, whose kernels take a minute, once more.
.venv/.fuzz .venv/.mutants: .venv/.%: .venv/.test
	@$(INSTALL) $$($(BIN)/python -c "import tomllib; \
	print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['$*'])")
	@touch $@

# Clients bring versions of their own: in an environment of their own.
.venv-clients/.made: tests/clients/requirements.txt
	@$(PYTHON) -m venv .venv-clients
	@.venv-clients/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -r $<
	@touch $@

.venv-clients/node/.made: tests/clients/node/package.json
	@mkdir -p $(@D) && cp $< $(@D)/
	@npm install --silent --no-audit --no-fund --no-package-lock --prefix $(@D)
	@touch $@

.venv-clients/programs/.made: tests/clients/programs/package.json tests/clients/programs/requirements.txt
	@mkdir -p $(@D) && cp $< $(@D)/
	@npm install --silent --no-audit --no-fund --no-package-lock --prefix $(@D)
	@$(PYTHON) -m venv $(@D)/python
	@$(@D)/python/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -r tests/clients/programs/requirements.txt
	@touch $@

.venv/.demo:  EXTRAS := demo
.venv/.test:  EXTRAS := demo,test,plots
.venv/.bench: EXTRAS := demo,plots

clean:
	rm -rf .venv .venv-clients .venv-site mutants build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis tests/lab/delaylink
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
