# syntax=docker/dockerfile:1
#
# CPU:   docker build --tag wanswarm .
# CUDA:  docker build --tag wanswarm:cuda --build-arg VARIANT=cuda .
#        docker run --gpus all ... wanswarm:cuda join --gpu 0        (the driver comes from the host)
# ROCm:  docker build --tag wanswarm:rocm --build-arg VARIANT=rocm --build-arg PIP_ARGS="--index-url ..." .
#        docker run --device /dev/kfd --device /dev/dri --group-add video ... wanswarm:rocm join --gpu 0    (never run)
#
# PIP_ARGS goes to pip: a mirror, or the index of PyTorch's CPU-only builds, which makes the CPU image gigabytes smaller
# (see docs/deploy/README.md).

ARG PYTHON=3.11-slim-bookworm

FROM python:${PYTHON} AS build
ARG VARIANT=cpu
ARG PIP_ARGS=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/wanswarm
ENV PATH=/opt/wanswarm/bin:$PATH
WORKDIR /src
# Dependencies by themselves first: they are gigabytes and change far less often than the code.
COPY pyproject.toml constraints.txt ./
RUN case "$VARIANT" in cpu|cuda|rocm) ;; *) echo "VARIANT must be cpu, cuda or rocm, found $VARIANT" >&2; exit 1 ;; esac \
 && python -c 'import sys, tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; print(*p["dependencies"], *(p["optional-dependencies"]["gpu"] if sys.argv[1] == "cuda" else []), sep="\n")' "$VARIANT" > wanted.txt \
 && pip install $PIP_ARGS --constraint constraints.txt --requirement wanted.txt
# An image for a GPU with a torch that has no code for it would only say so at a user's: a mirror of CPU builds, say.
RUN python -c 'import sys, torch; have = {"cpu", *(["cuda"] if torch.version.cuda else []), *(["rocm"] if torch.version.hip else [])}; sys.exit(None if sys.argv[1] in have else f"VARIANT={sys.argv[1]}, but torch {torch.__version__} is built for {sorted(have)}: give PIP_ARGS an index with such a build")' "$VARIANT"
COPY LICENSE README.md ./
COPY receipts receipts
COPY draft draft
COPY swarm swarm
RUN pip install $PIP_ARGS --no-deps .

FROM python:${PYTHON} AS runtime
ARG VARIANT=cpu
LABEL org.opencontainers.image.title="wanswarm" \
      org.opencontainers.image.description="A node of a swarm that runs language models over the open internet" \
      org.opencontainers.image.licenses="Apache-2.0" \
      variant="${VARIANT}"
# Identity, receipts and model files live in one volume; the user's number is fixed so that its owner is predictable.
RUN groupadd --gid 10001 swarm \
 && useradd --uid 10001 --gid swarm --home-dir /var/lib/wanswarm --create-home --shell /usr/sbin/nologin swarm
COPY --from=build /opt/wanswarm /opt/wanswarm
# The NVIDIA variables are read by the container runtime of the host and mean nothing to one without it.
ENV HOME=/var/lib/wanswarm PATH=/opt/wanswarm/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
WORKDIR /var/lib/wanswarm
VOLUME /var/lib/wanswarm
EXPOSE 7700 8080
STOPSIGNAL SIGTERM
# Whether a node (7700) or a gateway (8080) listens: one that computes or loads still accepts, one that is gone does not.
HEALTHCHECK --interval=30s --timeout=5s --start-period=10m --retries=3 \
    CMD ["python", "-c", "import socket, sys; sys.exit(all(socket.socket().connect_ex(('127.0.0.1', port)) for port in (7700, 8080)))"]
ENTRYPOINT ["swarm"]
CMD ["join", "--listen", "[::]:7700"]
