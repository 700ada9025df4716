# tf-alexnet on a processor without a GPU.
#
#   docker build -t tf-alexnet .
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/work" -v "$HOME/.cache/tf_alexnet:/cache" \
#       tf-alexnet extract photos -o fc7.h5
#
#   docker run --rm -p 8000:8000 -e TF_ALEXNET_TOKEN tf-alexnet serve --host 0.0.0.0
#
# Photos and results are in the folder mounted at /work, downloaded weights in the one at /cache:
# both outlive the container. Create the second before the first run, or Docker makes it root's.
FROM python:3.12-slim

# TensorFlow's messages at start-up say nothing that matters here. Python flushes each line, so that
# a scheduler's log shows progress as it happens.
ENV TF_CPP_MIN_LOG_LEVEL=3 \
    PYTHONUNBUFFERED=1 \
    TF_ALEXNET_CACHE=/cache \
    HOME=/tmp

# The source is mounted for this one step and leaves nothing in the image. OpenVINO computes as fast
# as TensorFlow and starts in a second; pyarrow writes .parquet; s3 and gs read URLs.
RUN --mount=type=bind,target=/source,rw \
    pip install --no-cache-dir "/source[openvino,parquet,plot,serve,http,s3,gs]"

# Any number will do for `--user`: nothing needs the user to have a name or a home.
RUN mkdir --mode=1777 /cache
USER 1000
WORKDIR /work

ENTRYPOINT ["tf-alexnet"]
CMD ["--help"]
