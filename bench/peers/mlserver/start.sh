#!/bin/sh
cat > settings.json <<JSON
{
  "host": "127.0.0.1",
  "http_port": $PEER_PORT,
  "grpc_port": $((PEER_PORT + 1)),
  "metrics_endpoint": null,
  "metrics_port": $((PEER_PORT + 2)),
  "parallel_workers": $PEER_WORKERS,
  "debug": false
}
JSON
cat > model-settings.json <<JSON
{
  "name": "classifier",
  "implementation": "bench.peers.mlserver.app.Classifier",
  "max_batch_size": $PEER_MAX_BATCH,
  "max_batch_time": $PEER_WAIT_S
}
JSON
exec mlserver start .
