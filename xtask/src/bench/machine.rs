//! What the numbers depend on.

use std::fmt;
use std::fs;

use crate::command::capture;
use crate::common::Memory;

use super::tool::Tool;

/// The machine, the day and the versions.
pub(super) struct Machine {
    pub(super) date: String,
    pub(super) processor: String,
    pub(super) processors: usize,
    pub(super) kernel: String,
    pub(super) dpdk: String,
    pub(super) commit: String,
    pub(super) memory: &'static str,
    pub(super) cores: String,
}

impl Machine {
    /// This one, now.
    pub(super) fn here(tool: &Tool) -> Self {
        let first_line = |program: &str, args: &[&str]| {
            let text = capture(program, args).unwrap_or_default();
            text.lines().next().unwrap_or("unknown").to_owned()
        };
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let of = |name: &str| {
            let mut lines = cpuinfo.lines().filter(|line| line.starts_with(name));
            let value = lines.next().and_then(|line| line.split_once(": "));
            value.map_or("unknown", |(_, value)| value).to_owned()
        };
        let cores = tool.cores();
        Self {
            date: first_line("date", &["-u", "+%Y-%m-%d %H:%M UTC"]),
            processor: format!(
                "{}, family {} model {}",
                of("model name"),
                of("cpu family"),
                of("model\t")
            ),
            processors: std::thread::available_parallelism().map_or(0, usize::from),
            // What follows the number names the builder.
            kernel: first_line("uname", &["-r"])
                .split('-')
                .next()
                .unwrap_or_default()
                .to_owned(),
            dpdk: first_line("pkg-config", &["--modversion", "libdpdk"]),
            commit: first_line("git", &["describe", "--always", "--dirty"]),
            memory: match tool.memory() {
                Memory::HugePages => "huge pages",
                Memory::Ordinary => "ordinary pages",
            },
            cores: format!(
                "measured on processor {}, the peer on {}",
                cores.measure, cores.control
            ),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "{}; {}, {} processors, Linux {}, DPDK {}, {}; commit {}; {}",
            self.date,
            self.processor,
            self.processors,
            self.kernel,
            self.dpdk,
            self.memory,
            self.commit,
            self.cores
        )
    }
}
