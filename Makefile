# make install | train | profile | test | check | bench | format | clean: each does all its own set-up.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: install train profile test check format bench clean

install: $(STAMP)

# Re-runs when the requirements change. pip skips what is there already.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and "gumbelrl needs Python 3.11 or newer, found %d.%d; try: make PYTHON=python3.11" % v[:2])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@mkdir -p .typing && ln -sfn .. .typing/gumbelrl
	@touch $(STAMP)

# Trains the default agent on CartPole-v1 until it holds 475 over 100 episodes (100,000 steps at most).
train: $(STAMP)
	$(BIN)/python train.py agent=gumbel_sac env=cartpole total_steps=100000 stop_at_return=475 $(ARGS)

# Where a training second goes: make profile ARGS="agent=gumbel_sac env=lunarlander"
profile: $(STAMP)
	$(BIN)/python profile_training.py $(ARGS)

test: $(STAMP)
	$(BIN)/python -m pytest --numprocesses auto $(ARGS)

# Lint, format, types.
check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy .typing/gumbelrl/gumbel .typing/gumbelrl/agents .typing/gumbelrl/envs .typing/gumbelrl/tracking .typing/gumbelrl/comparison .typing/gumbelrl/configs .typing/gumbelrl/train.py .typing/gumbelrl/evaluate.py .typing/gumbelrl/compare.py .typing/gumbelrl/search.py .typing/gumbelrl/profile_training.py

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# CartPole-v1 table and learning curves: our agents beside PPO, ten seeds each.
bench: $(STAMP)
	$(BIN)/python -m benchmarks.cartpole $(ARGS)

clean:
	rm -rf $(VENV) .typing build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
