#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
# Builds the plugin with cargo and puts it where meson expects it.
set -eu
cargo=$1 root=$2 output=$3

"$cargo" build --release --manifest-path "$root/Cargo.toml"
target=${CARGO_TARGET_DIR:-$root/target}
# The file keeps its time when nothing changed, so nothing after it is done again.
cmp -s "$target/release/librte_net_vhost.so" "$output" ||
	cp "$target/release/librte_net_vhost.so" "$output"
