# syntax=docker/dockerfile:1
# What serves, and nothing else: no compiler, no PyTorch, no root.
#
#   docker build -t saccade .
#   docker run --rm -p 8000:8000 --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges saccade
#
# Your own models: -v ./models-repository:/models:ro -e SACCADE_REPOSITORY=/models
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY deploy/constraints.txt deploy/
COPY models models
COPY export export
COPY service service
COPY bench bench
COPY saccade_client saccade_client
RUN python -m venv /opt/saccade \
    && /opt/saccade/bin/pip install --no-cache-dir --disable-pip-version-check --constraint deploy/constraints.txt '.[cpu]'

FROM python:${PYTHON}-slim AS cpu
LABEL org.opencontainers.image.title="Saccade" \
      org.opencontainers.image.description="Vision transformers over HTTP: an image goes in, an answer comes out." \
      org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin saccade \
    && install --directory --owner saccade --mode 0700 /var/cache/saccade
COPY --from=build /opt/saccade /opt/saccade
# Compiled models go to a volume; everything else may be read-only but /tmp.
ENV PATH=/opt/saccade/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    SACCADE_HOST=0.0.0.0 \
    SACCADE_CACHE=/var/cache/saccade
VOLUME /var/cache/saccade
USER 10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/livez', timeout=2)"]
ENTRYPOINT ["saccade"]
CMD ["serve"]
