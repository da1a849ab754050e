# spottmee-worker: what `run` needs, and nothing else. docs/how-to/image.md has the commands, the arguments and the sizes.
#
#   docker build -t spottmee-worker .
#   docker build -t spottmee-worker:gpu --build-arg FLAVOUR=gpu .
#
# BASE is any Debian or Ubuntu with python3 3.11 or newer and its venv module. Pin it by digest where you build for
# production: --build-arg BASE=python:3.12-slim-bookworm@sha256:… (`docker buildx imagetools inspect` shows it).
ARG BASE=python:3.12-slim-bookworm
# The same base for the machine that builds, where BASE has but the architecture that is built for. All that takes long
# runs there: another architecture's packages are only unpacked, and its pack is baked without graphs for one processor.
ARG BUILD_BASE=${BASE}
# Which onnxruntime: cpu, or gpu (with the CUDA and cuDNN libraries; needs the NVIDIA container toolkit to run).
ARG FLAVOUR=cpu

# Named before any stage for another platform, after which buildah would look for this one on that platform too.
FROM ${BASE} AS base

# A model pack from elsewhere: --build-context pack=FOLDER or pack=docker-image://… takes the place of this empty stage.
FROM scratch AS pack

FROM --platform=${BUILDPLATFORM} ${BUILD_BASE} AS tools
ENV PIP_CACHE_DIR=/var/cache/pip PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore \
    PIP_NO_DEPS=1 PYTHONDONTWRITEBYTECODE=1 PYTHONHASHSEED=0
# A constant: a commit that changes no file of a layer leaves its digest. (A wheel cannot be older than 1980.)
ARG SOURCE_DATE_EPOCH=315532800
ENV SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH}
WORKDIR /src
RUN python3 -m venv /opt/build
COPY requirements/bake.txt requirements/
# The secrets are optional: pip.conf for an index of your own, ca.crt where its certificate is.
RUN --mount=type=cache,target=/var/cache/pip \
    --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=ca.crt \
    /opt/build/bin/pip install --quiet --require-hashes --only-binary :all: -r requirements/bake.txt

FROM tools AS wheel
COPY pyproject.toml LICENSE ./
COPY runner/ runner/
# The README is the package's description: nothing that an image needs, and no reason to make its layers again.
RUN touch README.md && /opt/build/bin/pip wheel --quiet --no-build-isolation --no-cache-dir --wheel-dir /wheel .

# The model, optimised (for the CPU alone where it is for that), and proven against InsightFace itself.
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

# What a run imports: no pip, no InsightFace, no demonstration. CUDA's libraries, where there are any, stand apart.
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

# One layer for each thing that changes at a pace of its own, the slowest first: a release pulls the last alone.
FROM base AS run
# Python's own modules are compiled too: slim images bring none, and a read-only file system never would keep them.
# Nothing here needs another user's rights, so no program gives them.
RUN python3 -m compileall -q --invalidation-mode unchecked-hash \
        -x '/(test|tests|idlelib|lib2to3|ensurepip|tkinter|turtledemo|.*-packages)/' \
        "$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')" \
    && find / -xdev -type f -perm /6000 -exec chmod a-s {} +
# Where the flavour brings CUDA's libraries, the loader finds them by its cache: onnxruntime does not look for them.
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
# Version and revision are labels of `make image`: buildah takes this one from its cache whatever the arguments are.
LABEL org.opencontainers.image.title="spottmee-worker" \
      org.opencontainers.image.description="One-shot runner for face-embedding jobs, scaled by KEDA" \
      org.opencontainers.image.licenses="MIT" \
      spottmee-worker.flavour="${FLAVOUR}" \
      spottmee-worker.pack="${PACK}" \
      spottmee-worker.pack.licence="InsightFace model weights: non-commercial research purposes only"
