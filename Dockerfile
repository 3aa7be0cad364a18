# Two stages: the first has pip, the second only what runs. BASE is any Debian (or derivative) with Python 3.11 or later.
#
#   docker build --tag git-mirror .
#   docker run --read-only --cap-drop=ALL --security-opt=no-new-privileges \
#     --volume /etc/git-mirror:/etc/git-mirror:ro --volume git-mirror:/var/lib/git-mirror --publish 8470:8470 git-mirror
# Debian drops a package's version from its archive with the next one: a pin would break the build at each security fix.
# hadolint global ignore=DL3008
ARG BASE=debian:bookworm-slim

FROM ${BASE} AS build
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3 python3-venv
WORKDIR /src
COPY requirements/run.lock requirements/run.lock
RUN python3 -m venv /opt/git-mirror \
 && /opt/git-mirror/bin/pip install --no-cache-dir --require-hashes --no-deps --requirement requirements/run.lock
COPY pyproject.toml README.md ./
COPY mirror mirror
# Compiled here: where it runs, nothing can be written beside the modules. What installs is not taken along.
RUN /opt/git-mirror/bin/pip install --no-cache-dir --no-deps --no-build-isolation . \
 && /opt/git-mirror/bin/pip uninstall --yes hatchling editables pathspec pluggy trove-classifiers setuptools pip \
 && /opt/git-mirror/bin/python -m compileall -q /opt/git-mirror/lib

FROM ${BASE}
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3 git ca-certificates \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --system --uid 10001 --home-dir /var/lib/git-mirror --create-home git-mirror
COPY --from=build /opt/git-mirror /opt/git-mirror
ENV PATH=/opt/git-mirror/bin:$PATH
USER 10001:10001
VOLUME /var/lib/git-mirror
EXPOSE 8470
# The configuration comes by a mount; let it listen on 0.0.0.0:8470 there. Of the control socket, so that neither TLS nor
# `listen` matters to it.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s \
  CMD ["/opt/git-mirror/bin/python", "-I", "-m", "mirror.health"]
ENTRYPOINT ["git-mirror"]
CMD ["serve", "--config", "/etc/git-mirror/mirror.yaml"]
