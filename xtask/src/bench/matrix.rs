//! Which cells are measured at which level.

use super::cells::{Cell, Checksum, Flow, Group, Mode, Setup, grouped};

/// How much of the matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    /// A few minutes.
    Quick,
    /// Each feature, but rings of 1024 with the usual features only.
    Usual,
    /// All of it.
    Full,
}

const SIZES: [u32; 5] = [64, 256, 512, 1518, 9000];
const BURSTS: [u32; 5] = [1, 4, 32, 64, 256];
const TIMED: [Mode; 2] = [Mode::OneCore, Mode::LockStep];
const LAYOUTS: [bool; 2] = [false, true];

/// All cells of a level.
pub(super) fn matrix(level: Level) -> Vec<Group> {
    let mut groups = Vec::new();
    for mode in TIMED {
        for setup in rings(mode, level) {
            groups.extend(grouped(&setup, &cells(level)));
        }
        for setup in offloads(mode) {
            let cells = [Cell::new(64, 32), Cell::new(1518, 32)];
            let cells = cells
                .into_iter()
                .filter(|cell| level != Level::Quick || is_quick(mode, setup.checksum, cell.size));
            groups.extend(grouped(&setup, &cells.collect::<Vec<_>>()));
        }
        for packed in LAYOUTS {
            let setup = Setup {
                queues: 8,
                ..Setup::plain(mode, packed)
            };
            groups.extend(grouped(&setup, &[Cell::new(64, 32), Cell::new(1518, 32)]));
        }
    }
    if level != Level::Quick {
        for setup in TIMED.into_iter().flat_map(apart) {
            groups.extend(grouped(&setup, &[Cell::new(64, 32), Cell::new(1518, 32)]));
        }
        for setup in parked() {
            groups.extend(grouped(&setup, &[Cell::new(512, 32), Cell::new(1518, 32)]));
        }
        groups.extend(instructions());
    }
    for setup in free_running() {
        groups.extend(grouped(&setup, &flows(&setup, level)));
    }
    groups
}

/// The features of the rings.
fn rings(mode: Mode, level: Level) -> Vec<Setup> {
    let mut setups = Vec::new();
    for packed in LAYOUTS {
        for (ring, mergeable, in_order) in [
            (256, true, false),
            (256, false, false),
            (256, true, true),
            (256, false, true),
            (1024, true, false),
            (1024, false, false),
            (1024, true, true),
            (1024, false, true),
        ] {
            let usual = mergeable && !in_order;
            let wanted = match level {
                Level::Quick => usual && ring == 256,
                Level::Usual => usual || ring == 256,
                Level::Full => true,
            };
            if wanted {
                setups.push(Setup {
                    ring,
                    mergeable,
                    in_order,
                    ..Setup::plain(mode, packed)
                });
            }
        }
    }
    setups
}

/// What packets may ask for.
const ASKED: [Checksum; 9] = [
    Checksum::Vlan,
    Checksum::Unused,
    Checksum::Passed,
    Checksum::Software,
    Checksum::Ip,
    Checksum::Ipv6,
    Checksum::Segments,
    Checksum::Marks,
    Checksum::Unsummed,
];

fn offloads(mode: Mode) -> Vec<Setup> {
    let setup = |packed, checksum| Setup {
        checksum,
        ..Setup::plain(mode, packed)
    };
    let of_layout = |packed| ASKED.map(|checksum| setup(packed, checksum));
    LAYOUTS.into_iter().flat_map(of_layout).collect()
}

/// What a quick run has of that.
fn is_quick(mode: Mode, checksum: Checksum, size: u32) -> bool {
    match checksum {
        Checksum::Software => true,
        Checksum::Ip => mode == Mode::OneCore,
        Checksum::Ipv6 | Checksum::Unsummed => mode == Mode::OneCore && size == 64,
        _ => false,
    }
}

