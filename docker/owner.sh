#!/bin/sh
# Shares all models of /models for the task digits, and then waits. Models that are ready already are
# left alone, so that it may be repeated.
set -eu

concilium-owner share --task digits --quiet /models/*.onnx
# Seen by the health check of docker-compose.yml. Lies in memory, so it ends with the container.
: > /tmp/shared
echo "all models are shared"

# The owner is done; its models vote whether it is there or not. The container stays, idle, because
# `docker compose up --exit-code-from client` stops everything as soon as any container ends.
trap 'exit 0' TERM INT
sleep infinity &
wait
