# spottmee-worker: only what `run` needs. docs/how-to/image.md has the commands, the arguments and the sizes.
#
#   docker build -t spottmee-worker .
#   docker build -t spottmee-worker:gpu --build-arg FLAVOUR=gpu .
#
# BASE is any Debian or Ubuntu with python3 3.11 or newer and its venv module. Pin it by digest for production
# builds: --build-arg BASE=python:3.12-slim-bookworm@sha256:… (`docker buildx imagetools inspect` shows it).
ARG BASE=python:3.12-slim-bookworm
# The same base for the build machine's architecture, if BASE exists only for the target's. Long steps always run
# natively: for another architecture packages are only unpacked, and the pack is baked without graphs tuned for one CPU.
ARG BUILD_BASE=${BASE}
# Which onnxruntime: cpu, or gpu (with the CUDA and cuDNN libraries; needs the NVIDIA container toolkit to run).
ARG FLAVOUR=cpu

# Before any stage for another platform: after one, buildah would look for this image on that platform too.
FROM ${BASE} AS base

# For your own model pack, --build-context pack=FOLDER or pack=docker-image://… replaces this empty stage.
FROM scratch AS pack

FROM --platform=${BUILDPLATFORM} ${BUILD_BASE} AS tools
ENV PIP_CACHE_DIR=/var/cache/pip PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore \
    PIP_NO_DEPS=1 PYTHONDONTWRITEBYTECODE=1 PYTHONHASHSEED=0
# A constant, so that a commit that changes no file of a layer keeps its digest. (A wheel cannot be older than 1980.)
ARG SOURCE_DATE_EPOCH=315532800
ENV SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH}
WORKDIR /src
RUN python3 -m venv /opt/build
COPY requirements/bake.txt requirements/
# The secrets are optional: pip.conf for your own package index, and ca.crt for its certificate.
RUN --mount=type=cache,target=/var/cache/pip \
    --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=ca.crt \
    /opt/build/bin/pip install --quiet --require-hashes --only-binary :all: -r requirements/bake.txt

FROM tools AS wheel
COPY pyproject.toml LICENSE ./
COPY runner/ runner/
# The README is the package's description: the image does not need it, and its changes must not invalidate layers.
RUN touch README.md && /opt/build/bin/pip wheel --quiet --no-build-isolation --no-cache-dir --wheel-dir /wheel .

# The model, optimised (for the CPU, unless FLAVOUR=gpu) and verified against InsightFace.
FROM wheel AS bake
ARG FLAVOUR
ARG PACK=buffalo_sc
ARG PACK_SOURCE=
ARG PACK_SHA256=
ARG TARGETARCH
COPY --from=pack / /pack/
RUN --mount=type=cache,target=/var/cache/pip \
    --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=ca.crt \
    source="${PACK_SOURCE}"; if [ -z "${source}" ] && [ -n "$(ls /pack)" ]; then source=/pack; fi; \
    own="$(dpkg --print-architecture)"; \
    form=; if [ "${TARGETARCH:-${own}}" != "${own}" ]; then form=--portable; fi; \
    if [ "${FLAVOUR}" = gpu ]; then form=--plain; fi; \
    XDG_CACHE_HOME=/tmp/cache /opt/build/bin/python -m runner models bake ${form:+"${form}"} \
        --pack "${PACK}" --source "${source}" --sha256 "${PACK_SHA256}" --out /model
COPY docker/finish.py docker/
RUN python3 docker/finish.py model /model

# What a run imports: no pip, no InsightFace, no demo. CUDA's libraries, if any, go to a folder of their own.
FROM tools AS packages
ARG FLAVOUR
ARG TARGETARCH
RUN python3 -m venv --without-pip /opt/spottmee-worker
COPY requirements/run-${FLAVOUR}.txt requirements/
RUN --mount=type=cache,target=/var/cache/pip \
    --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=ca.crt \
    set -- --quiet --no-compile --require-hashes --only-binary :all: -r "requirements/run-${FLAVOUR}.txt"; \
    if [ "${TARGETARCH:-$(dpkg --print-architecture)}" = "$(dpkg --print-architecture)" ]; then \
        /opt/build/bin/pip --python /opt/spottmee-worker/bin/python install "$@"; \
    else \
        machine=x86_64; if [ "${TARGETARCH}" = arm64 ]; then machine=aarch64; fi; \
        for minor in $(seq 17 "$(python3 -c 'import platform; print(platform.libc_ver()[1].split(".")[1])')"); do \
            set -- "$@" --platform "manylinux_2_${minor}_${machine}"; \
        done; \
        /opt/build/bin/pip install "$@" --target /opt/spottmee-worker/lib/python3*/site-packages; \
    fi
COPY docker/finish.py docker/
RUN python3 docker/finish.py packages /opt/spottmee-worker --cuda /cuda

# The worker's own code.
FROM packages AS code
COPY --from=wheel /wheel/ /wheel/
RUN /opt/build/bin/pip --python /opt/spottmee-worker/bin/python install --quiet --no-compile --no-index --root /code \
        /wheel/*.whl \
    && python3 docker/finish.py code /code/opt/spottmee-worker --root /code

# One layer per rate of change, the slowest first: usually only the last one differs between releases.
FROM base AS run
# The standard library is compiled too: slim images have no bytecode, and a read-only file system cannot cache it.
# No program needs set-user-ID or set-group-ID, so the bits are removed. All that is new gets a fixed date, and so do the
# folders that COPY would create with today's: a build without a cache gives the same layers, whichever program builds.
ARG SOURCE_DATE_EPOCH=315532800
RUN start="$(($(date +%s) - 1))" && library="$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')" \
    && python3 -m compileall -q --invalidation-mode unchecked-hash \
        -x '/(test|tests|idlelib|lib2to3|ensurepip|tkinter|turtledemo|.*-packages)/' "${library}" \
    && find / -xdev -type f -perm /6000 -exec chmod a-s {} + \
    && mkdir -p /opt/spottmee-worker/share/spottmee-worker/model \
    && find "${library}" /opt -newermt "@${start}" -exec touch --no-dereference --date="@${SOURCE_DATE_EPOCH}" {} +
# With CUDA's libraries: the loader finds them through its cache, because onnxruntime does not look for them.
COPY --from=packages /cuda/ /
RUN set -- /opt/spottmee-worker/lib/python3*/site-packages/nvidia/*/lib; if [ -d "$1" ]; then \
        printf '%s\n' "$@" > /etc/ld.so.conf.d/spottmee-worker.conf && ldconfig && rm /var/cache/ldconfig/aux-cache; fi
COPY --from=packages /opt/spottmee-worker /opt/spottmee-worker
COPY --from=bake /model /opt/spottmee-worker/share/spottmee-worker/model
COPY --from=code /code/ /
ENV PATH=/opt/spottmee-worker/bin:$PATH PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
WORKDIR /
STOPSIGNAL SIGTERM
ENTRYPOINT ["/opt/spottmee-worker/bin/spottmee-worker"]
CMD ["run"]

ARG FLAVOUR
ARG PACK=buffalo_sc
# `make image` sets version and revision as labels: buildah caches this instruction whatever its arguments are.
LABEL org.opencontainers.image.title="spottmee-worker" \
      org.opencontainers.image.description="One-shot runner for face-embedding jobs, scaled by KEDA" \
      org.opencontainers.image.licenses="MIT" \
      spottmee-worker.flavour="${FLAVOUR}" \
      spottmee-worker.pack="${PACK}" \
      spottmee-worker.pack.licence="InsightFace model weights: non-commercial research purposes only"
