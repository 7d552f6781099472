//! Who may import whom, and where unsafe code may live.
#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};

/// Each module, and which of ours it may import beside itself. All but `virtqueue` and `datapath`,
/// which run on an lcore, may also import `log`.
const IMPORTS: &[(&str, &[&str])] = &[
    ("exports", &["port", "guard"]),
    (
        "port",
        &[
            "session",
            "datapath",
            "virtqueue",
            "dma",
            "devargs",
            "dpdk",
            "guard",
        ],
    ),
    ("session", &["virtqueue", "memory"]),
    ("datapath", &["virtqueue", "virtio_net", "dma", "memory"]),
    ("dma", &["memory"]),
    ("virtqueue", &["memory"]),
    ("memory", &[]),
    ("virtio_net", &[]),
    ("devargs", &[]),
    ("dpdk", &[]),
    ("guard", &[]),
    ("log", &[]),
];

/// The only file of `dma` that may import `dpdk`.
const DMADEV: &str = "dma/dmadev.rs";

/// Files and folders in which unsafe code is allowed.
const UNSAFE: &[&str] = &[
    "exports.rs",
    "guard.rs",
    "dpdk/",
    "port/ops.rs",
    "port/ops/queues.rs",
    "port/ops/statistics.rs",
    "port/burst.rs",
    "port/lane.rs",
    "port/large.rs",
    "port/queue.rs",
    "port/packet.rs",
    "port/packet/tests.rs",
    "port/probe.rs",
    "port/shared.rs",
    "port/vfio.rs",
    "virtqueue/gate.rs",
    "datapath/copy.rs",
    "datapath/mover.rs",
    "datapath/offloaded/enqueue.rs",
    "datapath/offloaded/fill.rs",
    // Calls what is compiled for more than every CPU.
    "datapath/level.rs",
    "memory/shared.rs",
    "memory/shared/arrays.rs",
    "memory/lookaside.rs",
    "memory/region.rs",
    "memory/uffd.rs",
    "dma/dmadev.rs",
    "dma/dmadev/",
    "dma/mod.rs",
    "dma/flight.rs",
    "dma/flight/tests.rs",
    "dma/channel.rs",
    "dma/channel/tests.rs",
    "dma/software.rs",
    "dma/software/tests.rs",
    "dma/idxd/char_device.rs",
    "dma/idxd/open_vfio.rs",
    "dma/idxd/portal.rs",
    "dma/idxd/queue.rs",
    "dma/idxd/queue/report.rs",
    "dma/idxd/tests.rs",
    "dma/idxd/tests/files.rs",
    "dma/vfio/function.rs",
    "dma/vfio/ioctl.rs",
    "dma/vfio/memory.rs",
    "dma/vfio/type1.rs",
    "dma/ioat/mod.rs",
    "dma/ioat/tests.rs",
    "testing/dma/",
    "testing/packet.rs",
];

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// All source files, by their path below `src`.
fn sources() -> Vec<(String, String)> {
    let mut folders = vec![src()];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ext| ext == "rs") {
                let name = path.strip_prefix(src()).unwrap().to_str().unwrap();
                files.push((name.to_owned(), fs::read_to_string(&path).unwrap()));
            }
        }
    }
    assert!(files.len() > 20, "where are the sources?");
    files
}

/// The top-level module that a file belongs to.
fn module(file: &str) -> &str {
    let first = file.split('/').next().unwrap();
    first.strip_suffix(".rs").unwrap_or(first)
}

fn is_test(file: &str) -> bool {
    module(file) == "testing" || file.ends_with("/tests.rs") || file.contains("/tests/")
}

/// The lines of code, without comments and without what is only there for tests.
fn code(text: &str) -> impl Iterator<Item = &str> {
    let mut lines = text.lines();
    let mut code = Vec::new();
    while let Some(line) = lines.next() {
        if line.starts_with("#[cfg(test)]") || line.starts_with("#[cfg(all(test") {
            let item = lines.find(|line| !line.starts_with("#[")).unwrap_or("");
            if item.ends_with('{') {
                lines.find(|&line| line == "}");
            }
        } else if !line.trim_start().starts_with("//") {
            code.push(line);
        }
    }
    code.into_iter()
}

/// The modules that a line names as `crate::module` or `crate::{module, …}`.
fn named(line: &str) -> Vec<&str> {
    let until = |text| -> &str {
        let end = |c: char| !(c.is_alphanumeric() || c == '_');
        str::split(text, end).next().unwrap_or_default()
    };
    let mut modules = Vec::new();
    for (at, start) in line.match_indices("crate::") {
        let rest = &line[at + start.len()..];
        match rest.strip_prefix('{') {
            Some(list) => {
                let list = list.split('}').next().unwrap_or_default();
                modules.extend(list.split(',').map(|item| until(item.trim())));
            }
            None => modules.push(until(rest)),
        }
    }
    modules
}

#[test]
fn imports_go_downwards_only() {
    let mut wrong = Vec::new();
    for (file, text) in sources() {
        let from = module(&file);
        if is_test(&file) || from == "lib" {
            continue;
        }
        let Some((_, allowed)) = IMPORTS.iter().find(|(module, _)| *module == from) else {
            wrong.push(format!("{file}: module {from} is not in the table"));
            continue;
        };
        let on_an_lcore = ["virtqueue", "datapath"].contains(&from);
        for line in code(&text) {
            let mut named = named(line);
            if line.contains("log::") && !line.contains("crate::log") {
                named.push("log"); // the crate
            }
            for to in named {
                let fine = to == from
                    || allowed.contains(&to)
                    || (to == "log" && !on_an_lcore)
                    || (to == "dpdk" && file == DMADEV);
                if !fine {
                    wrong.push(format!("{file}: {}", line.trim()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_module_of_the_crate_is_in_the_table() {
    let root = fs::read_to_string(src().join("lib.rs")).unwrap();
    for module in root.lines().filter_map(|line| {
        let name = line.trim_start_matches("pub ").strip_prefix("mod ")?;
        name.strip_suffix(';')
    }) {
        let known = module == "testing" || IMPORTS.iter().any(|(known, _)| *known == module);
        assert!(known, "{module}");
    }
}

#[test]
fn unsafe_code_is_forbidden_outside_the_list() {
    let mut wrong = Vec::new();
    for (file, text) in sources() {
        let folder = |entry: &str| entry.ends_with('/') && file.starts_with(entry);
        if UNSAFE.iter().any(|&entry| file == entry || folder(entry)) {
            continue;
        }
        // `forbid` reaches into child modules, so a parent of a listed file cannot have it.
        let parent = file == "lib.rs" || file.ends_with("/mod.rs");
        let forbids = text.lines().any(|line| line == "#![forbid(unsafe_code)]");
        let uses = code(&text).any(|line| {
            let words = [
                "unsafe {",
                "unsafe fn",
                "unsafe impl",
                "unsafe extern",
                "unsafe(",
            ];
            words.iter().any(|word| line.contains(word))
        });
        if uses || !(forbids || parent) {
            wrong.push(file);
        }
    }
    assert!(wrong.is_empty(), "unsafe code is possible in {wrong:?}");
}
