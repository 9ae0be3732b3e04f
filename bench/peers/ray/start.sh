#!/bin/sh
# start.sh [optimized]: with the proxy and the defaults that Ray documents for high throughput.
export RAY_USAGE_STATS_ENABLED=0 RAY_DEDUP_LOGS=0 RAY_SERVE_LOG_TO_STDERR=0
if [ "$1" = optimized ]; then
  export RAY_SERVE_THROUGHPUT_OPTIMIZED=1 RAY_SERVE_ENABLE_HA_PROXY=1
fi
exec python -m bench.peers.ray.app
