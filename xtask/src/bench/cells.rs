//! What is measured: set-ups, one process each, and the cells in them.

use std::fmt;

use crate::common::Outcome;

/// The two cores' game.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Mode {
    /// Warm caches.
    OneCore,
    /// Each call finds its lines in the other core's cache.
    LockStep,
    /// Packets per second.
    FreeRunning,
    /// Instructions, stepped through one by one.
    Instructions,
}

/// What packets ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Checksum {
    /// Nothing; checksums are not negotiated.
    Plain,
    /// The port strips a VLAN tag on rx and inserts one on tx.
    Vlan,
    /// UDP checksums are negotiated, no packet asks.
    Unused,
    /// Each packet asks, the port passes it on.
    Passed,
    /// Each packet asks, the port computes it on rx.
    Software,
    /// As `Passed`, and the port makes the checksum of the IPv4 header.
    Ip,
    /// As `Passed`, over IPv6.
    Ipv6,
    /// As `Passed`, in two segments.
    Segments,
    /// The port sends packets on with the marks of a missing checksum.
    Marks,
    /// The guest takes no packets without checksum, so the port computes it on tx.
    Unsummed,
}

/// Which way packets go in the free-running mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Flow {
    /// Out of the guest and back to it; both ways in the other modes.
    Forward,
    /// Out of the guest.
    ToHost,
    /// To the guest.
    ToGuest,
}

/// One process: a pair of ports.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Setup {
    pub(super) mode: Mode,
    pub(super) packed: bool,
    pub(super) mergeable: bool,
    pub(super) in_order: bool,
    /// virtio-user's vector functions, which packed rings have for small packets.
    pub(super) vectorized: bool,
    pub(super) ring: u32,
    pub(super) queues: u32,
    pub(super) checksum: Checksum,
    /// So many packets wait on the guest's side, whose buffers are cold then.
    pub(super) parked: u32,
    /// The virtio-net header of each packet that the guest sends has a descriptor of its own.
    pub(super) apart: bool,
}

/// What the process does for a while; the size of an empty poll is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Cell {
    pub(super) size: u32,
    pub(super) burst: u32,
    pub(super) flow: Flow,
}

/// The cells of one process.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Group {
    pub(super) setup: Setup,
    pub(super) cells: Vec<Cell>,
}

impl Mode {
    /// As the tool and `--only` spell it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::OneCore => "one-core",
            Self::LockStep => "lock-step",
            Self::FreeRunning => "free-running",
            Self::Instructions => "instructions",
        }
    }
}

impl Checksum {
    /// As the tool spells it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Vlan => "vlan",
            Self::Unused => "unused",
            Self::Passed => "passed",
            Self::Software => "software",
            Self::Ip => "ip",
            Self::Ipv6 => "ipv6",
            Self::Segments => "segments",
            Self::Marks => "marks",
            Self::Unsummed => "unsummed",
        }
    }
}

impl Flow {
    /// As the tool spells it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::ToHost => "to-host",
            Self::ToGuest => "to-guest",
        }
    }
}

impl Setup {
    /// One queue of 256, mergeable buffers, nothing else.
    pub(super) fn plain(mode: Mode, packed: bool) -> Self {
        Self {
            mode,
            packed,
            mergeable: true,
            in_order: false,
            vectorized: false,
            ring: 256,
            queues: 1,
            checksum: Checksum::Plain,
            parked: 0,
            apart: false,
        }
    }

    /// `split` or `packed`.
    pub(super) fn layout(&self) -> &'static str {
        match self.packed {
            true => "packed",
            false => "split",
        }
    }

    /// The tool's arguments for it.
    pub(super) fn arguments(&self) -> Vec<String> {
        vec![
            format!("mode={}", self.mode.name()),
            format!("packed={}", u8::from(self.packed)),
            format!("mergeable={}", u8::from(self.mergeable)),
            format!("in_order={}", u8::from(self.in_order)),
            format!("vectorized={}", u8::from(self.vectorized)),
            format!("ring={}", self.ring),
            format!("queues={}", self.queues),
            format!("checksum={}", self.checksum.name()),
            format!("parked={}", self.parked),
            format!("apart={}", u8::from(self.apart)),
        ]
    }

    /// Does a burst of such packets fit into its rings? A driver with mergeable buffers gives 2 KB each.
    fn fits(&self, cell: &Cell) -> bool {
        let buffers = match self.mergeable {
            true => (cell.size + 12).div_ceil(2048).max(1),
            false => 1,
        };
        buffers * cell.burst <= self.ring
    }

    fn words(&self) -> Vec<String> {
        let mut words = vec![self.mode.name().to_owned(), self.layout().to_owned()];
        words.push(["separate", "mergeable"][usize::from(self.mergeable)].to_owned());
        words.push(["any-order", "in-order"][usize::from(self.in_order)].to_owned());
        if self.vectorized {
            words.push("vectorized".to_owned());
        }
        words.push(format!("ring{}", self.ring));
        words.push(format!("queues{}", self.queues));
        words.push(self.checksum.name().to_owned());
        if self.parked != 0 {
            words.push("parked".to_owned());
        }
        if self.apart {
            words.push("apart".to_owned());
        }
        words
    }
}

