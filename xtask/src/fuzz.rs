//! `cargo xtask fuzz`: each fuzz target for a bounded time, with the compiler that is here.
//!
//! libFuzzer and AddressSanitizer come with every compiler; only the flags that switch them on are
//! kept from stable ones, unless `RUSTC_BOOTSTRAP` says that one knows.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::command::{Finished, cargo, interrupted, root, run, target};
use crate::common::Outcome;
use crate::stages::Counts;

/// Seconds for each target, unless the user has more.
pub(crate) const SECONDS: u32 = 20;

/// Building takes a minute or two, and a target ends itself.
const PATIENCE: Duration = Duration::from_secs(1800);

/// Edge coverage that libFuzzer reads, in all code of the targets.
const FLAGS: [&str; 7] = [
    "--cfg=fuzzing",
    "-Zsanitizer=address",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];

/// The command of the user: targets by name (none: all), and how long.
pub(crate) fn fuzz(args: &[String]) -> Outcome<bool> {
    let seconds = crate::number_option(args, "--seconds", SECONDS)?;
    let mut names = Vec::new();
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        match arg.as_str() {
            "--seconds" => drop(rest.next()),
            name => names.push(name),
        }
    }
    let counts = run_targets(&names, seconds)?;
    println!("{} passed, {} failed", counts.passed, counts.failed);
    Ok(counts.failed == 0)
}

/// Builds and runs the targets of these names, or all.
pub(crate) fn run_targets(names: &[&str], seconds: u32) -> Outcome<Counts> {
    let all = targets()?;
    if let Some(name) = names.iter().find(|name| !all.iter().any(|t| t == *name)) {
        return Err(format!("no fuzz target {name}; there are {}", all.join(", ")).into());
    }
    let wanted = |name: &String| names.is_empty() || names.contains(&name.as_str());
    let folder = build()?;
    let mut counts = Counts::default();
    let mut table = Vec::new();
    for name in all.into_iter().filter(wanted) {
        if interrupted() {
            break;
        }
        let finished = run_target(&folder.join(&name), &name, seconds)?;
        let result = read(&finished);
        match result.is_some() {
            true => counts.passed += 1,
            false => counts.failed += 1,
        }
        table.push((name, result));
    }
    println!(
        "\n{:<12} {:>10} {:>8} {:>9} {:>8}",
        "target", "inputs", "edges", "features", "corpus"
    );
    for (name, result) in table {
        match result {
            Some(seen) => println!(
                "{name:<12} {:>10} {:>8} {:>9} {:>8}",
                seen.inputs, seen.edges, seen.features, seen.corpus
            ),
            None => println!("{name:<12} FAILED: see above; the input is in target/fuzz/findings"),
        }
    }
    Ok(counts)
}

/// The names of all targets, from the files that there are.
fn targets() -> Outcome<Vec<String>> {
    let folder = root().join("fuzz/fuzz_targets");
    let entries = fs::read_dir(&folder).map_err(|error| format!("fuzz_targets: {error}"))?;
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|entry| Some(entry.path().file_stem()?.to_str()?.to_owned()))
        .filter(|name| name != "common")
        .collect();
    names.sort();
    Ok(names)
}

/// Builds all targets; where they are.
fn build() -> Outcome<PathBuf> {
    // With a target of its own, build scripts and procedural macros do not get the flags.
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let folder = target().join("fuzz");
    let mut command = cargo(&["build", "--release", "--manifest-path", "fuzz/Cargo.toml"]);
    command
        .args(["--target", &triple])
        .arg("--target-dir")
        .arg(&folder)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTFLAGS", FLAGS.join(" "));
    match run(command, PATIENCE)?.success {
        true => Ok(folder.join(triple).join("release")),
        false => Err("the fuzz targets do not build".into()),
    }
}

/// Runs one target. What it learns stays in target/fuzz/corpus for the next time; the seeds are never
/// written to.
fn run_target(program: &Path, name: &str, seconds: u32) -> Outcome<Finished> {
    println!("\nfuzz target {name}, {seconds} s");
    let own = target().join("fuzz");
    let corpus = own.join("corpus").join(name);
    let findings = own.join("findings");
    let scratch = own.join("scratch");
    for folder in [&corpus, &findings, &scratch] {
        fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    }
    let mut command = Command::new(program);
    command
        .arg(&corpus)
        .arg(root().join("fuzz/seeds").join(name))
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-artifact_prefix={}/{name}-", findings.display()))
        // An input that takes so long hangs; most take microseconds.
        .args(["-timeout=60", "-rss_limit_mb=2048", "-print_final_stats=1"])
        // Prints little more than the first and the last lines.
        .args(["-reload=0", "-reduce_inputs=0", "-verbosity=1"])
        .env("TMPDIR", &scratch)
        // Leaks are the targets' own to check: that of the sanitizer needs ptrace(2), which
        // containers refuse.
        .env("ASAN_OPTIONS", "detect_leaks=0:abort_on_error=0")
        .current_dir(root());
    let finished = run(command, PATIENCE + Duration::from_secs(seconds.into()));
    // The socket of a target that never ends by itself.
    let _ = fs::remove_dir_all(scratch);
    finished
}

/// What a target saw.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    inputs: u64,
    edges: u64,
    features: u64,
    corpus: u64,
}

/// Reads what libFuzzer printed at its end: `#12 DONE cov: 3 ft: 4 corp: 5/6b …` and
/// `stat::number_of_executed_units: 12`. `None` when it found something, or ran nothing.
fn read(finished: &Finished) -> Option<Seen> {
    let last = finished.text.lines().rfind(|line| line.contains("DONE"))?;
    let behind = |text: &str, word: &str| -> Option<u64> {
        let rest = text.split_once(word)?.1.trim_start();
        let end = rest.find(|c: char| !c.is_ascii_digit());
        rest.get(..end.unwrap_or(rest.len()))?.parse().ok()
    };
    let seen = Seen {
        inputs: behind(&finished.text, "stat::number_of_executed_units:")?,
        edges: behind(last, "cov:")?,
        features: behind(last, "ft:")?,
        corpus: behind(last, "corp:")?,
    };
    (finished.success && seen.inputs > 0 && seen.edges > 0).then_some(seen)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DONE: &str = "\
        #2\tINITED cov: 5 ft: 5 corp: 1/1b exec/s: 0 rss: 34Mb\n\
        #131072\tDONE   cov: 812 ft: 3120 corp: 211/14Kb lim: 4096 exec/s: 6241 rss: 412Mb\n\
        Done 131072 runs in 21 second(s)\n\
        stat::number_of_executed_units: 131072\n";

    fn finished(success: bool, text: &str) -> Finished {
        Finished {
            success,
            text: text.to_owned(),
        }
    }

    #[test]
    fn runs_and_coverage_are_read() {
        let seen = Seen {
            inputs: 131_072,
            edges: 812,
            features: 3120,
            corpus: 211,
        };
        assert_eq!(read(&finished(true, DONE)), Some(seen));
    }

    #[test]
    fn a_finding_or_a_run_without_an_end_is_a_failure() {
        assert_eq!(read(&finished(false, DONE)), None);
        assert_eq!(
            read(&finished(true, "stat::number_of_executed_units: 5")),
            None
        );
        assert_eq!(read(&finished(true, "")), None);
    }
}
