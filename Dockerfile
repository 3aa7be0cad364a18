# Two stages: the first has pip, the second only what runs.
FROM python:3.12-slim AS build
WORKDIR /src
COPY pyproject.toml README.md ./
COPY requirements/run.lock requirements/run.lock
RUN python -m venv /opt/git-mirror \
 && /opt/git-mirror/bin/pip install --no-cache-dir --require-hashes --no-deps -r requirements/run.lock
COPY mirror mirror
RUN /opt/git-mirror/bin/pip install --no-cache-dir --no-deps --no-build-isolation . \
 && /opt/git-mirror/bin/pip uninstall --yes pip hatchling editables

FROM python:3.12-slim
RUN apt-get update \
 && apt-get install --yes --no-install-recommends git ca-certificates \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --system --uid 10001 --home-dir /var/lib/git-mirror --create-home git-mirror
COPY --from=build /opt/git-mirror /opt/git-mirror
ENV PATH=/opt/git-mirror/bin:$PATH
USER 10001
VOLUME /var/lib/git-mirror
EXPOSE 8470
# The configuration comes by a mount; let it listen on 0.0.0.0:8470 there.
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s \
  CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8470/healthz', timeout=2)"]
ENTRYPOINT ["git-mirror"]
CMD ["serve", "--config", "/etc/git-mirror/mirror.yaml"]
