# SPDX-License-Identifier: Apache-2.0
# `make demo` and `make test` do all their own set-up in .venv, on a Linux x86-64 machine with
# Python 3.11 or 3.12 (venv), a C++ compiler and CMake; nothing of ROS.

VENV ?= .venv
# The Python to make the environment with; empty: python3, python3.12 or python3.11.
PYTHON ?=
OUT ?= out

DEMO_BAG ?= demo/head_camera
DEMO_ARGS ?= -i "turn the blue ball into a green cube" -i 3:"make the blue ball red" \
	-i 6:"replace the yellow bottle with a cactus in a white pot" -i 9:"remove the blue ball"
BENCH_INPUT ?= $(DEMO_BAG)
BENCH_ENGINE_ARGS ?=
# Short; for the whole of it: make bench BENCH_STREAM_ARGS= BENCH_CLIPS=20
BENCH_STREAM_ARGS ?= --rates 16,own --runs 1 --seconds 6 --switches 5
BENCH_CLIPS ?= 6
TEST_ARGS ?=

# A sourced ROS installation, or a make started by another environment's Python, must not leak in.
unexport PYTHONPATH PYTHONHOME LD_LIBRARY_PATH AMENT_PREFIX_PATH CMAKE_PREFIX_PATH
unexport COLCON_PREFIX_PATH _ROS_WHEELS_BOOTSTRAP_COMPLETE VIRTUAL_ENV

BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format bench lock clean

help:  ## what there is
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## */  make \1\t/' | expand -t 18

setup:  ## .venv with everything: packages, ROS 2 Jazzy wheels, messages
	@PYTHON='$(PYTHON)' $(or $(PYTHON),python3) tools/setup_venv.py --venv '$(VENV)'

demo: setup  ## edit the bundled head-camera bag through the ROS graph, into out/demo
	$(BIN)/egoedit replay $(DEMO_BAG) $(DEMO_ARGS) -o $(OUT)/demo --overwrite

test: setup  ## all tests; TEST_ARGS goes to pytest
	$(BIN)/python -m pytest test $(TEST_ARGS)

lint: setup  ## ruff, and the package's own files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tools/check_package.py
	$(BIN)/python tools/make_tables.py --check

format: setup  ## let ruff put the sources in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup  ## speed and quality in short, as one table; files in out/bench
	mkdir -p $(OUT)/bench
	rm -f $(OUT)/bench/*.json
	$(BIN)/egoedit bench engine $(BENCH_ENGINE_ARGS) --json $(OUT)/bench/engine.json --overwrite >/dev/null
	$(BIN)/egoedit bench edit --suite sim --clips $(BENCH_CLIPS) --json $(OUT)/bench/sim.json >/dev/null \
		|| echo "no figures of the simulator suite; '$(BIN)/egoedit doctor' says what it needs" >&2
	$(BIN)/egoedit bench stream $(BENCH_INPUT) $(BENCH_STREAM_ARGS) --json $(OUT)/bench/stream.json \
		--html $(OUT)/bench/stream.html --overwrite >/dev/null
	@$(BIN)/python tools/bench_tables.py $$(ls $(OUT)/bench/*.json)

lock:  ## make requirements.lock again from requirements.in (needs uv)
	python3 tools/make_lock.py

clean:  ## what builds and runs left, but .venv
	rm -rf build install log $(OUT) *.egg-info .pytest_cache .ruff_cache
