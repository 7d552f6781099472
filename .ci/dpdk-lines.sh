#!/bin/sh
# Builds the driver against DPDK 24.11 (Debian 13) and 25.11 (Debian forky) on a Debian 12 machine,
# loads it into the testpmd of that line, and moves packets to and from a virtio-user one.
#
#   .ci/dpdk-lines.sh [24.11|25.11 ...]
#
# No chroot: the packages are fetched with the machine's own apt and mirror, in an apt world of
# their own, and unpacked below target/dpdk-lines. A second run finds them there.
# DPDK_LINES_MIRROR names another Debian mirror than the machine's.
#
# The last line is `N passed, N failed`; a line whose packages cannot be had is SKIPPED.
set -eu

cd "$(dirname "$0")/.."
# Each line is checked by a process of its own, which ends at the first thing that fails.
if [ "${1:-}" != --only ]; then
    passed=0 failed=0
    for line in ${*:-24.11 25.11}; do
        status=0
        .ci/dpdk-lines.sh --only "$line" || status=$?
        case $status in
            0) passed=$((passed + 1)) ;;
            77) echo "SKIPPED DPDK $line: its packages cannot be fetched here" ;;
            *) failed=$((failed + 1)) ;;
        esac
    done
    echo "$passed passed, $failed failed"
    [ "$failed" = 0 ]
    exit
fi
shift

top=$PWD/target/dpdk-lines
triplet=x86_64-linux-gnu

. .ci/apt-world.sh

# Fails when there is no network, or the mirror has no such suite.
fetch() {
    from=${DPDK_LINES_MIRROR:-$(debian_mirror)}
    if [ -z "$from" ]; then
        echo "no Debian mirror in this machine's apt sources; set DPDK_LINES_MIRROR" >&2
        return 1
    fi
    apt_world "$world" "$from" "$suite"
    apt-get -qq update || return 1
    # dpdk-dev depends on every DPDK library its programs use; libdpdk-dev on the rest.
    libraries=$(apt-cache depends --no-recommends --no-suggests dpdk-dev libdpdk-dev |
        sed -n 's/^ *Depends: \(librte-[a-z0-9-]*\)$/\1/p' | sort -u)
    for extra in net-vhost net-virtio mempool-ring net-null net-ring dma-skeleton; do
        libraries="$libraries librte-$extra$abi"
    done
    # shellcheck disable=SC2086 # a list of names
    apt-get -qq -y --download-only install $libraries || return 1
    # Headers and programs without what they depend on, except libbsd, which DPDK's headers include.
    (cd "$world/archives" && apt-get -qq download dpdk-dev libdpdk-dev libbsd-dev libmd-dev) ||
        return 1
    unset APT_CONFIG
}

unpack() {
    rm -rf "$root"
    mkdir -p "$root/usr/bin" "$root/usr/sbin" "$root/usr/lib" "$root/usr/lib64"
    for directory in bin sbin lib lib64; do
        ln -s "usr/$directory" "$root/$directory"
    done
    for package in "$world"/archives/*.deb; do
        dpkg-deb --fsys-tarfile "$package" | tar -x --no-same-owner -C "$root"
    done
    # What only static linking needs has its headers in packages that are not here.
    sed -i '/^Requires.private:/d' "$root/usr/lib/$triplet/pkgconfig/"libdpdk*.pc
    rm -rf "$world/archives"
    touch "$root/.complete"
}

# Runs what is below $root, with our library before the line's own drivers.
below_root() {
    libraries=$root/usr/lib/$triplet
    program=$1
    shift
    # A relative library path in a later EAL would be looked up there, so leave the source tree.
    (cd / && exec timeout 60 "$root/lib64/ld-linux-x86-64.so.2" --inhibit-cache \
        --library-path "$plugin:$libraries/dpdk/pmds-$abi.0:$libraries" \
        "$root/usr/bin/$program" "$@")
}

check() {
    line=$1
    case $line in
        24.11) suite=trixie abi=25 ;;
        25.11) suite=forky abi=26 ;;
        *) echo "no recipe for DPDK $line" >&2 && exit 2 ;;
    esac
    world=$top/$line.apt
    root=$top/$line
    if [ ! -e "$root/.complete" ]; then
        fetch || exit 77
        unpack
    fi

    export PKG_CONFIG_SYSROOT_DIR="$root"
    export PKG_CONFIG_LIBDIR="$root/usr/lib/$triplet/pkgconfig:$root/usr/share/pkgconfig"
    echo "== DPDK $(pkg-config --modversion libdpdk)"
    cargo clippy --target-dir "$top/build" --lib -- -D warnings
    # Layouts are asserted by compiling, symbols by linking without leave for undefined ones.
    cargo rustc --target-dir "$top/build" --lib --crate-type cdylib -- \
        -C link-arg=-Wl,--no-undefined
    unset PKG_CONFIG_SYSROOT_DIR PKG_CONFIG_LIBDIR

    plugin=$top/plugin-$line
    mkdir -p "$plugin"
    cp "$top/build/debug/librte_net_vhost.so" "$plugin/librte_net_vhost.so.$abi"
    nm -D --defined-only "$plugin/librte_net_vhost.so.$abi" >"$plugin/symbols"
    for function in rte_eth_vhost_get_queue_event rte_eth_vhost_get_vid_from_port_id; do
        grep -q " $function@@DPDK_$abi\$" "$plugin/symbols"
    done
    if [ "$(wc -l <"$plugin/symbols")" != 2 ]; then
        echo "more than two symbols are exported:" >&2
        cat "$plugin/symbols" >&2
        exit 1
    fi

    traffic
}

# testpmd of the line, with one vdev, polling on the core that is not $main. Without huge pages this
# runs anywhere. Driver files are given by bare name: those are looked up in the library path, where
# ours is first.
testpmd() {
    role=$1 main=$2 driver=$3 vdev=$4
    shift 4
    below_root dpdk-testpmd -l 0,1 --main-lcore "$main" --no-huge -m 128 --no-pci \
        --no-telemetry --no-shconf --file-prefix "lines-$line-$role" -d "librte_mempool_ring.so.$abi" \
        -d "librte_net_$driver.so.$abi" --vdev "$vdev" \
        -- --total-num-mbufs 4096 "$@" >"$plugin/$role.log" 2>&1
}

# Waits until a command succeeds, at most 20 s.
eventually() {
    tries=0
    until "$@" || [ "$tries" -ge 200 ]; do
        tries=$((tries + 1))
        sleep 0.1
    done
}

traffic() {
    socket=$top/$line.sock
    rm -f "$socket" "$plugin/done" "$plugin/"*.log
    {
        eventually [ -e "$plugin/done" ]
        printf '%s\n' stop 'show port info 0' 'show port xstats 0' 'port stop 0' 'port close 0' quit
    } | testpmd backend 0 vhost "net_vhost0,iface=$socket" -i --auto-start &
    backend=$!
    eventually [ -e "$socket" ]
    {
        echo 'start tx_first'
        # Its own output is buffered, but the driver's messages are not.
        eventually grep -qs 'link up' "$plugin/backend.log"
        sleep 3
        printf '%s\n' stop quit
    } | testpmd frontend 1 virtio "net_virtio_user0,path=$socket" -i ||
        echo "the frontend failed" >>"$plugin/frontend.log"
    : >"$plugin/done"
    wait "$backend" || echo "the backend failed" >>"$plugin/backend.log"

    received=$(sed -n 's/^rx_good_packets: //p' "$plugin/backend.log")
    sent=$(sed -n 's/^tx_good_packets: //p' "$plugin/backend.log")
    if grep -q '^the .*end failed' "$plugin/frontend.log" "$plugin/backend.log" ||
        ! grep -q 'Driver name: net_vhost' "$plugin/backend.log" ||
        [ "${received:-0}" -lt 1000 ] || [ "${sent:-0}" -lt 1000 ]; then
        echo "testpmd $line: packets did not flow" >&2
        tail -n 40 "$plugin/backend.log" "$plugin/frontend.log" >&2
        exit 1
    fi
    echo "== testpmd $line: $received packets received, $sent sent"
}

check "$1"
