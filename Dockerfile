# The pinned environment, without a graphics card:
#   docker build -t emlab . && docker run --rm -it emlab make test
# --build-arg PIP_EXTRA_INDEX_URL=... with an index of CPU builds of torch spares its CUDA libraries.
FROM python:3.11-slim AS tools
RUN apt-get update \
 && apt-get install -y --no-install-recommends build-essential git make \
 && rm -rf /var/lib/apt/lists/*

FROM tools
ARG PIP_EXTRA_INDEX_URL
ENV PIP_NO_CACHE_DIR=1
WORKDIR /emlab
COPY constraints.txt requirements.lock ./
# The hashes are those of x86-64; elsewhere `make setup` takes the same versions.
RUN python -m venv .venv \
 && if [ "$(uname -m)" = x86_64 ]; then \
      .venv/bin/pip install -q --require-hashes --no-deps -r requirements.lock; \
    fi
COPY . .
RUN make setup
CMD ["make", "book"]
