#!/bin/sh
# Pack what a device machine without a network lacks into folders 1, 2 and 3 of OUT, each small enough for one transfer.
#
#   PYTHON=python3.12 tests/device/stage.sh MIRROR GGUF OUT [MIB]
#
# PYTHON is of the machine's version. MIRROR holds mirror.toml. GGUF is the file of the weights. MIB is the room of one
# transfer besides the working tree. Folder 1 has the packages, the mirror's data and the first part of the weights,
# compressed by xz; folders 2 and 3 have the rest.
set -eu
mirror=$1 gguf=$2 out=$3 room=$((${4:-33} * 1048576))
here=$(cd "$(dirname "$0")" && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir -p "$out/1" "$out/2" "$out/3"

site=$scratch/site
"$PYTHON" -m pip install -q --no-deps --no-compile --target "$site" -r "$here/requirements.txt"
# Of the libraries of bitsandbytes those of CUDA 13.0 and of the CPU, of lm-eval's tasks the one that ours refer to.
find "$site/bitsandbytes" -name '*.so' ! -name '*_cpu.so' ! -name '*_cuda130.so' -delete
find "$site/lm_eval/tasks" -mindepth 1 -maxdepth 1 -type d ! -name wikitext -exec rm -r {} +
find "$site" \( -name RECORD -o -name '*.pyi' \) -delete
find "$site" -type d \( -name tests -o -name test \) -prune -exec rm -r {} +
rm -rf "$site/bin"
tar -cJf "$out/1/site.tar.xz" -C "$site" .

files=$(sed -n 's/^path = "\(.*\)"/\1/p' "$mirror/mirror.toml" | sort -u | grep -v lambada)
# shellcheck disable=SC2086
tar -cJf "$out/1/mirror.tar.xz" -C "$mirror" mirror.toml $files

xz -9 -c "$gguf" >"$scratch/weights.xz"
first=$((room - $(cat "$out"/1/*.tar.xz | wc -c)))
head -c "$first" "$scratch/weights.xz" >"$out/1/weights.1"
tail -c "+$((first + 1))" "$scratch/weights.xz" | head -c "$room" >"$out/2/weights.2"
tail -c "+$((first + room + 1))" "$scratch/weights.xz" >"$out/3/weights.3"
du -b "$out"/*/*
