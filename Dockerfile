# docker build -t maskrcnn-coco .                                    for the CPU
# docker build -t maskrcnn-coco --build-arg TORCH=https://download.pytorch.org/whl/cu128 .   for NVIDIA cards
# docker run --rm --user "$(id -u):$(id -g)" --shm-size 2g -v "$PWD:/work" maskrcnn-coco train --data /work/my_set
FROM python:3.12-slim
ARG TORCH=https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir --index-url "$TORCH" "torch>=2.10" "torchvision>=0.25"
COPY . /src
RUN pip install --no-cache-dir /src && rm -rf /src
WORKDIR /work
ENTRYPOINT ["maskrcnn-coco"]
CMD ["--help"]