/// The guest's buffers come from further away than its second cache.
fn parked() -> Vec<Setup> {
    let setup = |packed| Setup {
        ring: 1024,
        parked: 1024,
        ..Setup::plain(Mode::OneCore, packed)
    };
    LAYOUTS.map(setup).into()
}

/// What Linux does without `VIRTIO_F_VERSION_1` and `VIRTIO_F_ANY_LAYOUT`.
fn apart(mode: Mode) -> [Setup; 2] {
    LAYOUTS.map(|packed| Setup {
        apart: true,
        ..Setup::plain(mode, packed)
    })
}

/// Few: each instruction takes microseconds.
fn instructions() -> Vec<Group> {
    let mut groups = Vec::new();
    for packed in LAYOUTS {
        let plain = Setup::plain(Mode::Instructions, packed);
        let mut cells = vec![Cell::new(64, 1), Cell::new(64, 4)];
        cells.extend([64, 512, 1518, 0].map(|size| Cell::new(size, 32)));
        groups.extend(grouped(&plain, &cells));
        for checksum in ASKED.into_iter().filter(|asked| *asked != Checksum::Unused) {
            let setup = Setup {
                checksum,
                ..plain.clone()
            };
            groups.extend(grouped(&setup, &[Cell::new(64, 32), Cell::new(1518, 32)]));
        }
    }
    groups
}

/// The last one is the frontend's fastest.
fn free_running() -> Vec<Setup> {
    let plain = |packed| Setup::plain(Mode::FreeRunning, packed);
    vec![
        plain(false),
        plain(true),
        Setup {
            mergeable: false,
            in_order: true,
            vectorized: true,
            ..plain(true)
        },
    ]
}

/// Sizes and bursts; an empty poll comes last.
fn cells(level: Level) -> Vec<Cell> {
    let mut cells = Vec::new();
    for size in SIZES {
        for burst in BURSTS {
            let wanted = match (size, burst) {
                (64, 1 | 4 | 32 | 64) | (_, 32) => true,
                _ => level != Level::Quick,
            };
            if wanted {
                cells.push(Cell::new(size, burst));
            }
        }
    }
    cells.push(Cell::new(0, 32));
    cells
}

fn flows(setup: &Setup, level: Level) -> Vec<Cell> {
    let forward = SIZES.map(|size| Cell::new(size, 32));
    let one_way = [Flow::ToHost, Flow::ToGuest].map(|flow| Cell {
        flow,
        ..Cell::new(64, 32)
    });
    let cells = forward.into_iter().chain(one_way);
    cells
        .filter(|cell| cell.size != 9000 || setup.mergeable)
        .filter(|cell| level != Level::Quick || matches!(cell.size, 64 | 1518))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(level: Level) -> usize {
        matrix(level).iter().map(|group| group.cells.len()).sum()
    }

    #[test]
    fn a_higher_level_has_all_cells_of_the_lower_one() {
        let of = |level| -> Vec<(Setup, Cell)> {
            let groups = matrix(level).into_iter();
            groups
                .flat_map(|Group { setup, cells }| {
                    cells.into_iter().map(move |cell| (setup.clone(), cell))
                })
                .collect()
        };
        let (quick, usual, full) = (of(Level::Quick), of(Level::Usual), of(Level::Full));

        assert!(quick.iter().all(|cell| usual.contains(cell)));
        assert!(usual.iter().all(|cell| full.contains(cell)));
        assert!(count(Level::Quick) < 100 && count(Level::Full) > 2 * count(Level::Quick));
    }

    #[test]
    fn no_cell_is_measured_twice() {
        let groups = matrix(Level::Full);
        let mut names: Vec<String> = groups
            .iter()
            .flat_map(|group| {
                group
                    .cells
                    .iter()
                    .map(|cell| format!("{} {}", group.setup, cell.argument()))
            })
            .collect();
        let before = names.len();
        names.sort();
        names.dedup();

        assert_eq!(names.len(), before);
    }
}
