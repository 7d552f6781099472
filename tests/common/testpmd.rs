//! Stock `dpdk-testpmd`, driven by its command line.

use std::fs;
use std::process::Command;
use std::time::Duration;

use super::{Driver, Lab, Outcome, Process, SOON};

/// A command with a short answer and no effect. Its last line tells that all commands before it are
/// done: the prompt cannot, because testpmd writes it one character at a time and lines of other
/// threads fall in between.
const MARKER: &str = "show config txpkts";
const MARKER_FIRST: &str = "Number of segments:";
const MARKER_LAST: &str = "Split packet:";

/// A running testpmd.
pub(crate) struct Testpmd {
    process: Process,
    name: String,
}

/// What `show port stats` tells of one port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PortStats {
    /// Packets that came in.
    pub(crate) rx_packets: u64,
    /// Packets that went out.
    pub(crate) tx_packets: u64,
    /// Their bytes, coming in.
    pub(crate) rx_bytes: u64,
    /// Their bytes, going out.
    pub(crate) tx_bytes: u64,
}

impl Testpmd {
    /// Starts it; `eal` and `own` are the options before and after `--`. Does not wait.
    pub(crate) fn spawn(lab: &Lab, name: &str, eal: &[String], own: &[&str]) -> Outcome<Self> {
        Self::spawn_under(&[], lab, name, eal, own)
    }

    /// Starts it by a program, with its arguments, that executes the command line that it is given.
    pub(crate) fn spawn_under(
        wrapper: &[&str],
        lab: &Lab,
        name: &str,
        eal: &[String],
        own: &[&str],
    ) -> Outcome<Self> {
        // Lines must come when they are printed.
        let mut line = [wrapper, &["stdbuf", "-oL", "dpdk-testpmd"]]
            .concat()
            .into_iter();
        let mut command = Command::new(line.next().unwrap_or_default());
        command.args(line).args(["--no-pci", "--no-telemetry"]);
        if !eal.iter().any(|option| option == "--lcores") {
            // Two polling threads on few processors: let them float.
            command.args(["--lcores", "0@(0,1),1@(0,1)"]);
        }
        command.args(["--file-prefix", &lab.file_prefix(name)]);
        if !eal.iter().any(|option| option == "--huge-dir") {
            command.args(lab.memory.eal_args());
        }
        command.args(eal);
        command.args(["--", "-i", "--total-num-mbufs=8192", "--disable-link-check"]);
        command.args(own);
        Ok(Self {
            process: Process::spawn(lab, name, command)?,
            name: name.to_owned(),
        })
    }

    /// Starts it and waits until it takes commands.
    pub(crate) fn start(lab: &Lab, name: &str, eal: &[String], own: &[&str]) -> Outcome<Self> {
        let mut testpmd = Self::spawn(lab, name, eal, own)?;
        testpmd.ready()?;
        Ok(testpmd)
    }

    /// Waits until it takes commands.
    pub(crate) fn ready(&mut self) -> Outcome {
        self.run("").map(|_| ())
    }

    /// The process behind it.
    pub(crate) fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Runs one command and returns what was printed up to its end, events included.
    pub(crate) fn run(&mut self, command: &str) -> Outcome<String> {
        let mark = self.process.stdout.mark();
        self.process.write_line(command)?;
        self.process.write_line(MARKER)?;
        let stdout = &self.process.stdout;
        let end = stdout.wait_for(MARKER_LAST, mark, SOON).map_err(|error| {
            format!("command `{command}`: {error}{}", self.process.stderr.tail())
        })?;
        let mut answer = stdout.since(mark);
        answer.truncate(end - mark);
        if let Some(start) = answer.rfind(MARKER_FIRST) {
            answer.truncate(start);
        }
        Ok(answer)
    }

    /// Where its standard output stands; see [`Testpmd::wait_for`].
    pub(crate) fn mark(&self) -> usize {
        self.process.stdout.mark()
    }

    /// Waits for text on standard output after `mark`.
    pub(crate) fn wait_for(&self, text: &str, mark: usize) -> Outcome<usize> {
        self.process.stdout.wait_for(text, mark, SOON)
    }

    /// Waits for a line of the log (standard error), from the beginning.
    pub(crate) fn wait_for_log(&self, text: &str) -> Outcome {
        self.process.stderr.wait_for(text, 0, SOON).map(|_| ())
    }

