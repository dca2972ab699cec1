# pobench in a container. On a processor, with an index that has torch's CPU builds (the default one's bring gigabytes of CUDA):
#   docker build --build-arg TORCH_INDEX=ADDRESS -t pobench .
# On NVIDIA GPUs, with the container toolkit; torch brings CUDA's libraries:
#   docker build -t pobench:cuda .
#   docker run --gpus all -v "$PWD/runs:/data/runs" -v pobench-cache:/cache pobench:cuda run --losses simpo,dpo --setting smollm2
FROM python:3.12-slim

ARG TORCH_INDEX=""
# Also the extras to install, such as "[peft,vllm]"
ARG EXTRAS=""

ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 POBENCH_CACHE=/cache HF_HOME=/cache/huggingface

WORKDIR /opt/pobench
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY pobench pobench
COPY losses losses
COPY experiments experiments
COPY analysis analysis
COPY reports reports
RUN if [ -n "$TORCH_INDEX" ]; then pip install -c constraints.txt --index-url "$TORCH_INDEX" torch; fi \
    && pip install -c constraints.txt ".$EXTRAS" \
    && useradd --create-home --uid 1000 pobench \
    && mkdir -p /cache /data/runs && chown -R pobench /cache /data

USER 1000
WORKDIR /data
VOLUME ["/cache", "/data/runs"]
ENTRYPOINT ["pobench"]
CMD ["doctor"]
