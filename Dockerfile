# mdmf on CPUs: ONNX Runtime and OpenVINO. How to run it: docs/docker.md.
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
WORKDIR /src
COPY . .
RUN python -m venv /opt/mdmf \
    && /opt/mdmf/bin/pip install --no-cache-dir '.[cpu,openvino,heif,video,provenance]' \
    && /opt/mdmf/bin/pip uninstall --yes pip

FROM python:${PYTHON}-slim
COPY --from=build /opt/mdmf /opt/mdmf
# Nothing is written outside /tmp. No user of the image has a home.
ENV PATH=/opt/mdmf/bin:$PATH MDMF_CACHE=/tmp/mdmf PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 65534:65534
WORKDIR /data
# Without a shell in between, the command itself receives the signals of `docker stop`.
ENTRYPOINT ["mdmf"]
CMD ["doctor"]
