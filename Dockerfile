# syntax=docker/dockerfile:1
# A small image with one binary: `docker build -t keygate .`, or docker-compose.yml. Without any setting it is one node on SQLite in its volume;
# mount a config at /etc/keygate/keygate.toml for your backends. It needs BuildKit (Docker 23 or newer), whose
# cache mounts keep compiled dependencies between builds.

FROM rust:1.95-bookworm AS build
# Pingora compiles zlib-ng, which needs cmake.
RUN apt-get update \
    && apt-get install -y --no-install-recommends cmake \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/build/target \
    cargo build --locked --profile dist --bin keygate \
    && install -D -m 0755 target/dist/keygate /image/usr/local/bin/keygate \
    && install -D -m 0644 conf/one-node.toml /image/etc/keygate/keygate.toml \
    && install -d -m 0700 /image/var/lib/keygate

# libc, libgcc_s and the TLS root certificates; no shell, no package manager.
FROM gcr.io/distroless/cc-debian12:nonroot
LABEL org.opencontainers.image.title="keygate" \
      org.opencontainers.image.description="An API-key gateway: authenticates, limits, forwards and records every request" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /image/usr /usr
COPY --from=build /image/etc/keygate /etc/keygate
# Owned by the user of the process; a new named volume inherits this.
COPY --from=build --chown=65532:65532 --chmod=0700 /image/var/lib/keygate /var/lib/keygate
ENV KEYGATE_CONFIG=/etc/keygate/keygate.toml \
    KEYGATE_ADMIN_LISTEN=0.0.0.0:8081
USER 65532:65532
WORKDIR /var/lib/keygate
# The journal is here, with usage records that are not stored yet: it must outlive the container.
VOLUME /var/lib/keygate
EXPOSE 8080 8081
# SIGTERM drains for proxy.drain_timeout; give the container 15 s more than that before it is killed.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=5s --start-period=30s --retries=3 CMD ["/usr/local/bin/keygate", "health"]
ENTRYPOINT ["/usr/local/bin/keygate"]
CMD ["run"]
