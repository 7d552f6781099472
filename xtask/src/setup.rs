//! `cargo xtask setup`: packages and huge pages.

use std::fs;
use std::process::Command;
use std::time::Duration;

use crate::command::{capture, run};
use crate::common::Outcome;

/// What Debian and Ubuntu call the things that build and test need.
const PACKAGES: &[&str] = &[
    "dpdk",
    "dpdk-dev",
    "libdpdk-dev",
    "libclang-dev",
    "clang",
    "gcc",
    "g++",
    "libc6-dev",
    "pkg-config",
    "meson",
    "ninja-build",
    "qemu-system-x86",
    "busybox-static",
    "cpio",
    "iproute2",
    "valgrind",
    "python3-pyelftools",
    // Some kernels' modules are packed with it.
    "xz-utils",
];

/// Half of what we ask for is enough for two testpmd with room to spare.
const ENOUGH_PAGES: u32 = 512;
const WANTED_PAGES: u32 = 1024;
const PAGES: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";

/// Makes the machine able to build, run and test.
pub(crate) fn setup() -> Outcome {
    rust_components()?;
    machine()
}

/// Makes the machine able to build and run.
pub(crate) fn machine() -> Outcome {
    packages()?;
    huge_pages();
    Ok(())
}

/// Installs missing packages; apt is not called when there are none.
fn packages() -> Outcome {
    let missing: Vec<&str> = PACKAGES
        .iter()
        .copied()
        .filter(|package| !is_installed(package))
        .collect();
    if missing.is_empty() {
        println!("setup: all {} packages are installed", PACKAGES.len());
        return Ok(());
    }
    if capture("apt-get", &["--version"]).is_none() {
        return Err(format!(
            "this is no Debian or Ubuntu; please install the equivalents of: {}",
            missing.join(" ")
        )
        .into());
    }
    let line = format!(
        "apt-get install -y --no-install-recommends {}",
        missing.join(" ")
    );
    println!("setup: {line}");
    let mut script = format!("apt-get update && {line}");
    if !is_root() {
        if capture("sudo", &["-n", "true"]).is_none() {
            return Err(format!("packages are missing; please run: sudo {line}").into());
        }
        script = format!("sudo -n apt-get update && sudo -n {line}");
    }
    let mut shell = Command::new("sh");
    shell
        .args(["-c", &script])
        .env("DEBIAN_FRONTEND", "noninteractive");
    match run(shell, Duration::from_secs(1800))?.success {
        true => Ok(()),
        false => Err(format!("failed: {line}").into()),
    }
}

fn is_installed(package: &str) -> bool {
    let status = capture("dpkg-query", &["-W", "-f", "${db:Status-Status}", package]);
    status.is_some_and(|status| status == "installed")
}

/// `cargo fmt` and `cargo clippy` are components that a minimal toolchain lacks.
fn rust_components() -> Outcome {
    for (component, proof) in [("rustfmt", "fmt"), ("clippy", "clippy")] {
        if capture("cargo", &[proof, "--version"]).is_some() {
            continue;
        }
        println!("setup: rustup component add {component}");
        capture("rustup", &["component", "add", component]).ok_or(format!(
            "`cargo {proof}` is missing and rustup could not add it"
        ))?;
    }
    Ok(())
}

/// Reserves huge pages if there are not enough; without them testpmd runs with `--no-huge`.
fn huge_pages() {
    let reserved = || {
        let text = fs::read_to_string(PAGES).unwrap_or_default();
        text.trim().parse::<u32>().unwrap_or(0)
    };
    if reserved() < ENOUGH_PAGES {
        if is_root() {
            let _ = fs::write(PAGES, WANTED_PAGES.to_string());
        } else {
            let script = format!("echo {WANTED_PAGES} | sudo -n tee {PAGES}");
            let _ = capture("sh", &["-c", &script]);
        }
    }
    match reserved() {
        pages if pages >= ENOUGH_PAGES => println!("setup: {pages} huge pages of 2 MB"),
        pages => println!(
            "setup: {pages} huge pages of 2 MB, fewer than {ENOUGH_PAGES}: \
             testpmd may have to run with --no-huge"
        ),
    }
}

fn is_root() -> bool {
    // SAFETY: geteuid has no arguments and cannot fail.
    unsafe { libc::geteuid() == 0 }
}
