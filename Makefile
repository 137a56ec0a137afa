# Every command uses one build profile, one target directory and the same features (--workspace with tests or examples),
# so that a dependency is compiled once, whatever is run first.

.DEFAULT_GOAL := help
.PHONY: help demo test check bench fuzz tools

CARGO_DENY_VERSION := 0.20.2
CARGO_FUZZ_VERSION := 0.13.2
# Of each target.
FUZZ_SECONDS ?= 60
FUZZ_TARGETS := annotations arn host patterns route token

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## the whole system on this machine, with a fake cluster and a fake AWS; until Ctrl-C, or with DEMO_EXIT=1 until its end
	cargo build --locked --workspace --bins --example demo
	$(or $(CARGO_TARGET_DIR),target)/debug/examples/demo

test: ## everything: installs what tests need, then check, the tests, the demo
	scripts/test

check: ## format, boundaries, lints, dependencies, documentation
	scripts/check

bench: ## how fast requests are served, what a session and pods cost, what one pod can do to another, how soon the rules hold
	cargo bench --locked --bench serve --bench sessions --bench decide --bench memory --bench abuse --bench rules

fuzz: ## every fuzz target for FUZZ_SECONDS (60); needs a nightly toolchain and cargo-fuzz
	cargo fuzz --version >/dev/null || cargo install --locked cargo-fuzz --version $(CARGO_FUZZ_VERSION)
	set -e; for target in $(FUZZ_TARGETS); do \
		mkdir -p fuzz/corpus/$$target; \
		cargo +nightly fuzz run $$target fuzz/corpus/$$target fuzz/seeds/$$target -- -max_total_time=$(FUZZ_SECONDS) -max_len=8192 -timeout=5; \
	done

tools: ## cargo-deny and shellcheck, which check uses where they are installed
	cargo install --locked cargo-deny --version $(CARGO_DENY_VERSION)
	command -v shellcheck || apt-get install --yes shellcheck
