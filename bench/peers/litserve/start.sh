#!/bin/sh
exec python -m bench.peers.litserve.app
