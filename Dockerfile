# syntax=docker/dockerfile:1
# One static binary and the certificate authorities; no shell, no package manager, no root.
#   docker build -t outjet .
#   docker run --rm -e DATABASE_URL -e NATS_URL outjet check

FROM rust:1.95-slim-bookworm AS build
# musl-tools: ring compiles C for the target. ca-certificates: the image has none of its own.
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates musl-tools \
 && rm -rf /var/lib/apt/lists/* \
 && rustup target add "$(uname -m)-unknown-linux-musl"
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target,sharing=locked \
    target="$(uname -m)-unknown-linux-musl" \
 && cargo build --locked --profile dist --bin outjet --target "$target" \
 && install -D "target/$target/dist/outjet" /image/usr/bin/outjet \
 && install -D -m 644 /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/ca-certificates.crt

FROM scratch
LABEL org.opencontainers.image.title="outjet" \
      org.opencontainers.image.description="Streams a Postgres outbox to NATS JetStream from the write-ahead log" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0"
COPY --from=build /image/ /
# A number, so that Kubernetes can tell that it is not root (runAsNonRoot).
USER 65532:65532
# Probes and scrapers ask from outside.
ENV OUTJET_HTTP__LISTEN=0.0.0.0:9464
EXPOSE 9464
# Where outjet.yaml may be mounted.
WORKDIR /etc/outjet
ENTRYPOINT ["/usr/bin/outjet"]
CMD ["run"]
