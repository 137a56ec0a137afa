# docker build --tag rolegate .                     the daemon with iptables, for --iptables
# docker build --tag rolegate --target minimal .    the daemon alone, where the node's boot keeps the rule (see iptables/)
#
# It needs BuildKit: the registry and the build are cached in mounts, so that a second build compiles what changed.

FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
# One static program: it runs in either image below, whatever C library that has.
ENV RUSTFLAGS="-C target-feature=+crt-static"
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    target=$(rustc -vV | sed -n 's/^host: //p') \
    && cargo build --locked --release --bin rolegate --target "$target" \
    && cp "target/$target/release/rolegate" /rolegate

# Not root: without iptables it needs no right of root's. The certificates are what STS is known by.
FROM scratch AS minimal
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /rolegate /usr/local/bin/rolegate
USER 65532:65532
# The C library's allocator gives large pieces back at once, and has one heap: see docs/performance.md.
ENV MALLOC_ARENA_MAX=1 MALLOC_TRIM_THRESHOLD_=131072 MALLOC_MMAP_THRESHOLD_=131072
ENTRYPOINT ["/usr/local/bin/rolegate"]

# Debian's iptables is of the nft flavour, which works beside legacy rules. It works for root alone, with the capability
# NET_ADMIN: see daemonset/.
FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates iptables \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /rolegate /usr/local/bin/rolegate
# The C library's allocator gives large pieces back at once, and has one heap: see docs/performance.md.
ENV MALLOC_ARENA_MAX=1 MALLOC_TRIM_THRESHOLD_=131072 MALLOC_MMAP_THRESHOLD_=131072
ENTRYPOINT ["/usr/local/bin/rolegate"]
