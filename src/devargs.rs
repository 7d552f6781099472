//! `iface=…,queues=…`: the text of a `--vdev` option, checked, as a [`PortConfig`].
//!
//! Keys and their meaning are those of DPDK's C driver. It took anything for a number and dropped
//! what it did not understand; here every odd value is refused, with the key, the value and what is
//! allowed.
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

mod dma;

pub use dma::{Backend, DmaConfig, EngineName, QueueEngines, pci, work_queue};

/// Most queue pairs that the vhost-user protocol side can have.
pub const MAX_QUEUES: u16 = 128;

/// `sun_path` holds 108 bytes, the last of which is NUL.
const MAX_IFACE: usize = 107;

/// Devices below this path are VDUSE devices, not sockets.
const VDUSE: &str = "/dev/vduse/";

/// Every key, in the order of `PMD_INFO_STRING`; `legacy-ol-flags` is accepted but not listed there.
const KEYS: [&str; 14] = [
    "iface",
    "queues",
    "client",
    "iommu-support",
    "postcopy-support",
    "tso",
    "linear-buffer",
    "ext-buffer",
    "legacy-ol-flags",
    "ptypes",
    "dmas",
    "dmathr",
    "dma-ring-size",
    RING_SIZE_ALIAS,
];

/// Another spelling of `dma-ring-size`, which was the first.
const RING_SIZE_ALIAS: &str = "dma_ring_size";

/// What a port was asked to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortConfig {
    /// Path of the socket.
    pub iface: String,
    /// Most queue pairs that the application can configure, 1 to [`MAX_QUEUES`].
    pub queues: u16,
    /// Connect to the path, again and again, instead of listening on it.
    pub client: bool,
    /// Offer `VIRTIO_F_ACCESS_PLATFORM`.
    pub iommu_support: bool,
    /// Offer postcopy migration.
    pub postcopy_support: bool,
    /// Offer `HOST_TSO4` and `HOST_TSO6`.
    pub tso: bool,
    /// Never receive into chained mbufs.
    pub linear_buffer: bool,
    /// Receive frames larger than an mbuf into an external buffer.
    pub ext_buffer: bool,
    /// Offload flags of received packets as before DPDK 21.11.
    pub legacy_ol_flags: bool,
    /// Tell the packet type of every received frame.
    pub ptypes: bool,
    /// Copy engines of queues; `None` when there are none.
    pub dma: Option<DmaConfig>,
}

/// Why a text is no [`PortConfig`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DevargsError {
    /// A key that does not exist.
    #[error("{key}: unknown key, did you mean {nearest}? Allowed are {}", KEYS.join(", "))]
    UnknownKey {
        /// As given.
        key: String,
        /// The most similar key.
        nearest: &'static str,
    },
    /// A key without `=`.
    #[error("{key}: has no value, {key}=<value> is expected")]
    NoValue {
        /// As given.
        key: &'static str,
    },
    /// A key that was given before.
    #[error("{key}={value}: {key} is given twice")]
    Twice {
        /// As given.
        key: &'static str,
        /// The second value.
        value: String,
    },
    /// A value that the key does not allow.
    #[error("{key}={value}: {allowed}")]
    BadValue {
        /// As given.
        key: &'static str,
        /// As given.
        value: String,
        /// What would have been right.
        allowed: &'static str,
    },
    /// An entry of `dmas` that is not as it should be.
    #[error("dmas: {entry}: {problem}")]
    Engine {
        /// As given.
        entry: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A list that begins with a bracket does not end with one.
    #[error("{text}: the bracket is not closed")]
    OpenBracket {
        /// From the key on.
        text: String,
    },
    /// The one key that must be there is not.
    #[error("iface=<path of the socket> is missing")]
    NoIface,
}

/// What an integer key allows.
struct Range {
    least: u16,
    most: u16,
    allowed: &'static str,
}

const QUEUES: Range = Range {
    least: 1,
    most: MAX_QUEUES,
    allowed: "a number of queue pairs from 1 to 128 is allowed",
};
/// Any number but 0 is "on".
const SWITCH: Range = Range {
    least: 0,
    most: u16::MAX,
    allowed: "0 (off) or 1 (on) is allowed",
};
/// The C driver reads 2 as "off" here; nobody can mean that.
const STRICT_SWITCH: Range = Range {
    least: 0,
    most: 1,
    allowed: "0 (off) or 1 (on) is allowed",
};

