//! `cargo xtask panic-free`: can a burst panic?
//!
//! A panic in a burst is caught and poisons its queue, so it costs a tenant its port. The compiler
//! leaves a call to `core::panicking` wherever it could not prove a check away; none of these may be
//! reachable from the burst bodies.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;

use crate::command::capture;
use crate::common::{Driver, Outcome};
use crate::demo::built_driver;
use crate::hot_code;

/// Functions by name, each with the names that it calls or jumps to.
type CallGraph = BTreeMap<String, BTreeSet<String>>;

/// Where the walk starts.
const BODIES: [&str; 5] = [
    "::datapath::dequeue::",
    "::datapath::enqueue::",
    "::datapath::offloaded::",
    "::port::burst::do_chores",
    "::port::burst::inject",
];

/// Not a body, although one of its types has the name: what control threads do with a queue that has
/// engines.
const CONTROL: [&str; 2] = [
    " as rte_net_vhost::port::lane::Work>::",
    "rte_net_vhost::port::lane::Lane<",
];

/// Where it must not arrive.
const PANICS: [&str; 7] = [
    "core::panicking::",
    "core::option::expect_failed",
    "core::option::unwrap_failed",
    "core::result::unwrap_failed",
    "core::slice::index::",
    "alloc::raw_vec::",
    "alloc::alloc::handle_alloc_error",
];

/// Only reached while another panic unwinds.
const AFTER_A_PANIC: [&str; 2] = ["panic_cannot_unwind", "panic_in_cleanup"];

/// Looks into a file, by default the release build of the plugin.
pub(crate) fn panic_free(args: &[String]) -> Outcome {
    let file = match (args, args.first()) {
        ([_], Some(file)) => PathBuf::from(file),
        ([], _) => match built_driver()? {
            Driver::Plugin(path) => path,
            Driver::Stock => return Err("the distribution's driver is not in Rust".into()),
        },
        _ => return Err("wants at most one file".into()),
    };
    let file = file.display().to_string();
    let listing = capture("objdump", &["-d", "-C", "--no-show-raw-insn", "-w", &file])
        .ok_or_else(|| format!("objdump cannot read {file}"))?;
    let relocations = capture("objdump", &["-R", "-w", &file]).unwrap_or_default();
    let graph = call_graph(&listing, &relocations);
    if !graph.values().flatten().any(|name| is_panic(name)) {
        return Err(format!("{file}: no panic is called from anywhere, which cannot be").into());
    }
    let bodies: Vec<&String> = graph.keys().filter(|name| is_body(name)).collect();
    if bodies.is_empty() {
        return Err(format!("{file}: no burst bodies found; was it stripped?").into());
    }
    let mut ways = BTreeSet::new();
    for body in &bodies {
        ways.extend(way_to_panic(&graph, body));
    }
    for way in &ways {
        println!("{}", way.join("\n    calls "));
    }
    if !ways.is_empty() {
        let (ways, bodies) = (ways.len(), bodies.len());
        return Err(format!("{file}: {ways} of {bodies} functions can panic").into());
    }
    println!(
        "{file}: {} functions of the bursts, none can panic",
        bodies.len()
    );
    let faults = hot_code::faults(&listing, &relocations);
    for fault in &faults {
        println!("{fault}");
    }
    match faults.len() {
        0 => {
            println!("{file}: no locks, divisions or calls that must not be there");
            Ok(())
        }
        count => Err(format!("{file}: {count} faults in the code of the bursts").into()),
    }
}

fn is_body(name: &str) -> bool {
    BODIES.iter().any(|part| name.contains(part))
        && !name.contains("::tests::")
        && !CONTROL.iter().any(|part| name.contains(part))
        // What a queue has goes with the queue, not in a burst.
        && !name.starts_with("core::ptr::drop_in_place")
}

fn is_panic(name: &str) -> bool {
    PANICS.iter().any(|part| name.contains(part)) && !is_after_a_panic(name)
}

fn is_after_a_panic(name: &str) -> bool {
    AFTER_A_PANIC.iter().any(|part| name.contains(part))
}

/// Reads objdump's listing. Lines are `address <function>:` and `address: call target <function>`;
/// or `address: call *offset(%rip) # slot <…>` through a table that the relocations fill.
fn call_graph(listing: &str, relocations: &str) -> CallGraph {
    let functions: BTreeMap<u64, &str> = listing.lines().filter_map(function_start).collect();
    let in_slot: BTreeMap<u64, &str> = relocations
        .lines()
        .filter_map(relocation)
        .filter_map(|(slot, address)| Some((slot, *functions.get(&address)?)))
        .collect();
    let mut graph = CallGraph::new();
    let mut current = "";
    for line in listing.lines() {
        if let Some((_, name)) = function_start(line) {
            current = name;
            graph.entry(name.to_owned()).or_default();
        } else if let Some((_, instruction)) = line.split_once(":\t")
            && let Some(name) = slot_target(instruction, &in_slot).or_else(|| target(instruction))
            && name != current
        {
            let callees = graph.entry(current.to_owned()).or_default();
            callees.insert(name.to_owned());
        }
    }
    graph
}

