//! The developer's command: `cargo xtask setup | demo | test | fuzz | bench | ci`.
//!
//! It builds without DPDK, so that `setup` can install DPDK.

mod bench;
mod command;
mod demo;
mod fuzz;
mod hot_code;
mod panic_free;
mod setup;
mod stages;
mod test;

#[path = "../../tests/common/mod.rs"]
mod common;

use std::process::ExitCode;

use common::Outcome;

const USAGE: &str = "\
usage: cargo xtask COMMAND

  setup                 install what is missing, reserve huge pages
  demo [--seconds N]    stock testpmd with our plugin, a second one as frontend, packets both ways
  test [--quick] [--only STAGE]...
                        everything that is checked, stage by stage (--quick: without the slow ones)
  bench [--quick | --full] [--vs stock|PATH] [--cell WORD,WORD...]... [--only PART]... [--rounds N]
        [--ms N] [--cores CONTROL,MEASURE] [--name NAME] [--docs] [--list]
                        our driver and another in turn: cycles per packet, packets per second
  fuzz [TARGET]... [--seconds N]
                        the fuzz targets, 20 s each; new inputs stay in target/fuzz/corpus
  panic-free [FILE]     looks for panics, locks and divisions in the plugin's burst bodies
  ci                    what CI runs: test

NET_VHOST_PLUGIN=PATH|stock   demo, test and bench use this driver instead of the one they build
NET_VHOST_NO_HUGE=1           use ordinary memory even when huge pages are free";

fn main() -> ExitCode {
    command::watch_for_interrupts();
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (name, rest) = match args.split_first() {
        Some((name, rest)) => (name.as_str(), rest),
        None => ("", &[][..]),
    };
    let result = match name {
        "setup" => setup::setup().map(|()| true),
        "demo" => demo::demo(rest).map(|()| true),
        "test" => test::test(rest),
        "bench" => bench::bench(rest).map(|()| true),
        "fuzz" => fuzz::fuzz(rest),
        "panic-free" => panic_free::panic_free(rest).map(|()| true),
        "ci" => test::test(&[]),
        "help" | "--help" | "-h" => {
            println!("{USAGE}");
            Ok(true)
        }
        _ => Err(format!("no such command: `{name}`\n\n{USAGE}").into()),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("cargo xtask {name}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Reads options of the form `--name N`.
fn number_option(args: &[String], name: &str, default: u32) -> Outcome<u32> {
    let Some(at) = args.iter().position(|arg| arg == name) else {
        return Ok(default);
    };
    let value = args.get(at + 1).ok_or(format!("{name} wants a number"))?;
    match value.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(format!("{name} {value}: wants a number above 0").into()),
    }
}
