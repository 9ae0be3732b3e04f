#!/bin/sh
exec python -m bench.peers.mosec.app --address 127.0.0.1 --port "$PEER_PORT" \
  --timeout "$((PEER_TIMEOUT_S * 1000))"
