//! docs/features.md says what the source does.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

/// What the document says of a name.
struct Said {
    number: Option<u32>,
    state: String,
}

/// The rows of all tables whose name has the form of code, by that name.
fn document() -> BTreeMap<String, Said> {
    let mut said = BTreeMap::new();
    for row in read("docs/features.md").lines() {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let [_, cells @ .., test, _] = cells.as_slice() else {
            continue;
        };
        let Some(name) = cells.iter().find_map(|cell| {
            let name = cell.strip_prefix('`')?.strip_suffix('`')?;
            Some(name.to_owned())
        }) else {
            continue;
        };
        for file in test.split(", ") {
            let file = file.trim_matches('`');
            assert!(root().join(file).is_file(), "{name}: there is no {file}");
        }
        let number = cells.iter().find_map(|cell| cell.parse().ok());
        let state = (*cells.last().unwrap()).to_owned();
        let before = said.insert(name.clone(), Said { number, state });
        assert!(before.is_none(), "{name} is there twice");
    }
    assert!(said.len() > 80, "where are the tables?");
    said
}

/// The text from the first `start` to the next `end`.
fn between<'t>(text: &'t str, start: &str, end: &str) -> &'t str {
    let (_, rest) = text.split_once(start).unwrap();
    rest.split_once(end).unwrap().0
}

/// Words that are made of capitals.
fn constants(text: &str) -> Vec<&str> {
    let word = |c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_');
    text.split(word).filter(|name| name.len() > 3).collect()
}

#[test]
fn each_feature_bit_has_its_number_and_state() {
    let said = document();
    let source = read("src/session/features.rs");
    let mut offered = constants(between(&source, "fn offered(", "\n}"));
    offered.extend(constants(between(&source, "fn word(", "\n}")));
    offered.extend(constants(between(&source, "fn added(", "\n}")));
    offered.extend(constants(between(&source, "fn offered_protocol(", "\n}")));
    let mut bits = 0;
    for line in source.lines() {
        let Some((name, bit)) = line.trim().split_once(" = ") else {
            continue;
        };
        let Some(bit) = bit.strip_suffix(',').and_then(|bit| bit.parse().ok()) else {
            continue;
        };
        bits += 1;
        let said = said
            .get(name)
            .unwrap_or_else(|| panic!("{name} is missing"));
        assert_eq!(said.number, Some(bit), "{name}");
        assert_eq!(
            said.state.starts_with("not offered"),
            !offered.contains(&name),
            "{name} is said to be {}",
            said.state
        );
    }
    assert!(bits > 30, "where are the bits?");
}

#[test]
fn each_message_has_its_number_and_state() {
    let said = document();
    let source = read("src/session/messages.rs");
    let mut messages = 0;
    for line in between(&source, "\nmessages! {", "\n}").lines() {
        let Some((head, tail)) = line.trim().split_once(": ") else {
            continue;
        };
        let Some((number, name)) = head.split_once(' ') else {
            continue;
        };
        let Ok(number) = number.parse() else {
            continue; // a comment
        };
        messages += 1;
        let said = said
            .get(name)
            .unwrap_or_else(|| panic!("{name} is missing"));
        assert_eq!(said.number, Some(number), "{name}");
        assert_eq!(
            said.state.starts_with("refused"),
            tail.ends_with("Refused;"),
            "{name} is said to be {}",
            said.state
        );
    }
    assert!(messages > 40, "where are the messages?");
}

#[test]
fn each_devarg_operation_and_function_is_there() {
    let said = document();
    let devargs = read("src/devargs.rs");
    let keys: Vec<&str> = between(&devargs, "KEYS: [", "];")
        .split('"')
        .skip(1)
        .step_by(2)
        .collect();
    assert!(keys.len() > 8, "where are the keys?");
    let operations = read("src/port/ops.rs");
    let operations: Vec<&str> = operations
        .lines()
        .filter_map(|line| line.trim().strip_prefix("ops.")?.split_once(" = Some("))
        .map(|(name, _)| name)
        .collect();
    assert!(operations.len() > 30, "where are the operations?");
    let exports = read("src/exports.rs");
    let functions: Vec<&str> = exports
        .lines()
        .filter_map(|line| line.split_once("extern \"C\" fn rte_")?.1.split_once('('))
        .map(|(name, _)| name)
        .collect();
    assert_eq!(functions.len(), 2);
    for name in keys.into_iter().chain(operations.iter().copied()) {
        assert!(said.contains_key(name), "{name} is missing");
    }
    for name in functions {
        assert!(
            said.contains_key(&format!("rte_{name}")),
            "rte_{name} is missing"
        );
    }
    // The other way round: an operation that is gone.
    let table = read("docs/features.md");
    let table = between(&table, "## Operations of ethdev", "Beside the table");
    for row in table.lines().filter_map(|row| row.strip_prefix("| `")) {
        let name = row.split('`').next().unwrap();
        assert!(operations.contains(&name), "{name} is not in the op table");
    }
}
