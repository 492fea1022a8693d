# docker build -t srgym .                                   a machine without a GPU
# docker build -t srgym:cuda --build-arg BASE=cuda .        with one: docker run --gpus all ...
# docker run --rm -v "$PWD:/runs" srgym train experiment=oars out=/runs/oars
ARG BASE=cpu

FROM python:3.12-slim AS cpu

# PyTorch's wheels bring CUDA's libraries; what an image for GPUs adds is what the driver's runtime looks for.
FROM nvidia/cuda:13.0.1-base-ubuntu24.04 AS cuda
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3 python3-venv \
 && rm -rf /var/lib/apt/lists/*

# hadolint ignore=DL3006
FROM ${BASE} AS srgym
WORKDIR /opt/srgym
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH HF_HUB_OFFLINE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY . .
RUN pip install --constraint constraints.txt ".[judges]" \
 && useradd --create-home --uid 10001 srgym
USER 10001
WORKDIR /home/srgym
ENTRYPOINT ["srgym"]
CMD ["--help"]
