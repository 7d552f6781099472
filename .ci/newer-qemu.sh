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

mirror() {
    if [ -n "${NEWER_QEMU_MIRROR:-}" ]; then
        echo "$NEWER_QEMU_MIRROR"
        return
    fi
    apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' |
        sed -n '\,/debian/*$,{p;q;}'
}

fetch() {
    from=$(mirror)
    [ -n "$from" ] || return 1
    rm -rf "$world"
    mkdir -p "$world/lists/partial" "$world/archives/partial"
    : >"$world/status"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $from $suite main" \
        >"$world/sources.list"
    # A mirror that is a few weeks behind will do: what it has is signed.
    cat >"$world/apt.conf" <<EOF
Dir::State "$world";
Dir::State::status "$world/status";
Dir::State::lists "$world/lists";
Dir::Cache "$world";
Dir::Cache::archives "$world/archives";
Dir::Etc::sourcelist "$world/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
APT::Install-Recommends "false";
APT::Sandbox::User "";
Acquire::Check-Valid-Until "false";
Acquire::Languages "none";
Debug::NoLocking "true";
EOF
    export APT_CONFIG="$world/apt.conf"
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
