#!/usr/bin/env bash
# Makes the pictures of the README from a running server of the demo models:
#   docs/pictures/make.sh http://127.0.0.1:8000
set -euo pipefail
url=${1:?the address of a running server}
here=$(cd "$(dirname "$0")" && pwd)
scene=$here/../../service/demo/scenes/square.jpg
ask() { curl --silent --fail --data-binary @"$scene" -H "accept: image/$3" "$url/v1/$1" -o "$here/$2"; }
ask detect detect.jpg jpeg
ask 'segment?render=overlay' segment.jpg jpeg
ask attention attention.png png
