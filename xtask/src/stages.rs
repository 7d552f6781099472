//! The stages of `cargo xtask test`.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::command::{Finished, cargo, root, run, target};
use crate::common::{Driver, Outcome};
use crate::demo::built_driver;
use crate::fuzz;
use crate::panic_free::panic_free;

/// One line of the final table.
pub(crate) struct Stage {
    /// What `--only` takes.
    pub(crate) name: &'static str,
    /// What it does.
    pub(crate) what: &'static str,
    /// Left out by `--quick`.
    pub(crate) slow: bool,
    /// Runs it; `Err` counts as one failure.
    pub(crate) run: fn() -> Outcome<Counts>,
}

/// In the order in which they run: what is quick to tell comes first.
pub(crate) const STAGES: [Stage; 12] = [
    Stage {
        name: "fmt",
        what: "cargo fmt --check",
        slow: false,
        run: format,
    },
    Stage {
        name: "clippy",
        what: "cargo clippy, with and without DPDK",
        slow: false,
        run: clippy,
    },
    Stage {
        name: "unit",
        what: "unit and property tests, without DPDK",
        slow: false,
        run: unit,
    },
    Stage {
        name: "loom",
        what: "the models of the gate and of notifications",
        slow: true,
        run: loom,
    },
    Stage {
        name: "fuzz",
        what: "each fuzz target for a moment",
        slow: true,
        run: fuzz_targets,
    },
    Stage {
        name: "dpdk",
        what: "the tests that need DPDK's headers, and the documentation's",
        slow: false,
        run: dpdk,
    },
    Stage {
        name: "panic-free",
        what: "no burst can reach a panic, a lock or a division",
        slow: false,
        run: panic_free_bursts,
    },
    Stage {
        name: "c",
        what: "the C harness in c-tests, by meson",
        slow: false,
        run: c_harness,
    },
    Stage {
        name: "testpmd",
        what: "pairs of testpmd, with the plugin as it is shipped",
        slow: false,
        run: testpmd,
    },
    Stage {
        name: "guest",
        what: "a Linux guest in QEMU",
        slow: true,
        run: guest,
    },
    Stage {
        name: "vfio",
        what: "DMA engines in a guest with an IOMMU",
        slow: true,
        run: vfio,
    },
    Stage {
        name: "lines",
        what: "the other DPDK lines: builds, symbols, packets",
        slow: true,
        run: dpdk_lines,
    },
];

/// What a stage counted.
#[derive(Default)]
pub(crate) struct Counts {
    /// Tests that passed.
    pub(crate) passed: usize,
    /// Tests that failed.
    pub(crate) failed: usize,
    /// Why each of the others did not run.
    pub(crate) skips: Vec<String>,
}

impl Counts {
    /// A single failure.
    pub(crate) fn failed() -> Self {
        Self {
            failed: 1,
            ..Self::default()
        }
    }

    /// Nothing ran.
    pub(crate) fn skipped(reason: String) -> Self {
        Self {
            skips: vec![reason],
            ..Self::default()
        }
    }

    /// Sums up.
    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skips.extend(other.skips);
    }

    /// A test that skipped itself counts as passed in Rust's harness; it left its reason here.
    fn note_skips(&mut self, list: &Path) {
        for reason in fs::read_to_string(list).unwrap_or_default().lines() {
            self.passed = self.passed.saturating_sub(1);
            self.skips.push(reason.to_owned());
        }
    }

    /// A program that checks one thing.
    fn of_check(finished: &Finished) -> Self {
        match finished.success {
            true => Self {
                passed: 1,
                ..Self::default()
            },
            false => Self::failed(),
        }
    }

    /// Reads what Rust's test harness printed, one result line for each test binary.
    fn of_cargo_test(finished: &Finished) -> Self {
        let mut counts = Self::default();
        for line in finished.text.lines() {
            if let Some(result) = line.strip_prefix("test result: ") {
                counts.passed += number_before(result, " passed");
                counts.failed += number_before(result, " failed");
            }
            let ignored = line
                .strip_prefix("test ")
                .and_then(|rest| rest.split_once(" ... ignored"));
            if let Some((test, reason)) = ignored {
                let reason = reason.strip_prefix(", ").unwrap_or("marked #[ignore]");
                counts.skips.push(format!("{test}: {reason}"));
            }
        }
        // It did not build, or died before it could count.
        if !finished.success && counts.failed == 0 {
            counts.failed = 1;
        }
        counts
    }

    /// Reads our own scripts' last line, `N passed, N failed`, and the lines `SKIPPED test: reason`.
    fn of_script(finished: &Finished) -> Self {
        let last = finished.text.lines().last().unwrap_or_default();
        let skips = finished.text.lines();
        let skips = skips.filter_map(|line| line.strip_prefix("SKIPPED "));
        let mut counts = Self {
            passed: number_before(last, " passed"),
            failed: number_before(last, " failed"),
            skips: skips.map(str::to_owned).collect(),
        };
        if !finished.success && counts.failed == 0 {
            counts.failed = 1;
        }
        counts
    }

    /// Reads meson's summary: `Ok: 3`, `Fail: 0`, `Timeout: 0`, `Skipped: 1`, …
    fn of_meson_test(finished: &Finished) -> Self {
        let value = |name: &str| -> usize {
            let line = finished
                .text
                .lines()
                .find_map(|line| line.trim().strip_prefix(name));
            line.and_then(|rest| rest.trim().parse().ok()).unwrap_or(0)
        };
        let skipped = finished.text.lines().filter(|line| line.contains(" SKIP "));
        let mut counts = Self {
            passed: value("Ok:") + value("Expected Fail:"),
            failed: value("Fail:") + value("Timeout:") + value("Unexpected Pass:"),
            skips: skipped
                .map(|line| format!("meson: {}", line.trim()))
                .collect(),
        };
        if !finished.success && counts.failed == 0 {
            counts.failed = 1;
        }
        counts
    }
}