    /// Everything logged so far.
    pub(crate) fn log(&self) -> String {
        self.process.stderr.since(0)
    }

    /// Waits until the link of a port is up, or down.
    pub(crate) fn wait_for_link(&mut self, port: u16, up: bool) -> Outcome {
        let wanted = if up {
            "Link status: up"
        } else {
            "Link status: down"
        };
        let mut info = String::new();
        for _ in 0..SOON.as_millis() / 50 {
            info = self.run(&format!("show port info {port}"))?;
            if info.contains(wanted) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Err(format!("{}: port {port}: no `{wanted}` in\n{info}", self.name).into())
    }

    /// The basic statistics of a port.
    pub(crate) fn stats(&mut self, port: u16) -> Outcome<PortStats> {
        let text = self.run(&format!("show port stats {port}"))?;
        let stats = parse_stats(&text);
        Ok(stats.ok_or_else(|| format!("{}: no statistics in\n{text}", self.name))?)
    }

    /// The extended statistics of a port, in their order.
    pub(crate) fn xstats(&mut self, port: u16) -> Outcome<Vec<(String, u64)>> {
        let text = self.run(&format!("show port xstats {port}"))?;
        Ok(text.lines().filter_map(parse_xstat).collect())
    }

    /// Waits until a port has both received and sent `more` packets since `before`.
    pub(crate) fn wait_for_packets(
        &mut self,
        port: u16,
        before: PortStats,
        more: u64,
    ) -> Outcome<PortStats> {
        let mut now = before;
        for _ in 0..SOON.as_millis() / 100 {
            now = self.stats(port)?;
            if now.rx_packets >= before.rx_packets + more
                && now.tx_packets >= before.tx_packets + more
            {
                return Ok(now);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Err(format!(
            "{}: port {port}: {more} packets did not flow both ways, from {before:?} to {now:?}\n{}",
            self.name,
            self.process.stderr.tail()
        ).into())
    }

    /// The lines about ethdev events so far, such as `Port 0: link state change event`.
    pub(crate) fn events(&self) -> Vec<String> {
        let text = self.process.stdout.since(0);
        let lines = text.lines().map(str::trim);
        let events = lines.filter(|line| line.starts_with("Port ") && line.ends_with(" event"));
        events.map(str::to_owned).collect()
    }

    /// Is the port served by this plugin? It must be loaded, and the distribution's driver, which
    /// has a thread for its sockets as soon as it serves a port, must not be at work.
    pub(crate) fn runs_the_plugin(&self, driver: &Driver) -> Outcome<bool> {
        let Driver::Plugin(path) = driver else {
            return Ok(false);
        };
        let folder = format!("/proc/{}", self.process.id());
        let read = |name: &str| {
            fs::read_to_string(format!("{folder}/{name}"))
                .map_err(|error| format!("{folder}/{name}: {error}"))
        };
        let loaded = read("maps")?.contains(&path.display().to_string());
        let threads = fs::read_dir(format!("{folder}/task")).map_err(|error| error.to_string())?;
        let mut stock_at_work = false;
        for thread in threads.flatten() {
            let name = fs::read_to_string(thread.path().join("comm")).unwrap_or_default();
            stock_at_work |= matches!(name.trim(), "vhost-events" | "dpdk-vhost-evt");
        }
        Ok(loaded && !stock_at_work)
    }

    /// Ends it by its own command and checks that it ended well.
    pub(crate) fn quit(mut self) -> Outcome {
        self.process.write_line("quit")?;
        self.process.wait_success(SOON)
    }

    /// Ends it with SIGKILL.
    pub(crate) fn kill(mut self) {
        self.process.kill();
    }
}

/// Reads the block that `show port stats` prints.
fn parse_stats(text: &str) -> Option<PortStats> {
    let value = |name: &str| -> Option<u64> {
        let start = text.find(name)? + name.len();
        text[start..].split_whitespace().next()?.parse().ok()
    };
    Some(PortStats {
        rx_packets: value("RX-packets:")?,
        tx_packets: value("TX-packets:")?,
        rx_bytes: value("RX-bytes:")?,
        tx_bytes: value("TX-bytes:")?,
    })
}

/// Reads a line `name: value`.
pub(crate) fn parse_xstat(line: &str) -> Option<(String, u64)> {
    let (name, value) = line.trim().split_once(": ")?;
    let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    Some((
        name.to_owned(),
        value.trim().parse().ok().filter(|_| plain)?,
    ))
}
