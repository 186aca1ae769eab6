# Two commands on a fresh machine: `make train` and `make test`. Both do all the set-up first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

GPU_DRY = $(shell $(BIN)/python -c 'import torch; print("" if torch.cuda.is_available() else "--dry")' 2>/dev/null || echo --dry)

.PHONY: anybench mainstream gpu install train test lint bench nanbench silentbench faults soak fuzz integrations trackers clean package docs

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $(STAMP)

install: $(STAMP)

train: $(STAMP)
	$(BIN)/python maskrcnn_coco/main_mlops.py --demo

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

lint: $(STAMP)
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/pyright

bench: $(STAMP)
	$(BIN)/python bench/speed/run.py

# On a machine with a CUDA device: what only that can show, about 37 minutes. Without one every part tries itself, tiny,
# on the CPU, and measures nothing.
gpu: $(STAMP)
	$(BIN)/python -m pytest tests/test_gpu.py tests/guard/test_deferred.py tests/training/test_late_alarms.py tests/system tests/model/fast tests/replay tests/data/test_loader.py
	$(BIN)/python bench/speed/gpu.py $(GPU_DRY)
	$(BIN)/python bench/speed/gpu_guard.py --profile $(GPU_DRY)
	$(BIN)/python bench/speed/gpu_memory.py $(GPU_DRY)
	$(BIN)/python bench/gpu_repeat.py $(GPU_DRY)
	$(BIN)/python bench/gpu_runs.py --deterministic $(GPU_DRY)

nanbench: $(STAMP)
	$(BIN)/python bench/nanbench/run.py

anybench: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python bench/anywhere/run.py

# Loops of the tutorials, with their faults and without: about 20 minutes a seed of one core.
mainstream: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python bench/anywhere/mainstream/run.py --set 1 --seeds 0 1 2 --out bench/results/mainstream.md
	OMP_NUM_THREADS=1 $(BIN)/python bench/anywhere/mainstream/run.py --set 2 --seeds 0 1 2 --out bench/results/mainstream_second.md
	OMP_NUM_THREADS=1 $(BIN)/python bench/anywhere/mainstream/run.py --set 3 --seeds 0 1 2 --out bench/results/mainstream_third.md
	OMP_NUM_THREADS=1 $(BIN)/python bench/anywhere/mainstream/run.py --set 4 --seeds 0 1 2 --out bench/results/mainstream_fourth.md

silentbench: $(STAMP)
	$(BIN)/python bench/silent/run.py

faults: $(STAMP)
	$(BIN)/python bench/faults/run.py

soak: $(STAMP)
	$(BIN)/python bench/faults/soak.py --seed 1

fuzz: $(STAMP)
	$(BIN)/python bench/fuzz/run.py --cases 1000000

# The adapters in the real trainers, which are large and have pins of their own: an environment beside .venv.
integrations:
	test -x .venv-integrations/bin/python || $(PYTHON) -m venv .venv-integrations
	.venv-integrations/bin/python -m pip install --quiet --editable . lightning transformers accelerate
	OMP_NUM_THREADS=1 .venv-integrations/bin/python tests/integrations/real_trainers.py

# --track against MLflow's own server, wandb offline and trackio.
trackers:
	test -x .venv-trackers/bin/python || $(PYTHON) -m venv .venv-trackers
	.venv-trackers/bin/python -m pip install --quiet --editable '.[track]'
	OMP_NUM_THREADS=1 .venv-trackers/bin/python tests/integrations/real_trackers.py

# The wheel in a fresh environment, outside the checkout. Downloads torch once more; `--offline` takes the one at hand.
package: $(STAMP)
	$(BIN)/python bench/package.py

# The documentation as a site, in site/; a link that leads nowhere ends it.
docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	$(BIN)/python -m mkdocs build --strict

clean:
	rm -rf $(VENV) runs checkpoints
