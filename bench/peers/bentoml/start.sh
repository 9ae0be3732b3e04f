#!/bin/sh
BENTOML_DO_NOT_TRACK=True BENTOML_HOME="$PWD" \
  exec bentoml serve bench.peers.bentoml.app:Classifier --host 127.0.0.1 --port "$PEER_PORT"