fn number_before(text: &str, word: &str) -> usize {
    let before = text.find(word).map_or("", |at| &text[..at]);
    let number = before.rsplit(|c: char| !c.is_ascii_digit()).next();
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// Nothing here takes half of this; whatever does hangs.
const PATIENCE: Duration = Duration::from_secs(3600);

const NO_DPDK: [&str; 3] = ["--no-default-features", "--features", "testing"];

fn format() -> Outcome<Counts> {
    let mut counts = Counts::default();
    // The fuzz targets are a workspace of their own.
    for manifest in ["Cargo.toml", "fuzz/Cargo.toml"] {
        let check = cargo(&["fmt", "--all", "--check", "--manifest-path", manifest]);
        counts.add(Counts::of_check(&run(check, PATIENCE)?));
    }
    Ok(counts)
}

fn clippy() -> Outcome<Counts> {
    let mut counts = Counts::default();
    let everything = [
        "--workspace",
        "--features",
        "guest-devices",
        "--all-targets",
    ];
    let without_dpdk = [&NO_DPDK[..], &["--all-targets"]].concat();
    // A workspace of its own, which nothing else would tell of a change that breaks it.
    let fuzz = [
        "--manifest-path",
        "fuzz/Cargo.toml",
        "--target-dir",
        "target/fuzz",
    ];
    for what in [&everything[..], &without_dpdk, &fuzz] {
        let mut command = cargo(&["clippy"]);
        command.args(what).args(["--", "-D", "warnings"]);
        counts.add(Counts::of_check(&run(command, PATIENCE)?));
    }
    Ok(counts)
}

fn unit() -> Outcome<Counts> {
    let mut command = cargo(&["test", "--no-fail-fast", "--workspace"]);
    // The examples in the documentation come with the next stage but one.
    command.args(["--lib", "--bins", "--tests"]);
    command.args(NO_DPDK);
    Ok(Counts::of_cargo_test(&run(command, PATIENCE)?))
}

fn loom() -> Outcome<Counts> {
    let folder = target().join("loom");
    let mut command = cargo(&["test", "--release", "--lib"]);
    command.args(NO_DPDK).arg("--target-dir").arg(folder);
    // The name selects the tests; the rest of the crate does not run under the model.
    command.arg("model").env("RUSTFLAGS", "--cfg loom");
    let counts = Counts::of_cargo_test(&run(command, PATIENCE)?);
    match counts.passed + counts.failed {
        0 => Err("there is no model to run".into()),
        _ => Ok(counts),
    }
}

fn fuzz_targets() -> Outcome<Counts> {
    fuzz::run_targets(&[], fuzz::SECONDS)
}

fn dpdk() -> Outcome<Counts> {
    let mut command = cargo(&["test", "--no-fail-fast", "--features", "testing", "--lib"]);
    for name in test_files(|name| !runs_testpmd(name) && !runs_a_guest(name))? {
        command.args(["--test", &name]);
    }
    let mut counts = Counts::of_cargo_test(&run(command, PATIENCE)?);
    let documentation = cargo(&["test", "--no-fail-fast", "--doc"]);
    counts.add(Counts::of_cargo_test(&run(documentation, PATIENCE)?));
    Ok(counts)
}

fn panic_free_bursts() -> Outcome<Counts> {
    panic_free(&[])?;
    Ok(Counts {
        passed: 1,
        ..Counts::default()
    })
}

fn c_harness() -> Outcome<Counts> {
    let build = root().join("build");
    if !build.join("build.ninja").exists() {
        let mut setup = Command::new("meson");
        setup.args(["setup", "build", "meson"]).current_dir(root());
        if !run(setup, PATIENCE)?.success {
            return Err("meson setup build meson: failed".into());
        }
    }
    let mut test = Command::new("meson");
    test.args(["test", "-C", "build", "--print-errorlogs"])
        .current_dir(root());
    let counts = Counts::of_meson_test(&run(test, PATIENCE)?);
    match counts.passed + counts.failed {
        0 => Err("meson ran no test".into()),
        _ => Ok(counts),
    }
}

fn testpmd() -> Outcome<Counts> {
    process_tests(runs_testpmd)
}

fn guest() -> Outcome<Counts> {
    process_tests(runs_a_guest)
}

fn vfio() -> Outcome<Counts> {
    const FEATURES: [&str; 3] = ["--no-default-features", "--features", "guest-devices"];
    let Driver::Plugin(plugin) = built_driver()? else {
        return Ok(Counts::skipped(
            "vfio: the stock driver has no engines".into(),
        ));
    };
    let skips = target().join("skipped-tests");
    let _ = fs::remove_file(&skips);
    let mut command = cargo(&["test", "--test", "vfio"]);
    command.args(FEATURES);
    // What is inside runs in the guest, which says how it went.
    command.args(["--", "--test-threads=1", "--skip", "inside::"]);
    command
        .env("NET_VHOST_PLUGIN", plugin)
        .env("NET_VHOST_SKIP_LIST", &skips);
    let mut counts = Counts::of_cargo_test(&run(command, PATIENCE)?);
    counts.note_skips(&skips);
    Ok(counts)
}

fn dpdk_lines() -> Outcome<Counts> {
    let script = Command::new(root().join(".ci/dpdk-lines.sh"));
    Ok(Counts::of_script(&run(script, PATIENCE)?))
}

/// Tests that load the plugin into other programs: one after the other, with the release build.
fn process_tests(which: fn(&str) -> bool) -> Outcome<Counts> {
    let plugin = match built_driver()? {
        Driver::Stock => "stock".into(),
        Driver::Plugin(path) => path.into_os_string(),
    };
    let skips = target().join("skipped-tests");
    let _ = fs::remove_file(&skips);
    let mut command = cargo(&["test", "--no-fail-fast"]);
    for name in test_files(which)? {
        command.args(["--test", &name]);
    }
    command
        .args(["--", "--test-threads=1"])
        .env("NET_VHOST_PLUGIN", plugin)
        .env("NET_VHOST_SKIP_LIST", &skips);
    let mut counts = Counts::of_cargo_test(&run(command, PATIENCE)?);
    counts.note_skips(&skips);
    Ok(counts)
}

fn runs_testpmd(name: &str) -> bool {
    name.starts_with("testpmd")
}

fn runs_a_guest(name: &str) -> bool {
    name.starts_with("guest")
}

/// The names of the integration tests in `tests` that are wanted.
fn test_files(wanted: impl Fn(&str) -> bool) -> Outcome<Vec<String>> {
    let folder = root().join("tests");
    let entries = fs::read_dir(&folder).map_err(|error| format!("tests: {error}"))?;
    let mut names: Vec<String> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
        .filter(|name| wanted(name))
        .collect();
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finished(success: bool, text: &str) -> Finished {
        Finished {
            success,
            text: text.to_owned(),
        }
    }

    #[test]
    fn results_of_several_test_binaries_are_summed() {
        let text = "\
            test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out\n\
            test slow ... ignored, needs an hour\n\
            test result: FAILED. 12 passed; 4 failed; 0 ignored; 0 measured; 0 filtered out\n";

        let counts = Counts::of_cargo_test(&finished(false, text));

        assert_eq!((counts.passed, counts.failed), (15, 4));
        assert_eq!(counts.skips, ["slow: needs an hour"]);
    }

    #[test]
    fn a_test_run_that_died_without_a_result_counts_as_one_failure() {
        let counts = Counts::of_cargo_test(&finished(false, "error: could not compile"));

        assert_eq!((counts.passed, counts.failed), (0, 1));
    }

    #[test]
    fn a_script_that_stopped_early_counts_as_one_failure() {
        let good = Counts::of_script(&finished(true, "SKIPPED a: b\n5 passed, 0 failed\n"));
        let bad = Counts::of_script(&finished(false, "no such command\n"));

        assert_eq!((good.passed, good.failed), (5, 0));
        assert_eq!(good.skips, ["a: b"]);
        assert_eq!((bad.passed, bad.failed), (0, 1));
    }

    #[test]
    fn mesons_summary_and_its_skips_are_read() {
        let text = "\
            2/3 net_vhost:header SKIP 0.01s\n\
            Ok:                 2   \n\
            Expected Fail:      0   \n\
            Fail:               1   \n\
            Unexpected Pass:    0   \n\
            Skipped:            1   \n\
            Timeout:            1   \n";

        let counts = Counts::of_meson_test(&finished(false, text));

        assert_eq!((counts.passed, counts.failed), (2, 2));
        assert_eq!(counts.skips, ["meson: 2/3 net_vhost:header SKIP 0.01s"]);
    }
}
