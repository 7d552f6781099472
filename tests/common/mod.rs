//! Helpers for tests that run real processes: testpmd, dpdk-proc-info and QEMU.
//!
//! `xtask` includes this folder too, for its demo and its benchmark.
#![allow(
    dead_code,
    reason = "each test binary, and xtask, includes this folder and uses its own part of it"
)]
#![allow(
    unused_imports,
    reason = "the names below are the folder's face; no single includer uses all of them"
)]

mod driver;
mod echo;
mod guest;
mod lab;
pub(crate) mod migration;
mod namespace;
mod output;
mod pair;
mod process;
mod qmp;
pub(crate) mod streams;
mod testpmd;

pub(crate) use driver::{Driver, ours_only};
pub(crate) use echo::{after_a_kill, answering, connected};
pub(crate) use guest::{Contents, Guest, Image, Iommu, Machine, Nic, PARAMETERS};
pub(crate) use lab::{Lab, Memory, eventually, skip};
pub(crate) use namespace::Namespace;
pub(crate) use output::Output;
pub(crate) use pair::{Backend, Frontend, pair};
pub(crate) use process::Process;
pub(crate) use testpmd::{PortStats, Testpmd, parse_xstat};

/// What a helper or a test returns.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

/// What was awaited and what was seen instead, in words.
pub(crate) struct Failure(String);

/// A test's harness prints an error in its `Debug` form; that must be readable, too.
impl std::fmt::Debug for Failure {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(&self.0)
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(&self.0)
    }
}

impl<T: Into<String>> From<T> for Failure {
    fn from(words: T) -> Self {
        Self(words.into())
    }
}

/// How long an awaited event may take. Generous: the machine may be busy with other things.
pub(crate) const SOON: std::time::Duration = std::time::Duration::from_secs(30);
