//! How many times faster than the distribution's driver each cell has to be.

use super::cells::{Cell, Checksum, Mode, Setup};
use super::results::Direction;

/// No cell may be slower, whatever its features.
pub(super) const FLOOR: f64 = 1.0;

/// What a ratio counts towards.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Target {
    /// The line of the summary.
    pub(super) row: &'static str,
    /// The ratio wanted.
    pub(super) ratio: f64,
}

/// The target of one direction of one cell.
pub(super) fn target(setup: &Setup, cell: &Cell, direction: Direction) -> Target {
    let target = |row, one_core, lock_step| Target {
        row,
        ratio: match setup.mode {
            Mode::OneCore => one_core,
            Mode::LockStep => lock_step,
            Mode::FreeRunning | Mode::Instructions => FLOOR,
        },
    };
    match setup.mode {
        Mode::FreeRunning => return target("free running", FLOOR, FLOOR),
        Mode::Instructions => return target("instructions", FLOOR, FLOOR),
        Mode::OneCore | Mode::LockStep => {}
    }
    let (software, rx) = (
        setup.checksum == Checksum::Software,
        direction == Direction::Rx,
    );
    match (cell.size, cell.burst) {
        (0, _) if setup.packed => target("empty poll, packed", 20.0, 20.0),
        (0, _) => target("empty poll, split", 4.0, 4.0),
        (1518, _) if software && rx => target("checksum in software, 1518 B rx", 2.5, 1.4),
        _ if setup.parked != 0 => target("cold destination", FLOOR, FLOOR),
        _ if setup.apart => target("header apart", FLOOR, FLOOR),
        _ if setup.checksum != Checksum::Plain => target("other offloads", FLOOR, FLOOR),
        (64, 1) => target("64 B, burst 1", 1.6, 1.1),
        (64, 4) if setup.packed => target("64 B, burst 4, packed", 1.7, 1.4),
        (64, 4) => target("64 B, burst 4, split", 2.0, 1.4),
        (64, _) if setup.packed => target("64 B, burst 32 and more, packed", 2.2, 1.6),
        (64, _) => target("64 B, burst 32 and more, split", 3.0, 1.9),
        (_, 1 | 4) => target("256 B and more, burst 1 and 4", FLOOR, FLOOR),
        (256, _) => target("256 B", 1.8, 1.3),
        (512, _) if setup.packed => target("512 B, packed", 1.35, 1.3),
        (512, _) => target("512 B, split", 1.5, 1.3),
        (1518, _) => target("1518 B", 1.15, 1.25),
        _ => target("9000 B", 1.1, 1.0),
    }
}

/// The target of the geometric mean over the cells that [`counts_for_mean`].
pub(super) fn mean_target(mode: Mode) -> Option<f64> {
    match mode {
        Mode::OneCore => Some(2.0),
        Mode::LockStep => Some(1.6),
        Mode::FreeRunning | Mode::Instructions => None,
    }
}

/// 64 to 1518 bytes, bursts of 4 to 64, no offloads.
pub(super) fn counts_for_mean(setup: &Setup, cell: &Cell) -> bool {
    mean_target(setup.mode).is_some()
        && setup.checksum == Checksum::Plain
        && setup.parked == 0
        && !setup.apart
        && (64..=1518).contains(&cell.size)
        && (4..=64).contains(&cell.burst)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_differ_by_layout_direction_and_mode() {
        let split = Setup::plain(Mode::OneCore, false);
        let packed = Setup::plain(Mode::LockStep, true);
        let software = Setup {
            checksum: Checksum::Software,
            ..split.clone()
        };
        let large = Cell::new(1518, 32);

        let ratio = |setup: &Setup, cell: &Cell, direction| target(setup, cell, direction).ratio;

        assert_eq!(ratio(&split, &Cell::new(64, 64), Direction::Rx), 3.0);
        assert_eq!(ratio(&packed, &Cell::new(64, 32), Direction::Tx), 1.6);
        assert_eq!(ratio(&packed, &Cell::new(0, 32), Direction::Rx), 20.0);
        assert_eq!(ratio(&software, &large, Direction::Rx), 2.5);
        assert_eq!(ratio(&software, &large, Direction::Tx), FLOOR);
        assert_eq!(ratio(&split, &large, Direction::Tx), 1.15);
    }

    #[test]
    fn the_mean_is_over_plain_cells_of_usual_sizes_and_bursts() {
        let setup = Setup::plain(Mode::OneCore, false);

        assert!(counts_for_mean(&setup, &Cell::new(1518, 4)));
        assert!(!counts_for_mean(&setup, &Cell::new(9000, 32)));
        assert!(!counts_for_mean(&setup, &Cell::new(64, 1)));
        assert!(!counts_for_mean(&setup, &Cell::new(0, 32)));
    }
}
