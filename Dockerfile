# syntax=docker/dockerfile:1
# What serves, and nothing else: no compiler, no PyTorch, no root.
#
#   docker build -t saccade .                              serves on processors
#   docker build -t saccade:gpu --target gpu .             serves on NVIDIA GPUs
#   docker build -t saccade:export --target export .       makes bundles of checkpoints; has PyTorch
#
#   docker run --rm -p 8000:8000 --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges saccade
#
# Your own models: -v $PWD/models-repository:/models:ro -e SACCADE_REPOSITORY=/models
# To pin the base as well: --build-arg PYTHON_IMAGE=python:3.11-slim-bookworm@sha256:...
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

# Dependencies come before our own code, which changes more often. Each list is complete and exact.
FROM ${PYTHON_IMAGE} AS build
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY deploy deploy
RUN python -m venv /opt/saccade

FROM build AS build-cpu
RUN /opt/saccade/bin/pip install --no-deps --requirement deploy/constraints.txt
COPY . .
RUN /opt/saccade/bin/pip install --no-deps . \
    && /opt/saccade/bin/pip check \
    && deploy/image/trim.sh /opt/saccade \
    && /opt/saccade/bin/python -P deploy/image/bytecode.py

FROM build AS build-gpu
RUN /opt/saccade/bin/pip install --no-deps --requirement deploy/constraints-gpu.txt
COPY . .
RUN /opt/saccade/bin/pip install --no-deps . \
    && /opt/saccade/bin/pip check \
    && deploy/image/trim.sh /opt/saccade \
    && /opt/saccade/bin/python -P deploy/image/bytecode.py

# PyTorch for processors is not where pip looks; the pages of PyTorch name its index:
#   --build-arg PIP_EXTRA_INDEX_URL=...
# Without it this image becomes several gigabytes larger, and works as well.
FROM build AS build-export
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
RUN /opt/saccade/bin/pip install --requirement deploy/constraints-export.txt
COPY . .
RUN /opt/saccade/bin/pip install --no-deps . \
    && /opt/saccade/bin/pip check

FROM ${PYTHON_IMAGE} AS runtime
LABEL org.opencontainers.image.title="Saccade" \
      org.opencontainers.image.description="Vision transformers over HTTP: an image goes in, an answer comes out." \
      org.opencontainers.image.licenses="Apache-2.0"
# The standard library's bytecode: nobody can write it at run time, and five processes start.
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin saccade \
    && install --directory --owner saccade --mode 0700 /var/cache/saccade \
    && python -m compileall -q -x '/(site-packages|test|lib2to3|idlelib|ensurepip)/' /usr/local/lib/python3.*
# Compiled models go to a volume; everything else may be read-only but /tmp.
ENV PATH=/opt/saccade/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    SACCADE_HOST=0.0.0.0 \
    SACCADE_CACHE=/var/cache/saccade
VOLUME /var/cache/saccade
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s \
    CMD ["python", "/opt/saccade/bin/healthcheck.py"]
ENTRYPOINT ["saccade"]
CMD ["serve"]

FROM runtime AS gpu
COPY --from=build-gpu /opt/saccade /opt/saccade
COPY deploy/image/healthcheck.py /opt/saccade/bin/
# What the container toolkit of NVIDIA brings into the container: the driver's libraries and NVML.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001

# What it writes belongs to whom it runs as:
#   docker run --rm --user $(id -u) -v $PWD:/work -w /work saccade:export export OWNER/NAME --out models-repository
FROM runtime AS export
COPY --from=build-export /opt/saccade /opt/saccade
COPY deploy/image/healthcheck.py /opt/saccade/bin/
# Nobody has a home here; checkpoints of the Hugging Face hub are fetched to where anybody may write.
ENV HF_HOME=/tmp/huggingface
USER 10001
CMD ["--help"]

# The last stage is what "docker build ." makes.
FROM runtime AS cpu
COPY --from=build-cpu /opt/saccade /opt/saccade
COPY deploy/image/healthcheck.py /opt/saccade/bin/
USER 10001
