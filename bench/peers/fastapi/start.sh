#!/bin/sh
# start.sh naive|pool: the number of processes tells them apart as much as the code does.
exec uvicorn "bench.peers.fastapi.$1:app" --host 127.0.0.1 --port "$PEER_PORT" \
  --workers "$PEER_WORKERS" --no-access-log
