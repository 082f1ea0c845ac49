# CUDA: docker build -t lfvit .    CPU: docker build -t lfvit --build-arg TORCH="--index-url INDEX" .
# INDEX: the address of the CPU packages that PyTorch's page "Start locally" names.
# docker run --rm --gpus all -v "$PWD:/work" lfvit train data=imagefolder data.root=DIR trainer=ddp
FROM python:3.12-slim
ARG TORCH=""
RUN pip install --no-cache-dir "torch>=2.11,!=2.13.*" torchvision $TORCH
COPY pyproject.toml README.md LICENSE /src/
COPY conf /src/conf
COPY zoo /src/zoo
COPY src /src/src
RUN pip install --no-cache-dir "/src[plots,export,data,wandb,tensorboard]"
WORKDIR /work
ENTRYPOINT ["lfvit"]
