#!/bin/sh
# Fetches a QEMU that has vfio-user-pci (since 10.1) from a newer Debian than this machine's, with the
# machine's own apt and mirror, in an apt world of its own, and unpacks it below target/newer-qemu.
# A second run finds it there.
#
#   .ci/newer-qemu.sh
#
# The last line is a command that starts it; returns 77 when it cannot be had here.
# NEWER_QEMU_MIRROR names another Debian mirror than the machine's.
set -eu

cd "$(dirname "$0")/.."
root=$PWD/target/newer-qemu
world=$root.apt
suite=forky
triplet=x86_64-linux-gnu

. .ci/apt-world.sh

fetch() {
    from=${NEWER_QEMU_MIRROR:-$(debian_mirror)}
    [ -n "$from" ] || return 1
    rm -rf "$world"
    apt_world "$world" "$from" "$suite"
    apt-get -qq update && apt-get -qq -y --download-only install qemu-system-x86
}

if [ ! -e "$root/.complete" ]; then
    command -v apt-get >/dev/null && fetch >&2 || exit 77
    rm -rf "$root"
    mkdir -p "$root"
    for package in "$world"/archives/*.deb; do
        dpkg-deb -x "$package" "$root"
    done
    rm -rf "$world"
    touch "$root/.complete"
fi
libraries=$root/usr/lib/$triplet
# Its modules and its firmware, not those of this machine's QEMU.
cat >"$root/qemu" <<EOF
#!/bin/sh
QEMU_MODULE_DIR=$libraries/qemu exec "$libraries/ld-linux-x86-64.so.2" --inhibit-cache \\
    --library-path "$libraries" "$root/usr/bin/qemu-system-x86_64" \\
    -L "$root/usr/share/qemu" -L "$root/usr/share/seabios" "\$@"
EOF
chmod +x "$root/qemu"
echo "$root/qemu"
