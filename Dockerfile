# An image for a GPU host:   docker build -t continuo .  &&  docker run --gpus all -p 8000:8000 continuo
# With a read-only root:     docker run --read-only --tmpfs /tmp -v continuo-cache:/var/cache/continuo ...
FROM python:3.11-slim-bookworm

# cuda: torch's wheels with their CUDA libraries; cpu: the small build from PyTorch's own index
ARG TORCH=cuda

# Triton compiles its launcher when the first kernel is used, so the C compiler stays in the image.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev python3-dev \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --system --uid 10001 --no-create-home --home-dir /var/cache/continuo continuo \
    && mkdir -p /var/cache/continuo \
    && chown continuo:continuo /var/cache/continuo

# first the packages, which change seldom; then our own files
WORKDIR /opt/continuo
COPY constraints.txt ./
RUN if [ "$TORCH" = cpu ]; then index=--index-url=https://download.pytorch.org/whl/cpu; fi \
    && pip install --no-cache-dir --no-compile -c constraints.txt $index torch
COPY pyproject.toml README.md LICENSE ./
COPY server server
COPY kernels kernels
RUN pip install --no-cache-dir -c constraints.txt .

ENV XDG_CACHE_HOME=/var/cache \
    PYTHONUNBUFFERED=1
USER continuo
WORKDIR /
RUN continuo warm-up
VOLUME /var/cache/continuo

EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=2)"]
ENTRYPOINT ["continuo"]
CMD ["serve", "--host", "0.0.0.0"]
