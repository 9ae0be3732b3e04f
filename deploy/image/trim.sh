#!/bin/sh
# Removes from a virtual environment what a server never reads: the installer, other packages'
# tests, headers and notes for type checkers, and what OpenVINO brings for other devices and formats;
# and their bytecode, of which bytecode.py writes anew what a server imports.
#
#   deploy/image/trim.sh VENV
set -eu

packages=$(echo "$1"/lib/python3*/site-packages)

rm -rf "$packages"/pip "$packages"/pip-*.dist-info "$packages"/setuptools "$packages"/setuptools-*.dist-info
rm -f "$1"/bin/pip*
find "$packages" -depth -type d \( -name __pycache__ -o -name tests -o -name include \) \
    -not -path "$packages/service/*" -exec rm -rf {} +
find "$packages" -type f \( -name '*.pyi' -o -name '*.pxd' -o -name '*.pyx' -o -name '*.a' \) -delete

# Models for the CPU are read in ONNX and written as IR; nothing else is opened.
if [ -d "$packages/openvino" ]; then
    libraries=$packages/openvino/libs
    rm -f "$libraries"/libopenvino_intel_gpu_plugin.so "$libraries"/libopenvino_intel_npu_plugin.so \
        "$libraries"/cache.json
    for format in tensorflow tensorflow_lite pytorch paddle jax gguf; do
        rm -f "$libraries"/libopenvino_"$format"_frontend.so*
    done
    rm -rf "$packages"/openvino/cmake
fi

# Conversion of models happens before they are served.
rm -rf "$packages"/onnxruntime/transformers "$packages"/onnxruntime/quantization \
    "$packages"/onnxruntime/tools "$packages"/onnxruntime/datasets
