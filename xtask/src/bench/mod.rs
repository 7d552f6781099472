//! `cargo xtask bench`: our driver and another one, in turn, cell by cell.

mod cells;
mod csv;
mod json;
mod machine;
mod matrix;
mod options;
mod pairs;
mod report;
mod results;
mod runner;
mod statistics;
mod svg;
mod targets;
mod tool;

use std::fs;

use crate::command::root;
use crate::common::{Driver, Outcome};
use crate::demo::built_driver;
use crate::setup;

use cells::{Group, check_filter, filtered};
use machine::Machine;
use matrix::matrix;
use options::{Options, Part};
use tool::Tool;

/// What the files of a run have in common.
struct Context {
    machine: Machine,
    ours: String,
    base: String,
    rounds: u32,
    ms: u32,
}

/// Measures, prints, and writes `benches/results`.
pub(crate) fn bench(args: &[String]) -> Outcome {
    let options = Options::parse(args)?;
    let all = matrix(options.level);
    for filter in &options.filters {
        check_filter(filter, &all)?;
    }
    let mut groups = filtered(all, &options.filters);
    groups.retain(|group| options.wants(Part::Cells(group.setup.mode)));
    if options.list {
        list(&groups);
        return Ok(());
    }
    setup::machine()?;
    let ours = built_driver()?;
    if options.wants(Part::Testpmd) {
        pairs::pairs(&ours, &options.base, options.rounds())?;
    }
    if groups.is_empty() {
        return Ok(());
    }
    let tool = Tool::build(options.cores)?;
    let context = Context {
        machine: Machine::here(&tool),
        ours: label(&ours),
        base: label(&options.base),
        rounds: options.rounds(),
        ms: options.ms,
    };
    println!("\n{}", context.machine);
    let (results, failures) = runner::run_all(&tool, &ours, &options, &groups)?;
    let comparisons = results.comparisons();
    report::print(&context, &comparisons);
    let folder = root().join("benches/results");
    for (extension, text) in [
        ("csv", csv::table(&comparisons)),
        ("json", json::document(&context, &comparisons)),
        ("svg", svg::picture(&context, &comparisons)),
    ] {
        let file = folder.join(format!("{}.{extension}", options.name));
        let written = fs::create_dir_all(&folder).and_then(|()| fs::write(&file, text));
        written.map_err(|error| format!("{}: {error}", file.display()))?;
        println!("wrote {}", file.display());
    }
    match failures.len() {
        0 => Ok(()),
        count => Err(format!("{count} processes failed; the first: {}", failures[0]).into()),
    }
}

fn list(groups: &[Group]) {
    for group in groups {
        let cells: Vec<String> = group.cells.iter().map(|cell| cell.argument()).collect();
        println!("{}: {}", group.setup, cells.join(" "));
    }
    let cells: usize = groups.iter().map(|group| group.cells.len()).sum();
    println!(
        "{cells} cells in {} processes for each driver and round",
        groups.len()
    );
}

/// How a driver is called in tables.
fn label(driver: &Driver) -> String {
    match driver {
        Driver::Stock => "stock".to_owned(),
        Driver::Plugin(path) => path.file_name().map_or_else(
            || path.display().to_string(),
            |name| name.to_string_lossy().into_owned(),
        ),
    }
}
