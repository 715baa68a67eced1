# An image for a GPU host:   docker build -t continuo .  &&  docker run --gpus all -p 8000:8000 continuo
# Let streams end:           docker stop -t 40 CONTAINER   (Docker kills after 10 s by itself; --drain-seconds is 30)
# With nothing it can do:    docker run --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges --gpus all -p 8000:8000 continuo
#                            (compiled kernels go to the volume below; where there is none, Kubernetes say, to /tmp: mount that without noexec)
FROM python:3.11-slim-bookworm

# cuda: torch's wheels with their CUDA libraries; cpu: the small build from PyTorch's own index
ARG TORCH=cuda

# Triton compiles its launcher when a kernel is first used, so the compiler stays (the base has Python's
# headers); numba's threads are libgomp's.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev libgomp1 \
    && rm -rf /var/lib/apt/lists/*

# The packages are a layer of their own, which a change of our code leaves alone.
WORKDIR /opt/continuo
COPY pyproject.toml constraints.txt ./
RUN if [ "$TORCH" = cpu ]; then index=--index-url=https://download.pytorch.org/whl/cpu; fi \
    && pip install --no-cache-dir -c constraints.txt $index 'torch>=2.11,<2.14' \
    && python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' \
       > /tmp/requirements.txt \
    && pip install --no-cache-dir -c constraints.txt -r /tmp/requirements.txt \
    && rm /tmp/requirements.txt

COPY LICENSE ./
COPY kernels kernels
COPY server server
RUN python -m compileall -q server kernels \
    && useradd --system --uid 10001 --no-create-home --home-dir /var/cache/continuo continuo \
    && install -d -o continuo -g continuo /var/cache/continuo

# a number: Kubernetes' runAsNonRoot does not look names up
USER 10001
ENV XDG_CACHE_HOME=/var/cache PYTHONUNBUFFERED=1
RUN python -m server warm-up
VOLUME /var/cache/continuo

EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-m", "server", "health"]
ENTRYPOINT ["python", "-m", "server"]
CMD ["serve", "--host", "0.0.0.0"]
