# Everything a developer runs. `make demo` and `make test` need a machine with Python 3.11+, nothing else; all else is installed by them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DATA := data/complete_journey
INSTALLED := $(VENV)/.installed
APT := chromium qemu-user-static libc6-arm64-cross libc6-armhf-cross libc6-riscv64-cross
# what the libraries of `make coverage` import and their rankers use; benchmarks/zoo.py has the line of each
THEIRS := certifi charset-normalizer einops idna joblib pandas python-dateutil requests scikit-learn scipy six threadpoolctl tqdm urllib3
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test check bench bench-serve accuracy coverage serve-demo browser clean
.DELETE_ON_ERROR:

demo: $(DATA)/dcn_v2.pt  ## from nothing to a decision: data, a trained model, burnish optimize
	$(BIN)/burnish optimize examples/complete_journey/job.toml --out out/demo --resume

test: $(INSTALLED) browser  ## every test that this machine can run
	$(BIN)/python -m pytest tests

check: $(INSTALLED)  ## style, types, import direction, docs
	$(BIN)/ruff check src tests examples benchmarks
	$(BIN)/ruff format --check src tests examples benchmarks
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/unit/test_import_direction.py tests/unit/test_docs.py

bench: $(DATA)/dcn_v2.pt  ## every published figure, into docs/benchmarks.md
	$(BIN)/python benchmarks/run.py --out docs/benchmarks.md
	$(BIN)/python benchmarks/accuracy.py --short
	$(BIN)/python benchmarks/smaller.py --short
	$(BIN)/python benchmarks/serving.py --short
	$(BIN)/python benchmarks/edge.py --short
	$(BIN)/python benchmarks/big_table.py --short
	$(BIN)/python benchmarks/capacity.py --short
	$(BIN)/python benchmarks/family_speed.py --seconds 0.2 --out docs/families.md
	$(BIN)/python benchmarks/refresh.py
	$(BIN)/python benchmarks/regret.py --short

bench-serve: $(DATA)/dcn_v2.pt  ## serving beside other servers, under load, overload, swaps and kills, into docs/serving_benchmarks.md
	$(BIN)/python benchmarks/serving.py

accuracy: $(DATA)/dcn_v2.pt  ## what cheaper costs in accuracy, over rankers of many families, into docs/accuracy.md; a stopped run goes on
	$(BIN)/python benchmarks/accuracy.py

coverage: $(INSTALLED)  ## rankers of other libraries: which are built, equal, and how fast, into docs/coverage.md
	$(BIN)/python -m pip install -q --no-deps deepctr-torch torch-rechub pytorch-widedeep torchrec $(THEIRS)
	$(BIN)/python benchmarks/coverage.py --out docs/coverage.md

serve-demo: out/demo/artifact/manifest.json  ## the demo's artifact on http://127.0.0.1:8000
	$(BIN)/burnish serve out/demo/artifact

out/demo/artifact/manifest.json:
	$(MAKE) demo

$(DATA)/dcn_v2.pt: $(DATA)/columns.json examples/complete_journey/ranker.py
	$(BIN)/python examples/complete_journey/ranker.py $(DATA) $@

$(DATA)/columns.json: examples/complete_journey/data.py | $(INSTALLED)
	$(BIN)/python examples/complete_journey/data.py $(DATA)

# torch goes first and alone: left to a range, its CUDA build brings gigabytes
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV) || { apt-get update -q && apt-get install -q -y python3-venv && $(PYTHON) -m venv $(VENV); }
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[optimize,dev]'
	touch $@

# the report is looked at in a real browser, and aarch64 programs run under qemu; where these cannot be installed, those tests say so and skip
browser:
	@{ command -v chromium && command -v qemu-aarch64-static; } >/dev/null || { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $(APT); } >/dev/null 2>&1 \
		|| echo "chromium or qemu could not be installed: the tests that need them will skip"

clean:  ## what was built, not what was downloaded
	rm -rf out build dist
