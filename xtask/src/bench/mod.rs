//! `cargo xtask bench`: our driver and another one, in turn, cell by cell.

mod cells;
mod csv;
mod idle;
mod json;
mod machine;
mod markdown;
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
    let with_idle = options.wants(Part::Idle);
    if groups.is_empty() && !with_idle {
        return Ok(());
    }
    let tool = Tool::build(options.cores)?;
    let mut context = Context {
        machine: Machine::here(&tool),
        ours: label(&ours),
        base: label(&options.base),
        rounds: 0,
        ms: options.ms,
    };
    println!("\n{}", context.machine);
    println!("A: {}, B: {}", context.base, context.ours);
    let rows = match with_idle {
        true => idle::measure(&tool, &options.base, &ours, options.level)?,
        false => Vec::new(),
    };
    let (results, rounds, failures) = runner::run_all(&tool, &ours, &options, &groups)?;
    context.rounds = rounds;
    let comparisons = results.comparisons();
    if !groups.is_empty() {
        report::print(&context, &comparisons);
    }
    let folder = root().join("benches/results");
    fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let write = |name: &str, text: String| {
        let file = folder.join(format!("{}{name}", options.name));
        println!("wrote {}", file.display());
        fs::write(&file, text).map_err(|error| format!("{}: {error}", file.display()))
    };
    if !groups.is_empty() {
        write(".csv", csv::table(&comparisons))?;
        write(".svg", svg::picture(&context, &comparisons))?;
    }
    if with_idle {
        write("-idle.csv", csv::idle_table(&rows))?;
    }
    write(".json", json::document(&context, &comparisons, &rows))?;
    if options.docs {
        let file = root().join("docs/performance.md");
        let text =
            fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))?;
        let tables = markdown::tables(&context, &comparisons);
        let text = markdown::updated(&text, &tables).ok_or("docs/performance.md has no marks")?;
        println!("wrote {}", file.display());
        fs::write(&file, text).map_err(|error| format!("{}: {error}", file.display()))?;
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
