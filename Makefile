# A handful of goals; CI calls the same ones. `make` alone lists them.
.DEFAULT_GOAL := help
.PHONY: help demo test chaos check fmt bench bench-fleet setup images

# A toolchain installed by rustup is found also where no shell profile was read.
export PATH := $(PATH):$(if $(CARGO_HOME),$(CARGO_HOME),$(HOME)/.cargo)/bin

help: ## list the goals
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## one job from submission to merge request, on this machine, in a few minutes
	deploy/demo/run.sh

test: setup images ## every test: units, scenarios, contracts and end-to-end runs on real Docker
	deploy/testbed/fetch.sh >/dev/null || echo 'the newer engine cannot be had here: tests go on without it'
	DEVFLEET_TEST_IMAGES=ready cargo test --workspace --no-fail-fast
	deploy/testbed/newer.sh

chaos: setup images ## every fault scene at full length on a testbed of three hosts; as root, about an hour
	cargo build --bins
	DEVFLEET_CHAOS=1 cargo test -p devfleet-controller --test testbed

check: ## formatting and lints
	deploy/setup.sh build
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings

fmt: ## format the code
	cargo fmt --all

bench: ## how fast environments come and go, against raw engine calls and docker-compose
	deploy/setup.sh bench
	deploy/images/build.sh base redis python
	DEVFLEET_BENCH_RECORD=1 cargo bench -p devfleet-host --bench environment --bench output

bench-fleet: ## what a fleet of 1,000 simulated hosts carries, against a bare etcd client; a few minutes
	deploy/setup.sh bench
	DEVFLEET_BENCH_RECORD=1 cargo bench -p devfleet-controller --bench fleet
	cargo bench -p devfleet-controller --bench scheduler

setup: ## install what this machine lacks to build, run and test devfleet
	deploy/setup.sh test

images: setup ## make the test images; what is unchanged is skipped
	deploy/images/build.sh
