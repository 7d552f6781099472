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
mod lab;
mod output;
mod pair;
mod process;
mod testpmd;

pub(crate) use driver::Driver;
pub(crate) use lab::{Lab, Memory, skip};
pub(crate) use output::Output;
pub(crate) use pair::{Backend, Frontend, pair};
pub(crate) use process::Process;
pub(crate) use testpmd::{PortStats, Testpmd};

/// What a helper or a test returns: the text says what was awaited and what was seen instead.
pub(crate) type Outcome<T = ()> = Result<T, String>;

/// How long an awaited event may take. Generous: the machine may be busy with other things.
pub(crate) const SOON: std::time::Duration = std::time::Duration::from_secs(30);
