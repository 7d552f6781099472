//! Feature bits: what is offered, and how they are called.
#![forbid(unsafe_code)]

macro_rules! bits {
    ($(#[$about:meta])* $names:ident: $($(#[$doc:meta])* $name:ident = $bit:literal,)*) => {
        $($(#[$doc])* pub const $name: u64 = 1 << $bit;)*
        $(#[$about])*
        const $names: &[(u64, &str)] = &[$(($name, stringify!($name)),)*];
    };
}

bits! {
    /// Virtio and vhost feature bits (VIRTIO 1.2, 5.1.3 and 6; vhost-user, "Feature bits").
    NAMES:
    /// The driver may leave checksums to the device.
    VIRTIO_NET_F_CSUM = 0,
    /// The driver takes packets with a partial checksum.
    VIRTIO_NET_F_GUEST_CSUM = 1,
    /// The device tells its MTU.
    VIRTIO_NET_F_MTU = 3,
    /// The driver takes and sends packets of any GSO kind (legacy).
    VIRTIO_NET_F_GSO = 6,
    /// The driver takes TSO over IPv4.
    VIRTIO_NET_F_GUEST_TSO4 = 7,
    /// The driver takes TSO over IPv6.
    VIRTIO_NET_F_GUEST_TSO6 = 8,
    /// The driver takes TSO with ECN.
    VIRTIO_NET_F_GUEST_ECN = 9,
    /// The driver takes UFO.
    VIRTIO_NET_F_GUEST_UFO = 10,
    /// The driver may send TSO over IPv4.
    VIRTIO_NET_F_HOST_TSO4 = 11,
    /// The driver may send TSO over IPv6.
    VIRTIO_NET_F_HOST_TSO6 = 12,
    /// The driver may send TSO with ECN.
    VIRTIO_NET_F_HOST_ECN = 13,
    /// The driver may send UFO.
    VIRTIO_NET_F_HOST_UFO = 14,
    /// The driver merges receive buffers.
    VIRTIO_NET_F_MRG_RXBUF = 15,
    /// There is a control queue; the frontend serves it.
    VIRTIO_NET_F_CTRL_VQ = 17,
    /// The control queue sets the receive mode.
    VIRTIO_NET_F_CTRL_RX = 18,
    /// The driver announces itself after a migration.
    VIRTIO_NET_F_GUEST_ANNOUNCE = 21,
    /// There is more than one queue pair.
    VIRTIO_NET_F_MQ = 22,
    /// Writes to guest memory are logged.
    VHOST_F_LOG_ALL = 26,
    /// Any layout of descriptors.
    VIRTIO_F_ANY_LAYOUT = 27,
    /// Indirect descriptors.
    VIRTIO_RING_F_INDIRECT_DESC = 28,
    /// Event indices.
    VIRTIO_RING_F_EVENT_IDX = 29,
    /// Protocol features can be negotiated.
    VHOST_USER_F_PROTOCOL_FEATURES = 30,
    /// VIRTIO 1.0 or later.
    VIRTIO_F_VERSION_1 = 32,
    /// The device goes through an IOMMU.
    VIRTIO_F_IOMMU_PLATFORM = 33,
    /// The packed ring.
    VIRTIO_F_RING_PACKED = 34,
    /// Buffers are used in the order in which they were made available.
    VIRTIO_F_IN_ORDER = 35,
    /// The driver takes USO over IPv4.
    VIRTIO_NET_F_GUEST_USO4 = 54,
    /// The driver takes USO over IPv6.
    VIRTIO_NET_F_GUEST_USO6 = 55,
    /// The driver may send USO.
    VIRTIO_NET_F_HOST_USO = 56,
}

bits! {
    /// Protocol feature bits (vhost-user, "Protocol features").
    PROTOCOL_NAMES:
    /// More than one queue pair.
    VHOST_USER_PROTOCOL_F_MQ = 0,
    /// The dirty log comes as a file.
    VHOST_USER_PROTOCOL_F_LOG_SHMFD = 1,
    /// `SEND_RARP`.
    VHOST_USER_PROTOCOL_F_RARP = 2,
    /// `NEED_REPLY` is answered.
    VHOST_USER_PROTOCOL_F_REPLY_ACK = 3,
    /// `NET_SET_MTU`.
    VHOST_USER_PROTOCOL_F_NET_MTU = 4,
    /// `SET_BACKEND_REQ_FD`.
    VHOST_USER_PROTOCOL_F_BACKEND_REQ = 5,
    /// Crypto sessions.
    VHOST_USER_PROTOCOL_F_CRYPTO_SESSION = 7,
    /// Postcopy migration.
    VHOST_USER_PROTOCOL_F_PAGEFAULT = 8,
    /// `GET_CONFIG`, `SET_CONFIG`.
    VHOST_USER_PROTOCOL_F_CONFIG = 9,
    /// The backend may send files.
    VHOST_USER_PROTOCOL_F_BACKEND_SEND_FD = 10,
    /// Doorbells mapped into the guest.
    VHOST_USER_PROTOCOL_F_HOST_NOTIFIER = 11,
    /// `GET_INFLIGHT_FD`, `SET_INFLIGHT_FD`.
    VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD = 12,
    /// `GET_MAX_MEM_SLOTS`, `ADD_MEM_REG`, `REM_MEM_REG`.
    VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS = 15,
    /// `GET_STATUS`, `SET_STATUS`.
    VHOST_USER_PROTOCOL_F_STATUS = 16,
}

/// What an offer depends on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offer {
    /// Drivers may send large frames of TCP.
    pub tso: bool,
    /// Frames are received into one buffer each.
    pub linear_buffer: bool,
    /// That buffer may be larger than one of the pool.
    pub ext_buffer: bool,
    /// Guests may come by postcopy migration (`postcopy-support=1`).
    pub postcopy: bool,
    /// Packets can say that they stand for datagrams, not for fragments of one.
    pub datagrams: bool,
    /// The device may be behind an IOMMU.
    pub iommu: bool,
}

/// The virtio features that a port offers.
pub fn word(offer: Offer) -> u64 {
    let iommu = match offer.iommu {
        true => VIRTIO_F_IOMMU_PLATFORM,
        false => 0,
    };
    offered() & !withdrawn(offer) | added(offer) | iommu
}

/// The ones that the C driver does not have. By default there are none: a driver that acked one
/// could not go back to it, nor be migrated to it. `tso=1` asks for large frames of all kinds.
fn added(offer: Offer) -> u64 {
    if offer.tso && offer.datagrams && withdrawn(offer) == 0 {
        VIRTIO_NET_F_GUEST_USO4 | VIRTIO_NET_F_GUEST_USO6 | VIRTIO_NET_F_HOST_USO
    } else {
        0
    }
}

/// The virtio features that are not offered, of those in [`offered`].
pub fn withdrawn(offer: Offer) -> u64 {
    let tso = VIRTIO_NET_F_HOST_TSO4 | VIRTIO_NET_F_HOST_TSO6;
    if offer.linear_buffer && !offer.ext_buffer {
        // Nothing that may be larger than a buffer.
        tso | VIRTIO_NET_F_HOST_UFO
    } else if offer.tso {
        0
    } else {
        tso
    }
}

/// The protocol features that a port offers.
pub fn protocol_word(offer: Offer) -> u64 {
    if offer.postcopy {
        offered_protocol()
    } else {
        offered_protocol() & !VHOST_USER_PROTOCOL_F_PAGEFAULT
    }
}

/// The virtio features that a port can offer, and the C driver as well.
pub fn offered() -> u64 {
    VIRTIO_NET_F_CSUM
        | VIRTIO_NET_F_GUEST_CSUM
        | VIRTIO_NET_F_MTU
        | VIRTIO_NET_F_GSO
        | VIRTIO_NET_F_GUEST_TSO4
        | VIRTIO_NET_F_GUEST_TSO6
        | VIRTIO_NET_F_GUEST_ECN
        | VIRTIO_NET_F_GUEST_UFO
        | VIRTIO_NET_F_HOST_TSO4
        | VIRTIO_NET_F_HOST_TSO6
        | VIRTIO_NET_F_HOST_ECN
        | VIRTIO_NET_F_HOST_UFO
        | VIRTIO_NET_F_MRG_RXBUF
        | VIRTIO_NET_F_CTRL_VQ
        | VIRTIO_NET_F_CTRL_RX
        | VIRTIO_NET_F_GUEST_ANNOUNCE
        | VIRTIO_NET_F_MQ
        | VHOST_F_LOG_ALL
        | VIRTIO_F_ANY_LAYOUT
        | VIRTIO_RING_F_INDIRECT_DESC
        | VIRTIO_RING_F_EVENT_IDX
        | VHOST_USER_F_PROTOCOL_FEATURES
        | VIRTIO_F_VERSION_1
        | VIRTIO_F_RING_PACKED
        | VIRTIO_F_IN_ORDER
}

/// The protocol features that a port can offer.
pub fn offered_protocol() -> u64 {
    VHOST_USER_PROTOCOL_F_MQ
        | VHOST_USER_PROTOCOL_F_LOG_SHMFD
        | VHOST_USER_PROTOCOL_F_RARP
        | VHOST_USER_PROTOCOL_F_REPLY_ACK
        | VHOST_USER_PROTOCOL_F_NET_MTU
        | VHOST_USER_PROTOCOL_F_BACKEND_REQ
        | VHOST_USER_PROTOCOL_F_PAGEFAULT
        | VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS
        | VHOST_USER_PROTOCOL_F_STATUS
}

/// The names of the bits in a word of virtio features; those without one are left out.
pub fn each_name(word: u64) -> impl Iterator<Item = &'static str> {
    let known = NAMES.iter().filter(move |(bit, _)| word & bit != 0);
    known.map(|(_, name)| *name)
}

/// The names of the bits in a word of virtio features, for a log line.
pub fn names(word: u64) -> String {
    spell(word, NAMES)
}

/// The names of the bits in a word of protocol features, for a log line.
pub fn protocol_names(word: u64) -> String {
    spell(word, PROTOCOL_NAMES)
}

/// Bits without a name come last, as a number.
fn spell(word: u64, table: &[(u64, &str)]) -> String {
    let mut words = Vec::new();
    let mut rest = word;
    for (bit, name) in table {
        if word & bit != 0 {
            words.push((*name).to_owned());
            rest &= !bit;
        }
    }
    if rest != 0 || words.is_empty() {
        words.push(format!("{rest:#x}"));
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_bits_are_spelt_as_a_number() {
        assert_eq!(
            names(VIRTIO_NET_F_MQ | 1 << 60),
            "VIRTIO_NET_F_MQ 0x1000000000000000"
        );
        assert_eq!(protocol_names(0), "0x0");
    }

    #[test]
    fn bits_have_the_numbers_of_the_specification() {
        assert_eq!(offered(), 0xd_7c66_ffcb);
        assert_eq!(offered_protocol(), 0x1_813f);
        assert_eq!(protocol_word(Offer::default()), 0x1_803f);
        let with = Offer {
            postcopy: true,
            ..Offer::default()
        };
        assert_eq!(protocol_word(with), offered_protocol());
    }

    #[test]
    fn devargs_withdraw_what_the_c_driver_withdraws() {
        let given = |tso, linear_buffer, ext_buffer| {
            let offer = Offer {
                tso,
                linear_buffer,
                ext_buffer,
                ..Offer::default()
            };
            word(offer)
        };
        assert_eq!(given(false, false, false), 0xd_7c66_e7cb);
        assert_eq!(given(true, false, false), 0xd_7c66_ffcb);
        assert_eq!(given(false, true, false), 0xd_7c66_a7cb);
        assert_eq!(given(true, true, false), 0xd_7c66_a7cb);
        assert_eq!(given(true, true, true), 0xd_7c66_ffcb);
        assert_eq!(given(false, true, true), 0xd_7c66_e7cb);
    }

    #[test]
    fn an_iommu_is_a_bit_more() {
        for tso in [false, true] {
            let plain = Offer {
                tso,
                ..Offer::default()
            };
            let iommu = Offer {
                iommu: true,
                ..plain
            };
            assert_eq!(word(iommu) ^ word(plain), 1 << 33);
        }
    }

    #[test]
    fn uso_comes_with_tso_and_with_nothing_else() {
        for (tso, linear_buffer, ext_buffer) in (0..8).map(|n| (n & 1 != 0, n & 2 != 0, n & 4 != 0))
        {
            let without = Offer {
                tso,
                linear_buffer,
                ext_buffer,
                ..Offer::default()
            };
            let with = Offer {
                datagrams: true,
                ..without
            };
            let large = word(without) & VIRTIO_NET_F_HOST_TSO4 != 0;
            let expected = if large { 0x1c0_0000_0000_0000 } else { 0 };
            assert_eq!(word(with) ^ word(without), expected, "{with:?}");
        }
    }
}