impl PortConfig {
    /// Reads the arguments of a device, the text after its name.
    ///
    /// # Errors
    ///
    /// The first key or value that is not as it should be.
    pub fn parse(args: &str) -> Result<Self, DevargsError> {
        let mut given = Given::default();
        // As rte_kvargs: empty pieces do not count, and `=` may be part of a value.
        for piece in pieces(args)? {
            let (key, value) = match piece.split_once('=') {
                Some((key, value)) => (known(key)?, value),
                None => return Err(DevargsError::NoValue { key: known(piece)? }),
            };
            given.put(key, value)?;
        }
        let switch = |key| -> Result<bool, DevargsError> {
            Ok(given.number(key, &SWITCH)?.is_some_and(|value| value != 0))
        };
        let strict_switch = |key| -> Result<bool, DevargsError> {
            Ok(given.number(key, &STRICT_SWITCH)? == Some(1))
        };
        let queues = given.number("queues", &QUEUES)?.unwrap_or(1);
        Ok(Self {
            iface: given.iface()?,
            queues,
            client: switch("client")?,
            iommu_support: switch("iommu-support")?,
            postcopy_support: switch("postcopy-support")?,
            tso: switch("tso")?,
            linear_buffer: strict_switch("linear-buffer")?,
            ext_buffer: strict_switch("ext-buffer")?,
            legacy_ol_flags: switch("legacy-ol-flags")?,
            ptypes: switch("ptypes")?,
            dma: given.dma(queues)?,
        })
    }
}

/// The pieces between commas, but for those in brackets, and without the empty ones. As rte_kvargs,
/// where brackets count wherever they stand.
fn pieces(args: &str) -> Result<Vec<&str>, DevargsError> {
    let mut pieces = Vec::new();
    let mut start = 0;
    let mut depth = 0_u32;
    for (at, c) in args.char_indices() {
        match c {
            '[' => depth = depth.saturating_add(1),
            ']' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                pieces.push(args.get(start..at).unwrap_or_default());
                start = at.saturating_add(1);
            }
            _ => {}
        }
    }
    let last = args.get(start..).unwrap_or_default();
    if depth != 0 {
        return Err(DevargsError::OpenBracket { text: last.into() });
    }
    pieces.push(last);
    pieces.retain(|piece| !piece.is_empty());
    Ok(pieces)
}

/// The pairs that were given, each key once but for `dmas`.
#[derive(Default)]
struct Given<'t>(Vec<(&'static str, &'t str)>);

impl<'t> Given<'t> {
    fn put(&mut self, key: &'static str, value: &'t str) -> Result<(), DevargsError> {
        let other = match key {
            "dma-ring-size" => RING_SIZE_ALIAS,
            RING_SIZE_ALIAS => "dma-ring-size",
            key => key,
        };
        if key != "dmas" && (self.get(key).is_some() || self.get(other).is_some()) {
            return Err(DevargsError::Twice {
                key,
                value: value.into(),
            });
        }
        self.0.push((key, value));
        Ok(())
    }

    fn get(&self, key: &str) -> Option<&'t str> {
        self.0
            .iter()
            .find(|(given, _)| *given == key)
            .map(|(_, value)| *value)
    }

    fn iface(&self) -> Result<String, DevargsError> {
        let value = self.get("iface").ok_or(DevargsError::NoIface)?;
        let refuse = |allowed| {
            Err(DevargsError::BadValue {
                key: "iface",
                value: value.into(),
                allowed,
            })
        };
        if value.is_empty() {
            return refuse("the path of a socket is expected");
        }
        if value.len() > MAX_IFACE {
            return refuse("the path of a socket has at most 107 bytes");
        }
        if value.starts_with(VDUSE) {
            return refuse("VDUSE devices are not supported, the path of a socket is expected");
        }
        Ok(value.into())
    }

    fn dma(&self, queues: u16) -> Result<Option<DmaConfig>, DevargsError> {
        let lists = self.0.iter().filter(|(key, _)| *key == "dmas");
        let lists: Vec<_> = lists.map(|(_, value)| *value).collect();
        let ring_size = ["dma-ring-size", RING_SIZE_ALIAS]
            .into_iter()
            .find_map(|key| Some((key, self.get(key)?)));
        dma::parse(&lists, self.get("dmathr"), ring_size, queues)
    }

    fn number(&self, key: &'static str, range: &Range) -> Result<Option<u16>, DevargsError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match number(value) {
            Some(number) if (range.least..=range.most).contains(&number) => Ok(Some(number)),
            _ => Err(DevargsError::BadValue {
                key,
                value: value.into(),
                allowed: range.allowed,
            }),
        }
    }
}

