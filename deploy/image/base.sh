#!/usr/bin/env bash
# Makes a stand-in for the Python image that the Dockerfile starts from, where no registry can be
# reached: Debian's smallest system, and a CPython of this machine under /usr/local.
#
#   deploy/image/base.sh OUTPUT.tar [PYTHON]     needs root and mmdebstrap; PYTHON: python3
#
# PYTHON must be built with a shared library (--enable-shared), or be linked statically.
set -euo pipefail

output=$(realpath -m "$1")
python=${2:-python3}
libraries=ca-certificates,netbase,tzdata,libbz2-1.0,libexpat1,libffi8,liblzma5,libncursesw6
libraries+=,libreadline8,libsqlite3-0,libssl3,libuuid1,zlib1g

prefix=$("$python" -c 'import sys; print(sys.base_prefix)')
release=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT

mmdebstrap --quiet --variant=minbase --include="$libraries" --aptopt='Acquire::Languages "none"' \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' bookworm "$root/system.tar" \
    "$(ls /etc/apt/sources.list.d/debian.sources 2>/dev/null || echo /etc/apt/sources.list)"
mkdir "$root/image"
tar -C "$root/image" -xf "$root/system.tar" --exclude='./dev/*'

local=$root/image/usr/local
mkdir -p "$local/bin" "$local/lib/python$release/site-packages"
cp -a "$prefix/bin/python$release" "$local/bin/"
find "$prefix/lib" -maxdepth 1 -name "libpython$release.so*" -exec cp -a -t "$local/lib" {} +
tar -C "$prefix/lib" --exclude=site-packages --exclude=test --exclude=__pycache__ --exclude=idlelib \
    --exclude=tkinter --exclude='_tkinter*' --exclude='config-*' -cf - "python$release" |
    tar -C "$local/lib" -xf -
ln -s "python$release" "$local/bin/python3"
ln -s python3 "$local/bin/python"

# A network may have a certificate authority of its own, and packages by another way.
cp -a /etc/ssl/certs/ca-certificates.crt "$root/image/etc/ssl/certs/ca-certificates.crt"
cp -L /etc/pip.conf "$root/image/etc/pip.conf" 2>/dev/null || true
rm -f "$root/image/etc/resolv.conf"
touch "$root/image/etc/resolv.conf"

chroot "$root/image" /sbin/ldconfig
chroot "$root/image" /usr/local/bin/python -m ensurepip --default-pip >/dev/null
rm -rf "$root/image/root/.cache" "$root/image/var/cache/apt" "$root/image/var/lib/apt/lists"
tar -C "$root/image" --sort=name -cf "$output" .
