# Postroad, as a small image:
#
#   docker build -t postroad .
#   docker run -p 127.0.0.1:8000:8000 -v postroad:/data postroad
#
# It runs as a user of its own, keeps everything in /data, and stops cleanly on `docker stop`.
# The images below it can be chosen: --build-arg BUILD_IMAGE=…, --build-arg BASE_IMAGE=… (a Debian, or what has
# the same commands, with a C library that is not older than that of the build image).
ARG BUILD_IMAGE=rust:1.90-slim-bookworm
ARG BASE_IMAGE=debian:bookworm-slim

FROM ${BASE_IMAGE} AS runtime
RUN useradd --system --uid 10001 --home-dir /data --shell /usr/sbin/nologin postroad \
    && install -d -o postroad -g postroad -m 0750 /data

USER postroad
WORKDIR /data
VOLUME /data
EXPOSE 8000
ENV POSTROAD__SERVER__DATA=/data POSTROAD__JSONLOG__LISTEN=0.0.0.0:8000 POSTROAD__LOG__FORMAT=json
# A greeting is read: a port that is only open is not a broker.
HEALTHCHECK --interval=5s --timeout=5s --start-period=30s \
    CMD ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/8000 && read -r -t 3 word _ <&3 && [ \"$word\" = hello ]"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["postroad"]
# `--insecure`: no token is asked for, so publish the port on loopback, or set POSTROAD__JSONLOG__TOKENS.
CMD ["serve", "--insecure"]

FROM ${BUILD_IMAGE} AS build
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY crates crates
COPY xtask xtask
RUN cargo build --release --locked -p postroad

FROM runtime
COPY --from=build /src/target/release/postroad /usr/local/bin/
