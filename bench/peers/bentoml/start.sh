#!/bin/sh
# start.sh batched|unbatched
BENTOML_DO_NOT_TRACK=True BENTOML_HOME="$PWD" exec bentoml serve \
  "bench.peers.bentoml.$1:Classifier" --host 127.0.0.1 --port "$PEER_PORT"