/// As a line above its cells; `--cell` takes these words.
impl fmt::Display for Setup {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.words().join(" "))
    }
}

impl Cell {
    pub(super) fn new(size: u32, burst: u32) -> Self {
        Self {
            size,
            burst,
            flow: Flow::Forward,
        }
    }

    /// As the tool takes it.
    pub(super) fn argument(&self) -> String {
        let Self { size, burst, flow } = self;
        format!("{size}x{burst}x{}", flow.name())
    }

    fn words(&self) -> Vec<String> {
        let Self { size, burst, flow } = self;
        vec![
            self.to_string(),
            format!("size{size}"),
            format!("burst{burst}"),
            flow.name().to_owned(),
        ]
    }
}

/// `64x32`: size and burst.
impl fmt::Display for Cell {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.size {
            0 => out.write_str("empty"),
            size => write!(out, "{size}x{}", self.burst),
        }
    }
}

/// Is it a set of words that `--cell` takes?
pub(super) fn check_filter(filter: &str, groups: &[Group]) -> Outcome {
    let known = |word: &str| {
        groups.iter().any(|group| {
            let cells = group.cells.iter();
            group.setup.words().iter().any(|known| known == word)
                || cells.flat_map(Cell::words).any(|known| known == word)
        })
    };
    match filter.split(',').find(|word| !known(word)) {
        Some(word) => Err(format!("--cell {filter}: no cell has the word `{word}`").into()),
        None => Ok(()),
    }
}

/// The cells that have all words of one of the filters; all of them without filters.
pub(super) fn filtered(groups: Vec<Group>, filters: &[String]) -> Vec<Group> {
    let wanted = |setup: &Setup, cell: &Cell| {
        let words = [setup.words(), cell.words()].concat();
        filters.is_empty()
            || filters.iter().any(|filter| {
                filter
                    .split(',')
                    .all(|word| words.iter().any(|known| known == word))
            })
    };
    let groups = groups.into_iter().map(|mut group| {
        group.cells.retain(|cell| wanted(&group.setup, cell));
        group
    });
    groups.filter(|group| !group.cells.is_empty()).collect()
}

/// Makes groups of cells that fit. Jumbo frames want larger buffers, or more of them: a process of their
/// own, so that the pools of the others stay small.
pub(super) fn grouped(setup: &Setup, cells: &[Cell]) -> Vec<Group> {
    let fitting = cells.iter().filter(|cell| setup.fits(cell)).copied();
    let (usual, jumbo): (Vec<Cell>, Vec<Cell>) = fitting.partition(|cell| cell.size <= 1518);
    let groups = [usual, jumbo].into_iter().map(|cells| Group {
        setup: setup.clone(),
        cells,
    });
    groups.filter(|group| !group.cells.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jumbo_frames_have_a_process_of_their_own() {
        let setup = Setup::plain(Mode::OneCore, false);
        let cells = [Cell::new(64, 32), Cell::new(9000, 32), Cell::new(1518, 1)];

        let groups = grouped(&setup, &cells);

        assert_eq!(groups.len(), 2);
        assert_eq!(groups[0].cells, [cells[0], cells[2]]);
        assert_eq!(groups[1].cells, [cells[1]]);
    }

    #[test]
    fn a_burst_that_needs_more_buffers_than_the_ring_has_is_left_out() {
        let setup = Setup::plain(Mode::OneCore, true);
        let cells = [Cell::new(9000, 32), Cell::new(9000, 64), Cell::new(64, 256)];

        let fitting: Vec<Cell> = grouped(&setup, &cells)
            .into_iter()
            .flat_map(|group| group.cells)
            .collect();

        assert_eq!(fitting, [cells[2], cells[0]]);
    }

    #[test]
    fn a_filter_wants_all_its_words_and_several_add_up() {
        let cells = [Cell::new(64, 32), Cell::new(1518, 32), Cell::new(64, 1)];
        let groups: Vec<Group> = [false, true]
            .iter()
            .flat_map(|&packed| grouped(&Setup::plain(Mode::OneCore, packed), &cells))
            .collect();
        let filters = [
            "packed,64x32".to_owned(),
            "split,burst32,size1518".to_owned(),
        ];

        let left = filtered(groups.clone(), &filters);

        assert_eq!(left.len(), 2);
        assert_eq!(left[0].cells, [cells[1]]);
        assert_eq!(left[1].cells, [cells[0]]);
        assert!(check_filter("packed,64x32", &groups).is_ok());
        assert!(check_filter("packt", &groups).is_err());
    }
}