pub(crate) fn function_start(line: &str) -> Option<(u64, &str)> {
    let (address, name) = line.strip_suffix(">:")?.split_once(" <")?;
    Some((u64::from_str_radix(address, 16).ok()?, name))
}

/// Where a call or a jump leads that names its target.
fn target(instruction: &str) -> Option<&str> {
    if !instruction.starts_with("call") && !instruction.starts_with('j') {
        return None;
    }
    let (_, target) = instruction.strip_suffix('>')?.split_once(" <")?;
    Some(target.split_once("+0x").map_or(target, |(name, _)| name))
}

/// The function whose address an instruction reads from a slot, to call it now or later.
fn slot_target<'a>(instruction: &str, in_slot: &BTreeMap<u64, &'a str>) -> Option<&'a str> {
    let (_, note) = instruction.split_once("# ")?;
    let slot = u64::from_str_radix(note.split(' ').next()?, 16).ok()?;
    in_slot.get(&slot).copied()
}

/// A line of `objdump -R` about a slot in this file: `slot R_X86_64_RELATIVE *ABS*+0xaddress`.
fn relocation(line: &str) -> Option<(u64, u64)> {
    let (slot, rest) = line.split_once(" R_X86_64_RELATIVE")?;
    let (_, address) = rest.split_once("+0x")?;
    let number = |text: &str| u64::from_str_radix(text.trim(), 16).ok();
    Some((number(slot)?, number(address)?))
}

/// The shortest chain of calls from a function to a panic.
fn way_to_panic(graph: &CallGraph, from: &str) -> Option<Vec<String>> {
    let mut came_from: BTreeMap<&str, &str> = BTreeMap::new();
    let mut waiting = VecDeque::from([from]);
    while let Some(name) = waiting.pop_front() {
        if is_panic(name) {
            let mut way = vec![name.to_owned()];
            let mut step = name;
            while let Some(&caller) = came_from.get(step) {
                way.push(caller.to_owned());
                step = caller;
            }
            way.reverse();
            return Some(way);
        }
        if AFTER_A_PANIC.iter().any(|part| name.contains(part)) {
            continue;
        }
        for callee in graph.get(name).into_iter().flatten() {
            if callee != from
                && !is_after_a_panic(callee)
                && !came_from.contains_key(callee.as_str())
            {
                came_from.insert(callee, name);
                waiting.push_back(callee);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTING: &str = "\
0000000000001000 <rte_net_vhost::datapath::dequeue::dequeue_burst>:\n\
\x20   1000:\tpush   %rbx\n\
\x20   1001:\tcall   2000 <<rte_net_vhost::virtqueue::Split as Ring>::take>\n\
\x20   1006:\tjne    1001 <rte_net_vhost::datapath::dequeue::dequeue_burst+0x1>\n\
\n\
0000000000002000 <<rte_net_vhost::virtqueue::Split as Ring>::take>:\n\
\x20   2000:\tcall   3000 <core::panicking::panic_bounds_check>\n\
\n\
0000000000004000 <rte_net_vhost::datapath::enqueue::enqueue_burst>:\n\
\x20   4000:\tcall   5000 <core::panicking::panic_cannot_unwind>\n\
\n\
0000000000006000 <core::option::expect_failed>:\n\
\x20   6000:\tud2\n\
\n\
0000000000007000 <rte_net_vhost::datapath::enqueue::by_slot>:\n\
\x20   7000:\tcall   *0x1000(%rip)        # 8000 <_DYNAMIC+0x2a8>\n";

    const RELOCATIONS: &str = "\
OFFSET           TYPE              VALUE\n\
0000000000008000 R_X86_64_RELATIVE  *ABS*+0x0000000000006000\n";

    #[test]
    fn a_panic_behind_a_relocated_slot_is_found() {
        let graph = call_graph(LISTING, RELOCATIONS);

        let way = way_to_panic(&graph, "rte_net_vhost::datapath::enqueue::by_slot");

        assert_eq!(
            way.unwrap_or_default().last().map(String::as_str),
            Some("core::option::expect_failed")
        );
    }

    #[test]
    fn a_panic_behind_another_function_is_found() {
        let graph = call_graph(LISTING, RELOCATIONS);

        let way = way_to_panic(&graph, "rte_net_vhost::datapath::dequeue::dequeue_burst");

        let names = way.unwrap_or_default();
        assert_eq!(
            names,
            [
                "rte_net_vhost::datapath::dequeue::dequeue_burst",
                "<rte_net_vhost::virtqueue::Split as Ring>::take",
                "core::panicking::panic_bounds_check",
            ]
        );
    }

    #[test]
    fn what_only_runs_during_a_panic_is_none() {
        let graph = call_graph(LISTING, RELOCATIONS);

        let way = way_to_panic(&graph, "rte_net_vhost::datapath::enqueue::enqueue_burst");

        assert_eq!(way, None);
    }
}
