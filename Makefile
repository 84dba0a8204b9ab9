# make demo, make test: a bare machine needs Rust, Python 3 and Debian's apt, nothing else.
# PG_CONFIG=/path/to/pg_config uses an installed PostgreSQL 18 instead of fetching one.
# Nothing outside target/ and RUN_DIR (scripts/env.sh) is written, except by `make install`.

MINUTES ?= 1
SEED ?=
export PG_CONFIG

.PHONY: help setup build demo test bench fuzz soak psql install lint clean

help:
	@echo 'make demo      the quick start, then TPC-H with refresh streams, every result checked'
	@echo 'make test      all tests, and the random tester and the soak for a minute'
	@echo 'make fuzz      the random tester: MINUTES=30 SEED=1 WAL=1 (capture from the write-ahead log)'
	@echo 'make soak      writers, the scheduler, DDL, cancels and crashes: MINUTES=30 SEED=1 WAL=1'
	@echo 'make bench     the benchmark table: BENCH_FLAGS="--quick --write"'
	@echo 'make psql      a throw-away server with the extension, and a psql in it'
	@echo 'make install   PG_CONFIG=/path/to/pg_config: install into your PostgreSQL 18'
	@echo 'make lint      formatting and clippy'
	@echo 'make clean     remove the private PostgreSQL and the build'

setup:
	@scripts/setup.sh

build: setup
	@scripts/build.sh

demo: build
	@scripts/with_server.sh durable scripts/demo.sh

test: setup
	cargo test
	@scripts/build.sh
	@MINUTES=$(MINUTES) SEED=$(SEED) scripts/with_server.sh fast scripts/test.sh

fuzz: build
	@scripts/with_server.sh $(if $(WAL),wal,fast) cargo run --quiet --release -p pgstream_tests --bin fuzz -- \
		--minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

soak: build
	@scripts/with_server.sh fast cargo run --quiet --release -p pgstream_tests --bin soak -- \
		--minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(if $(WAL),--wal)

bench: build
	@scripts/with_server.sh durable cargo run --quiet --release -p pgstream_bench --bin bench -- $(BENCH_FLAGS)

psql: build
	@scripts/with_server.sh durable scripts/psql.sh

install: build
	@scripts/install.sh

lint: setup
	cargo fmt --check
	@scripts/lint.sh

clean:
	cargo clean
	@. scripts/env.sh && rm -rf "$$RUN_DIR"