/// A number as strtoul(3) reads it with base 0 (decimal, `0x…`, octal `0…`), but without sign or
/// blanks, with nothing behind it, and within 16 bits.
fn number(text: &str) -> Option<u16> {
    let (digits, radix) = match text.strip_prefix('0') {
        Some(rest) => match rest.strip_prefix(['x', 'X']) {
            Some(digits) => (digits, 16),
            None if rest.is_empty() => return Some(0),
            None => (rest, 8),
        },
        None => (text, 10),
    };
    if digits.starts_with('+') {
        return None;
    }
    u16::from_str_radix(digits, radix).ok()
}

/// The key of this name.
fn known(key: &str) -> Result<&'static str, DevargsError> {
    KEYS.into_iter()
        .find(|known| *known == key)
        .ok_or_else(|| DevargsError::UnknownKey {
            key: key.into(),
            nearest: nearest(key),
        })
}

/// The key with the fewest edits between it and `key`.
fn nearest(key: &str) -> &'static str {
    let first = KEYS.first().copied().unwrap_or_default();
    KEYS.into_iter()
        .min_by_key(|known| distance(key, known))
        .unwrap_or(first)
}

/// Levenshtein's distance: letters to insert, delete or replace.
fn distance(from: &str, to: &str) -> usize {
    // `row` is the distance of what was read of `from` to each beginning of `to`.
    let mut row: Vec<usize> = (0..=to.chars().count()).collect();
    for a in from.chars() {
        let mut diagonal = row.first().copied().unwrap_or_default();
        let mut left = diagonal.saturating_add(1);
        let mut next = vec![left];
        for (b, &above) in to.chars().zip(row.iter().skip(1)) {
            let replaced = diagonal.saturating_add(usize::from(a != b));
            left = replaced
                .min(left.saturating_add(1))
                .min(above.saturating_add(1));
            next.push(left);
            diagonal = above;
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(args: &str) -> PortConfig {
        PortConfig::parse(args).unwrap()
    }

    fn refused(args: &str) -> String {
        PortConfig::parse(args).unwrap_err().to_string()
    }

    #[test]
    fn iface_alone_gives_the_defaults() {
        let config = parse("iface=/run/vhost.sock");

        let expected = PortConfig {
            iface: "/run/vhost.sock".into(),
            queues: 1,
            client: false,
            iommu_support: false,
            postcopy_support: false,
            tso: false,
            linear_buffer: false,
            ext_buffer: false,
            legacy_ol_flags: false,
            ptypes: false,
            dma: None,
        };
        assert_eq!(config, expected);
    }

    #[test]
    fn every_key_is_read() {
        let config = parse(
            "iface=a,queues=8,client=1,iommu-support=1,postcopy-support=1,tso=1,linear-buffer=1,\
             ext-buffer=1,legacy-ol-flags=1,ptypes=1",
        );

        let expected = PortConfig {
            iface: "a".into(),
            queues: 8,
            client: true,
            iommu_support: true,
            postcopy_support: true,
            tso: true,
            linear_buffer: true,
            ext_buffer: true,
            legacy_ol_flags: true,
            ptypes: true,
            dma: None,
        };
        assert_eq!(config, expected);
    }

    #[test]
    fn a_path_may_contain_an_equals_sign() {
        assert_eq!(parse("iface=/run/a=b").iface, "/run/a=b");
    }

    #[test]
    fn empty_pieces_do_not_count() {
        assert_eq!(parse(",iface=a,,queues=2,").queues, 2);
    }

    #[test]
    fn numbers_are_decimal_hexadecimal_or_octal() {
        assert_eq!(parse("iface=a,queues=16").queues, 16);
        assert_eq!(parse("iface=a,queues=0x10").queues, 16);
        assert_eq!(parse("iface=a,queues=010").queues, 8);
        assert!(!parse("iface=a,client=0").client);
    }

    #[test]
    fn any_number_switches_on_as_in_the_c_driver() {
        assert!(parse("iface=a,tso=2").tso);
    }

    #[test]
    fn two_is_no_value_for_linear_buffer() {
        assert_eq!(
            refused("iface=a,linear-buffer=2"),
            "linear-buffer=2: 0 (off) or 1 (on) is allowed"
        );
    }

    #[test]
    fn text_is_no_switch() {
        assert_eq!(
            refused("iface=a,tso=yes"),
            "tso=yes: 0 (off) or 1 (on) is allowed"
        );
    }

    #[test]
    fn queues_stay_between_1_and_128() {
        let allowed = "a number of queue pairs from 1 to 128 is allowed";
        for value in [
            "0", "129", "1024", "65537", "-1", "abc", "", " 1", "1 ", "+1", "08", "0x",
        ] {
            let expected = format!("queues={value}: {allowed}");
            assert_eq!(refused(&format!("iface=a,queues={value}")), expected);
        }
        assert_eq!(parse("iface=a,queues=128").queues, 128);
    }

    #[test]
    fn an_unknown_key_is_named_with_its_neighbour() {
        assert_eq!(
            refused("iface=a,queue=2"),
            "queue: unknown key, did you mean queues? Allowed are iface, queues, client, \
             iommu-support, postcopy-support, tso, linear-buffer, ext-buffer, legacy-ol-flags, ptypes, \
             dmas, dmathr, dma-ring-size, dma_ring_size"
        );
        assert_eq!(nearest("iommu_support"), "iommu-support");
        assert_eq!(nearest("linear-buffers"), "linear-buffer");
    }

    #[test]
    fn a_key_needs_a_value() {
        assert_eq!(
            refused("iface=a,client"),
            "client: has no value, client=<value> is expected"
        );
        assert_eq!(
            refused("iface"),
            "iface: has no value, iface=<value> is expected"
        );
    }

    #[test]
    fn a_key_is_given_once() {
        assert_eq!(refused("iface=a,iface=b"), "iface=b: iface is given twice");
        assert_eq!(
            refused("queues=1,iface=a,queues=1"),
            "queues=1: queues is given twice"
        );
    }

    #[test]
    fn iface_is_needed_and_has_1_to_107_bytes() {
        assert_eq!(refused("queues=1"), "iface=<path of the socket> is missing");
        assert_eq!(refused(""), "iface=<path of the socket> is missing");
        assert_eq!(
            refused("iface="),
            "iface=: the path of a socket is expected"
        );
        assert_eq!(
            parse(&format!("iface={}", "a".repeat(107))).iface.len(),
            107
        );
        assert!(refused(&format!("iface={}", "a".repeat(108))).ends_with("at most 107 bytes"));
    }

    #[test]
    fn a_vduse_device_is_no_socket() {
        assert!(refused("iface=/dev/vduse/a").contains("VDUSE"));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_fail_otherwise(args in "[a-z=,0-9x+ -]{0,64}|\\PC{0,64}") {
            if let Ok(config) = PortConfig::parse(&args) {
                prop_assert!((1..=MAX_QUEUES).contains(&config.queues));
                prop_assert!((1..=MAX_IFACE).contains(&config.iface.len()));
            }
        }

        #[test]
        fn what_is_written_is_read(
            queues in 1..=MAX_QUEUES,
            client in any::<bool>(),
            tso in any::<bool>(),
            iface in "/[a-z./=]{1,60}",
        ) {
            let (client_digit, tso_digit) = (u8::from(client), u8::from(tso));
            let args = format!(
                "tso={tso_digit},queues={queues:#x},iface={iface},client={client_digit}"
            );

            let config = PortConfig::parse(&args);

            prop_assume!(!iface.starts_with(VDUSE));
            let config = config.unwrap();
            prop_assert_eq!(
                (config.iface, config.queues, config.client, config.tso),
                (iface, queues, client, tso)
            );
        }
    }
}
