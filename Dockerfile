# Two images from one file, of one version each:
#
#   docker build --target serve    --build-arg REVISION=TAG -t twotower-serve:TAG .
#   docker build --target pipeline --build-arg REVISION=TAG -t twotower-pipeline:TAG .
#
# serve answers from a bundle: no Keras, no JAX, no kfp. pipeline holds every step and kfp: each task runs in it.
# TAG is `git rev-parse --short=12 HEAD`: a tag says which code is inside and never moves.
#
# Both run as user 10001 on a read-only root file system with no capability; what they write goes to /tmp:
#
#   docker run --rm --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges IMAGE ...
#
# Behind a proxy or a mirror, name what the build needs as secrets, which stay out of the image and of its history:
#
#   --secret id=pip.conf,src=...   for pip
#   --secret id=apt.conf,src=...   for apt
#   --secret id=ca.crt,src=...     certificates to trust, at /run/secrets/ca.crt, which is what pip.conf then names
#
# Any image of Debian 12 can be the base. There is no `# syntax` line: the builder needs nothing that it has to pull.
ARG BASE=debian:bookworm-slim

# What both images stand on. Python is Debian's own 3.11: one base, one source of security updates.
FROM ${BASE} AS python
RUN --mount=type=secret,id=apt.conf,target=/etc/apt/apt.conf.d/99build \
    apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends ca-certificates python3 \
    && apt-get clean \
    && rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/* /usr/share/doc/* /usr/share/man/*
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /tmp --shell /usr/sbin/nologin twotower

# Builds the package and the environments. pip, hatchling and what they bring stay here.
FROM python AS build
RUN --mount=type=secret,id=apt.conf,target=/etc/apt/apt.conf.d/99build \
    apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
    binutils python3-venv
WORKDIR /build
RUN python3 -m venv tools && python3 -m venv --without-pip /opt/twotower
COPY requirements/build.txt requirements/
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=ca.crt \
    --mount=type=cache,target=/root/.cache/pip \
    tools/bin/pip install --require-hashes -r requirements/build.txt

# The package alone, in a layer of its own on top of what it needs: a change of code moves 1 MB, not an image.
FROM build AS package
COPY . source/
RUN cd source && ../tools/bin/hatchling build -t wheel -d /build/wheel
RUN tools/bin/pip --python /opt/twotower/bin/python3 install --no-compile --no-index --no-deps --prefix /package \
    wheel/*.whl \
    # A trace says the line in any case; at which column of it costs a quarter of a megabyte.
    && python3 -X no_debug_ranges -m compileall -q -s /package -p /opt/twotower /package

# --no-compile: a run compiles the few modules that it imports, and those are what is compiled here, by importing them.
# All of them would add a fifth to the image.
FROM build AS serve-needs
COPY requirements/serve.txt requirements/
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=ca.crt \
    --mount=type=cache,target=/root/.cache/pip \
    tools/bin/pip --python /opt/twotower/bin/python3 install --no-compile --require-hashes -r requirements/serve.txt
# What answering never loads.
RUN cd /opt/twotower/lib/python3.11/site-packages && rm -rf \
    # Arrow Flight, a server of its own (33 MB)
    pyarrow/libarrow_flight.so.* pyarrow/libarrow_python_flight.so* pyarrow/_flight.* pyarrow/flight.py \
    # second and third names of one library; the one with one number in it is what is loaded (5 MB)
    pyarrow/libarrow_python.so pyarrow/libarrow_python.so.*.*.* \
    # headers, sources and tests (19 MB)
    pyarrow/include pyarrow/includes pyarrow/src pyarrow/tests pyarrow/*.pyx pyarrow/*.pxi pyarrow/*.pxd \
    pyarrow/_pyarrow_cpp_tests.* numpy/tests numpy/*/tests numpy/_core/_simd.* numpy/_core/_*_tests.* \
    numpy/_core/include numpy/_core/lib numpy/random/lib \
    # the library for programs in C: Python's module has it linked in (35 MB)
    onnxruntime/capi/libonnxruntime.so.* \
    # tools that make and change models, wrappers of Fortran, what builds extensions (6 MB)
    onnxruntime/transformers onnxruntime/quantization onnxruntime/tools onnxruntime/datasets faiss/contrib \
    numpy/f2py numpy/distutils \
    # what was translated to C (1 MB)
    uvloop/*.pyx uvloop/*.pxd uvloop/*/*.pyx uvloop/*/*.pxd httptools/*/*.pyx httptools/*/*.pxd \
    # how to colour source code in 500 languages (4 MB)
    pygments/lexers/[!_]*.py pygments/lexers/_*_builtins.py \
    # symbol tables, for a debugger (35 MB)
    && strip --strip-unneeded pyarrow/*.so pyarrow/*.so.* uvloop/*.so httptools/*/*.so
RUN /opt/twotower/bin/python3 -c 'import click, faiss, fastapi, fastapi.openapi.utils, numpy.random, numpy.typing, \
    onnxruntime, prometheus_client.core, pyarrow.compute, pyarrow.fs, pyarrow.parquet, pydantic.dataclasses, rich.console, \
    uvicorn, uvicorn.lifespan.off, uvicorn.loops.uvloop, uvicorn.protocols.http.httptools_impl'

FROM build AS pipeline-needs
COPY requirements/pipeline.txt requirements/
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=ca.crt \
    --mount=type=cache,target=/root/.cache/pip \
    tools/bin/pip --python /opt/twotower/bin/python3 install --no-compile --require-hashes -r requirements/pipeline.txt
RUN KERAS_BACKEND=jax KERAS_HOME=/tmp/keras /opt/twotower/bin/python3 -c 'import altair, click, duckdb, faiss, \
    fastapi, ibis, jax, jax2onnx, keras, keras_rs, kfp.dsl.executor_main, kubernetes.client, onnx, onnxruntime, \
    pyarrow.fs, pyarrow.parquet, pydantic, rich.console, scipy.sparse.linalg, uvicorn, vl_convert'

# Nothing is written beside the code, and every cache of a library has its place on /tmp.
FROM python AS runtime
ENV PATH=/opt/twotower/bin:/usr/bin:/bin \
    HOME=/tmp \
    LOGNAME=twotower \
    XDG_CACHE_HOME=/tmp/cache \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /tmp
USER 10001:10001

FROM runtime AS pipeline
ENV KERAS_BACKEND=jax KERAS_HOME=/tmp/keras
COPY --from=pipeline-needs /opt/twotower /opt/twotower
COPY --from=package /package /opt/twotower
ARG REVISION=unknown
ARG VERSION=unknown
LABEL org.opencontainers.image.title=twotower-pipeline \
      org.opencontainers.image.revision=${REVISION} \
      org.opencontainers.image.version=${VERSION} \
      org.opencontainers.image.licenses=Apache-2.0
# No ENTRYPOINT: kfp brings the command of each task.
CMD ["twotower", "--help"]

FROM runtime AS serve
COPY --from=serve-needs /opt/twotower /opt/twotower
COPY --from=package /package /opt/twotower
ARG REVISION=unknown
ARG VERSION=unknown
LABEL org.opencontainers.image.title=twotower-serve \
      org.opencontainers.image.revision=${REVISION} \
      org.opencontainers.image.version=${VERSION} \
      org.opencontainers.image.licenses=Apache-2.0
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python3", "-I", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
ENTRYPOINT ["twotower"]
CMD ["serve", "--help"]
