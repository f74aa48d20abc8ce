# make run    try Keygate: builds, starts the demo, prints a curl line that works
# make test   every test, with everything they need
# make lint   formatting and lints, as the CI wants them
# make dist   the binary for production: slower to build, faster to run
# make measure  how soon a change acts on another node, on this machine
# make fuzz   a minute of each fuzz target (needs a nightly toolchain and cargo-fuzz)

CARGO ?= cargo
PACKAGES = gcc libc6-dev make cmake

.PHONY: run test measure lint dist fuzz tools test-tools

run: tools
	@$(CARGO) build --locked --release
	@exec ./target/release/keygate demo

test: tools test-tools
	$(CARGO) test --locked

measure: tools test-tools
	$(CARGO) test --locked --test propagation -- --nocapture --test-threads=1

lint: tools
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --lib --bins -- --deny warnings

dist: tools
	$(CARGO) build --locked --profile dist

fuzz: tools
	for target in path secret config; do \
		$(CARGO) +nightly fuzz run --fuzz-dir tests/fuzz $$target -- -max_total_time=60 || exit 1; done

# The tests start PostgreSQL and Redis servers of their own: only the programs are needed, no server that runs.
test-tools:
	@missing=; command -v redis-server >/dev/null || missing="$$missing redis-server"; \
	found=; for folder in /usr/lib/postgresql/*/bin $$(echo "$$PATH" | tr : ' '); do \
		[ -x "$$folder/initdb" ] && [ -x "$$folder/pg_ctl" ] && [ -x "$$folder/postgres" ] && found=yes; done; \
	[ -n "$$found" ] || missing="$$missing postgresql"; \
	[ -z "$$missing" ] && exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "installing$$missing" >&2; \
		{ apt-get update -qq && apt-get install -y -qq --no-install-recommends $$missing; } >&2; \
	else \
		echo "missing:$$missing. On Debian or Ubuntu: sudo apt-get install$$missing" >&2; exit 1; \
	fi

# Pingora compiles zlib-ng, and SQLite is built in: both want a C compiler, zlib-ng also cmake. Nothing else is needed.
tools:
	@command -v $(CARGO) >/dev/null || { echo "cargo is missing: see https://rustup.rs" >&2; exit 1; }
	@missing=; for tool in cc cmake; do command -v $$tool >/dev/null || missing="$$missing $$tool"; done; \
	[ -z "$$missing" ] && exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "installing$$missing" >&2; \
		{ apt-get update -qq && apt-get install -y -qq --no-install-recommends $(PACKAGES); } >&2; \
	else \
		echo "missing:$$missing. On Debian or Ubuntu: sudo apt-get install $(PACKAGES)" >&2; exit 1; \
	fi
