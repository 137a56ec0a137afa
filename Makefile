# All commands use the same build profile, target directory and features (--workspace with tests or examples), so that each
# dependency is compiled only once.

.DEFAULT_GOAL := help
.PHONY: help demo test test-cluster check bench fuzz image tools

CARGO_DENY_VERSION := 0.20.2
CARGO_FUZZ_VERSION := 0.13.2
IMAGE ?= rolegate
# The first of these that is installed builds the image.
IMAGE_BUILDER ?= $(notdir $(firstword $(foreach name,docker podman buildah,$(shell command -v $(name)))))
# The time for each target, in seconds.
FUZZ_SECONDS ?= 60
FUZZ_TARGETS := annotations arn host patterns route service_account_token token

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## run the whole system on this machine, with a fake cluster and a fake AWS, until Ctrl-C; with DEMO_EXIT=1, until the story ends
	cargo build --locked --workspace --bins --example demo
	$(or $(CARGO_TARGET_DIR),target)/debug/examples/demo

test: ## install what the tests need, then run check, all tests and the demo
	scripts/test

test-cluster: ## run the DaemonSet on a real Kubernetes node in namespaces of this machine; builds Kubernetes the first time
	tests/cluster/run

check: ## check format, boundaries, lints, dependencies and documentation
	scripts/check

bench: ## measure request throughput, the cost of sessions and pods, the effect of one pod on another, and the time to working rules
	cargo bench --locked --bench serve --bench sessions --bench decide --bench memory --bench abuse --bench rules --bench paths
	@if command -v valgrind >/dev/null; then cargo bench --locked --profile profiling --bench instructions; \
	else echo 'skipped: the instructions of a request (valgrind is not installed)'; fi

fuzz: ## run every fuzz target for FUZZ_SECONDS (60); needs a nightly toolchain and cargo-fuzz
	cargo fuzz --version >/dev/null || cargo install --locked cargo-fuzz --version $(CARGO_FUZZ_VERSION)
	set -e; for target in $(FUZZ_TARGETS); do \
		mkdir -p fuzz/corpus/$$target; \
		cargo +nightly fuzz run $$target fuzz/corpus/$$target fuzz/seeds/$$target -- -max_total_time=$(FUZZ_SECONDS) -max_len=8192 -timeout=5; \
	done

image: ## build the image with docker, podman or buildah, as IMAGE (rolegate); it contains the daemon and the programs for packet rules
	@test -n "$(IMAGE_BUILDER)" || { echo 'make image: install docker, podman or buildah' >&2; exit 1; }
	DOCKER_BUILDKIT=1 $(IMAGE_BUILDER) build --tag $(IMAGE) --label "org.opencontainers.image.revision=$$(git rev-parse HEAD)" .

tools: ## install cargo-deny and shellcheck, which check uses if they are installed
	cargo install --locked cargo-deny --version $(CARGO_DENY_VERSION)
	command -v shellcheck || apt-get install --yes shellcheck
