# The image of tc-treeherder: `bin/build-image` builds it. Service and listeners are one image with different arguments.
# It follows Dockerflow: https://github.com/mozilla-services/Dockerflow
#
# BASE_IMAGE    any Debian-like image with Python >= 3.11 as python3, and its pip and venv
# secrets       `pip`: a pip.conf, where packages come from elsewhere; `ca`: the CA certificates to trust meanwhile.
#               Neither is left in the image.
ARG BASE_IMAGE=docker.io/library/python:3.13-slim

FROM ${BASE_IMAGE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore \
    PIP_CONFIG_FILE=/run/secrets/pip
WORKDIR /src

# /build has the tools and stays behind; /opt/tc-treeherder has the libraries, /app our own code, and the image gets both.
RUN python3 -m venv /build && python3 -m venv --without-pip /opt/tc-treeherder
COPY requirements.lock requirements-build.lock ./
# Wheels only: a source package would fetch what builds it from outside the locks.
RUN --mount=type=secret,id=pip --mount=type=secret,id=ca \
    if [ -f /run/secrets/ca ]; then export PIP_CERT=/run/secrets/ca; fi \
    && /build/bin/pip install --require-hashes --only-binary :all: --requirement requirements-build.lock \
    && /build/bin/pip --python /opt/tc-treeherder/bin/python install \
        --require-hashes --only-binary :all: --requirement requirements.lock

COPY pyproject.toml README.md LICENSE ./
COPY alembic alembic/
COPY docs/alerts.md docs/problems.md docs/
COPY listeners listeners/
COPY service service/
# A .pth file, because the child that renders templates ignores PYTHONPATH.
RUN /build/bin/pip wheel --no-deps --no-build-isolation --no-index --wheel-dir /dist . \
    && /build/bin/pip --python /opt/tc-treeherder/bin/python install --no-deps --no-index --target /app /dist/*.whl \
    && echo /app > "$(/opt/tc-treeherder/bin/python -c 'import site; print(site.getsitepackages()[0])')/app.pth"

# https://github.com/mozilla-services/Dockerflow/blob/main/docs/version_object.md
ARG VERSION=""
ARG COMMIT=""
ARG SOURCE=""
ARG BUILD=""
RUN python3 -c 'import json, os; \
    print(json.dumps({name: os.environ[name.upper()] for name in ("source", "version", "commit", "build")}))' \
    > /app/version.json


# Stand-ins for Mercurial, Taskcluster and Treeherder, to try the service with: `--target sandbox`. Not in the last image.
FROM build AS sandbox
COPY requirements-sandbox.lock ./
RUN --mount=type=secret,id=pip --mount=type=secret,id=ca \
    if [ -f /run/secrets/ca ]; then export PIP_CERT=/run/secrets/ca; fi \
    && /build/bin/pip --python /opt/tc-treeherder/bin/python install \
        --require-hashes --only-binary :all: --requirement requirements-sandbox.lock
COPY sandbox sandbox/
USER 10001:10001
ENV PATH=/opt/tc-treeherder/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
EXPOSE 7801 7802 7803
ENTRYPOINT ["python3", "-m", "sandbox"]


FROM ${BASE_IMAGE} AS service
RUN groupadd --gid 10001 app \
    && useradd --uid 10001 --gid app --no-log-init --home-dir /tmp --shell /usr/sbin/nologin app \
    && install --directory --owner 10001 --group 10001 /data
COPY --from=build /opt/tc-treeherder /opt/tc-treeherder
COPY --from=build /app /app

# 0.0.0.0: a container's loopback is nobody's. Without tokens the service then refuses to start, and says so.
# It listens on $PORT, and without one on 8080.
ENV PATH=/app/bin:/opt/tc-treeherder/bin:$PATH \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    TC_TREEHERDER_HOST=0.0.0.0

# Only an SQLite database is written, here unless database_url says otherwise; all else may be read-only.
WORKDIR /data
# Where Kubernetes' runAsNonRoot has to know that this is not root, the pod says so by runAsUser: 10001.
# hadolint ignore=DL3066
USER app
EXPOSE 8080
ENTRYPOINT ["tc-treeherder"]
CMD ["serve"]

ARG VERSION=""
ARG COMMIT=""
ARG SOURCE=""
LABEL org.opencontainers.image.title="tc-treeherder" \
    org.opencontainers.image.description="Ties Mercurial's pushlog, Taskcluster and Treeherder together" \
    org.opencontainers.image.licenses="MPL-2.0" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${COMMIT}" \
    org.opencontainers.image.source="${SOURCE}"
