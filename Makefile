# Every target creates .venv and installs what it needs; nothing else has to be on the machine
# but Python 3.11 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed

.PHONY: demo test test-long fuzz soak check format protos baseline serve bench pages manifests lock clean

$(READY): requirements.lock requirements.no-deps.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r requirements.no-deps.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

demo: $(READY)  ## Start the service, stream two videos through it, show the answers, stop it
	$(BIN)/groundstream demo --output demo

test: $(READY)  ## Unit, parity and integration tests
	$(BIN)/python -m pytest

test-long: $(READY)  ## What takes minutes: updates, the wheel, the hub, attacks, a short soak
	UPDATES=1 WHEEL=1 HUB=1 ATTACKS=1 SOAK_MINUTES=3 $(BIN)/python -m pytest \
		tests/integration/test_cluster_config.py tests/integration/test_wheel.py \
		tests/integration/test_soak.py tests/integration/test_hub_service.py \
		tests/integration/test_under_attack.py

fuzz: $(READY)  ## 100,000 made-up inputs for everything that reads what comes from outside
	for seed in 1 2 3 4 5 6 7 8 9 10; do \
		HYPOTHESIS_PROFILE=fuzz $(BIN)/python -m pytest -m fuzz --timeout 3600 --durations 0 \
			--hypothesis-seed=$$seed || exit 1; \
	done

soak: $(READY)  ## Half an hour of every kind of client, Redis restarts and replica kills
	$(BIN)/python -m benchmarks.soak --minutes 30

check: $(READY)  ## Linters, types, import rules, generated code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) --no-print-directory protos
	git diff --exit-code -- protos
	$(BIN)/buf lint
	$(BIN)/buf breaking --against protos/baseline.binpb

format: $(READY)  ## Rewrite the code in the house's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

protos: $(READY)  ## Regenerate the protobuf code (committed)
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. \
		protos/vision_agent.proto

baseline: protos  ## With a release: what later versions of the wire must stay compatible with
	$(BIN)/buf build --exclude-source-info --output protos/baseline.binpb

serve: $(READY)  ## Start the service on this machine
	$(BIN)/groundstream serve

pages: $(READY)  ## Pages of docs/ that are written from the code (committed)
	$(BIN)/python -m docs.module_graph
	$(BIN)/python -m docs.api_reference
	$(BIN)/python -m docs.settings_reference

manifests: $(READY)  ## Render the Kubernetes manifest (committed)
	$(BIN)/python -m deployments.cluster.render

bench: $(READY)  ## Measure; each benchmark ends in one JSON line
	$(BIN)/python -m benchmarks.reference_path
	$(BIN)/python -m benchmarks.same_frame --rounds 3
	$(BIN)/python -m benchmarks.alternatives
	$(BIN)/python -m benchmarks.stream
	$(BIN)/python -m benchmarks.cache
	$(BIN)/python -m benchmarks.shape_3b --smoke  # without the option on a GPU
	$(BIN)/python -m benchmarks.follow_stream moving
	$(BIN)/python -m benchmarks.follow_stream still
	$(BIN)/python -m benchmarks.shell
	$(BIN)/python -m benchmarks.handle_hops
	$(BIN)/python -m benchmarks.data_plane
	$(BIN)/python -m benchmarks.load
	$(BIN)/python -m benchmarks.scaling
	$(BIN)/python -m benchmarks.capacity

lock: $(READY)  ## Recompile requirements.lock from pyproject.toml
	$(BIN)/pip-compile --quiet --extra dev --extra train --strip-extras --no-header \
		--no-emit-index-url --no-emit-find-links --no-emit-trusted-host \
		--constraint requirements.in --output-file requirements.lock pyproject.toml

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache
