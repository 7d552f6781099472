#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""What the plugin's file shows to a linker, a loader and dpdk-pmdinfo.py.

usage: exports.py PLUGIN DPDK_VERSION
"""
import json
import os
import re
import subprocess
import sys

# The ABI number of each DPDK line: the SONAME's end and the version node.
ABI = {"22.11": "23", "24.11": "25", "25.11": "26"}
FUNCTIONS = {"rte_eth_vhost_get_queue_event", "rte_eth_vhost_get_vid_from_port_id"}
PARAMETERS = (
    "iface=<ifc> queues=<int> client=<0|1> iommu-support=<0|1> postcopy-support=<0|1> "
    "tso=<0|1> linear-buffer=<0|1> ext-buffer=<0|1>"
)
SKIPPED = 77


def output(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def soname(plugin, abi):
    names = re.findall(r"\(SONAME\).*\[(.*)\]", output("readelf", "-dW", plugin))
    assert names == [f"librte_net_vhost.so.{abi}"], names


def exported_symbols(plugin, abi):
    symbols = set()
    for line in output("nm", "-D", "--defined-only", "--with-symbol-versions", plugin).splitlines():
        kind, name = line.split()[-2:]
        # The version node itself is an absolute symbol.
        if kind != "A":
            symbols.add(name)
    expected = {f"{name}@@DPDK_{abi}" for name in FUNCTIONS}
    assert symbols == expected, symbols


def no_vhost_library(plugin, _abi):
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", output("readelf", "-dW", plugin))
    assert not any(name.startswith("librte_vhost") for name in needed), needed
    # testpmd does not bring these: a plugin that needs them must say so itself.
    defined = {"librte_ethdev", "librte_eal", "librte_mempool", "librte_mbuf"}
    missing = {name for name in defined if not any(n.startswith(name) for n in needed)}
    undefined = output("nm", "-D", "--undefined-only", plugin)
    uses = {
        "librte_ethdev": "rte_eth_",
        "librte_mempool": "rte_mempool_",
        "librte_mbuf": "rte_pktmbuf_",
        "librte_eal": "rte_malloc",
    }
    for name in missing:
        assert uses[name] not in undefined, f"{name} is used and not named"


def no_text_relocations_no_exec_stack(plugin, _abi):
    assert "TEXTREL" not in output("readelf", "-dW", plugin)
    stack = [l for l in output("readelf", "-lW", plugin).splitlines() if "GNU_STACK" in l]
    assert stack and "E" not in stack[0].split()[-2], stack


def pmdinfo(plugin, _abi):
    text = output("dpdk-pmdinfo.py", plugin)
    drivers = json.loads(text[text.index("[") :])
    assert [d["name"] for d in drivers] == ["net_vhost"], drivers
    # Stock lists these; more may follow.
    assert drivers[0]["params"].strip().startswith(PARAMETERS), drivers[0]["params"]


def main():
    plugin, version = sys.argv[1:]
    version = ".".join(version.split(".")[:2])
    if plugin == "stock":
        driver_dir = output("pkg-config", "--variable=libdir", "libdpdk").strip()
        abi = ABI[version]
        plugin = f"{driver_dir}/dpdk/pmds-{abi}.0/librte_net_vhost.so.{abi}"
    if version not in ABI or not os.path.exists(plugin):
        print(f"# no plugin for DPDK {version}: {plugin}")
        return SKIPPED
    failed = 0
    tests = [
        (soname, "the SONAME is the one of the DPDK line"),
        (exported_symbols, "the two functions are exported, versioned, and nothing else"),
        (no_vhost_library, "every library it uses is named, and librte_vhost is not used"),
        (no_text_relocations_no_exec_stack, "no text relocations, no executable stack"),
        (pmdinfo, "dpdk-pmdinfo.py reads name and parameters"),
    ]
    if sys.argv[1] == "stock":
        tests = [test for test in tests if test[0] is not no_vhost_library]
    for test, sentence in tests:
        try:
            test(plugin, ABI[version])
            print(f"ok - {sentence}")
        except (AssertionError, subprocess.CalledProcessError, ValueError, KeyError) as error:
            failed += 1
            print(f"# {error}\nnot ok - {sentence}")
    print(f"{len(tests) - failed} passed, {failed} failed")
    return 1 if failed else 0


sys.exit(main())
