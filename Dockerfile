# docker build --tag rolegate .                     the daemon with the programs that keep the packet rules
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

# nft keeps the rules, or iptables where the node has no nf_tables: Debian's is of the nft flavour, which works beside legacy
# rules. conntrack ends the connections from before the rules. netbase has the names of protocols.
FROM debian:bookworm-slim AS programs
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates conntrack iptables netbase nftables
COPY scripts/image-root scripts/install-with-libraries /scripts/
RUN /scripts/image-root /root-of-image

# Only these programs and their libraries: no shell and no package manager. They work for root alone, with the capability NET_ADMIN: see
# daemonset/.
FROM scratch
COPY --from=programs /root-of-image /
COPY --from=build /rolegate /usr/local/bin/rolegate
ENV PATH=/usr/local/bin:/usr/sbin
# The C library's allocator gives large pieces back at once, and has one heap: see docs/performance.md.
ENV MALLOC_ARENA_MAX=1 MALLOC_TRIM_THRESHOLD_=131072 MALLOC_MMAP_THRESHOLD_=131072
ENTRYPOINT ["/usr/local/bin/rolegate"]
