# The two commands are `make demo` and `make test`; each sets up what it needs in .venv.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: demo test check lint types docs examples soak soak-policies fuzz bugs faults bench floor bytecodes curve beside-stream large abuse imports idle uneven workers scale test-all lab clean

demo: $(READY)  ## five unlike nodes on this machine, faults under load, the failed calls counted
	$(BIN)/zmesh demo

test: $(READY)  ## the test suite; what needs root or a missing program is skipped, except in CI
	# One process more than cores: that which has the tests between hosts mostly waits.
	$(BIN)/python -m pytest --numprocesses=$$(( $$(nproc 2>/dev/null || echo 2) + 1 )) --dist=loadscope

check: lint types docs examples  ## what CI runs besides the tests

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

docs: $(READY)  ## blocks run as printed, links resolve, diagrams are those of the tables
	$(BIN)/python -m pytest -q tests/test_docs.py tests/test_layers.py tests/test_public.py

examples: $(READY)
	$(BIN)/python -m pytest -q tests/test_examples.py

soak: $(READY)  ## 2,000 simulated runs with calls and streams of every kind under random faults, each from its own seed
	$(BIN)/python -m tests.soak --seeds 0:2000

soak-policies: $(READY)  ## 10,000 shorter ones over all balancing policies: ejection, panic, budgets, hedges, priorities, turns, keys
	$(BIN)/python -m tests.soak --mix policies --seeds 0:10000

fuzz: $(READY)  ## 1,000,000 inputs to the decoder, guided by coverage; 20,000 hostile ones to a node over sockets
	$(BIN)/python -m pip install --quiet --group fuzz
	$(BIN)/python -m tests.fuzz.decoder --inputs 1000000
	$(BIN)/python -m tests.fuzz.sockets --inputs 20000

bugs: $(READY)  ## put each kept bug in, and see the soak catch it
	$(BIN)/python -m tests.bugs

faults: $(READY)  ## root: every kind of fault under load, restarts and a deploy, between network namespaces; ARGS=--write: the table into docs
	$(BIN)/python -m benchmarks.faults $(ARGS)

uneven: $(READY)  ## root: two of four servers ten times slower, beside the fewest-outstanding reference
	$(BIN)/python -m benchmarks.uneven $(ARGS)

bench: $(READY)  ## zmesh beside a bare ROUTER/DEALER loop and other libraries, and write docs/performance.md; ARGS=--quick: a moment of it
	-case "$(ARGS)" in *--quick*|*--load*) ;; *) $(BIN)/python -m pip install --quiet --group benchmark ;; esac
	$(BIN)/python -m benchmarks.compare $(ARGS)

floor: $(READY)  ## only latency and calls in flight, beside a bare ROUTER/DEALER loop
	$(BIN)/python -m benchmarks.compare --only latency throughput --systems zmesh-plain zmesh zmesh-blocking $(ARGS)

bytecodes: $(READY)  ## what Python does for a call and an item of a stream, counted by module; ARGS=--write: into docs/performance.md
	$(BIN)/python -m benchmarks.bytecodes $(ARGS)

curve: $(READY)  ## latency and calls/s with CURVE on and off, beside bare sockets with CURVE on and off
	$(BIN)/python -m benchmarks.curve $(ARGS)

abuse: $(READY)  ## what honest callers notice of attackers: silent connections, a message without an end, a flood of calls
	$(BIN)/python -m benchmarks.abuse $(ARGS)

beside-stream: $(READY)  ## unary latency on a link whose stream is read slowly, and without it
	$(BIN)/python -m benchmarks.beside_stream

large: $(READY)  ## root for its last part: values of 1 to 64 MiB beside other libraries, a stream of 4 GiB, a slow path; ARGS=--write: into docs/performance.md
	$(BIN)/python -m pip install --quiet --group benchmark
	$(BIN)/python -m benchmarks.large $(ARGS)

lab: $(READY)  ## choose between balancing policies, and write docs/balancing.md; ARGS=--quick: a minute of it
	$(BIN)/python -m benchmarks.lab $(ARGS)

workers: $(READY)  ## one worker beside one for each core, a pool likewise; writes docs/performance.md
	$(BIN)/python -m benchmarks.workers --write $(ARGS)

scale: $(READY)  ## root for a part: cost by nodes, services, calls and streams; writes docs/performance.md
	$(BIN)/python -m benchmarks.scale --write $(ARGS)

imports: $(READY)
	$(BIN)/python -m benchmarks.imports

idle: $(READY)
	$(BIN)/python -m benchmarks.idle

test-all: $(READY)  ## the suite under every Python of PYTHONS, e.g. make test-all PYTHONS="python3.12 python3.13"
	set -e; for python in $(PYTHONS); do \
	    $(MAKE) test PYTHON=$$python VENV=.venv-$$(basename $$($$python -c 'import sys; print("%d.%d" % sys.version_info[:2])')); \
	done

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "zmesh needs Python 3.11 or newer"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { \
	    echo "python3-venv is missing, installing it"; \
	    if [ "$$(id -u)" = 0 ]; then apt-get update -qq && apt-get install -y -qq python3-venv; \
	    else echo "run: sudo apt-get install python3-venv"; exit 1; fi; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --editable '.[uvloop]' --group dev
	touch $(READY)

clean:
	rm -rf .venv .venv-* build dist *.egg-info
