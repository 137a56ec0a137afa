# Every command uses one build profile, one target directory and the same features (--workspace with tests or examples),
# so that a dependency is compiled once, whatever is run first.

.DEFAULT_GOAL := help
.PHONY: help demo test check bench tools

CARGO_DENY_VERSION := 0.20.2

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## the whole system on this machine, with a fake cluster and a fake AWS
	cargo build --locked --workspace --bins --example demo
	$(or $(CARGO_TARGET_DIR),target)/debug/examples/demo

test: ## everything: installs what tests need, then check, the tests, the demo
	scripts/test

check: ## format, boundaries, lints, dependencies, documentation
	scripts/check

bench: ## how fast requests are served, and what a session costs
	cargo bench --locked --bench serve --bench sessions

tools: ## cargo-deny and shellcheck, which check uses where they are installed
	cargo install --locked cargo-deny --version $(CARGO_DENY_VERSION)
	command -v shellcheck || apt-get install --yes shellcheck
