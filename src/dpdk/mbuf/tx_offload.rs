//! What an mbuf tells a transmit offload about its headers.

/// Header lengths and segment size of an mbuf, for transmit offloads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct TxOffload(pub(super) u64);

impl TxOffload {
    #[allow(
        clippy::cast_possible_truncation,
        reason = "the mask has at most 16 bits"
    )]
    #[inline(always)]
    const fn bits(self, shift: u32, width: u32) -> u16 {
        (self.0 >> shift & ((1 << width) - 1)) as u16
    }

    #[inline(always)]
    const fn with(self, shift: u32, width: u32, value: u16) -> Self {
        let mask = (1 << width) - 1;
        Self(self.0 & !(mask << shift) | (value as u64 & mask) << shift)
    }

    /// L2 header, or outer L4, tunnel header and inner L2 of a tunnel.
    pub const fn l2_len(self) -> u16 {
        self.bits(0, 7)
    }

    /// L3 header.
    pub const fn l3_len(self) -> u16 {
        self.bits(7, 9)
    }

    /// L4 header.
    pub const fn l4_len(self) -> u16 {
        self.bits(16, 8)
    }

    /// Payload of each segment that a large packet is cut into.
    pub const fn tso_segsz(self) -> u16 {
        self.bits(24, 16)
    }

    /// L3 header around a tunnel.
    pub const fn outer_l3_len(self) -> u16 {
        self.bits(40, 9)
    }

    /// L2 header around a tunnel.
    pub const fn outer_l2_len(self) -> u16 {
        self.bits(49, 7)
    }

    /// The same with another [`TxOffload::l2_len`].
    #[must_use]
    pub const fn with_l2_len(self, len: u16) -> Self {
        self.with(0, 7, len)
    }

    /// The same with another [`TxOffload::l3_len`].
    #[must_use]
    pub const fn with_l3_len(self, len: u16) -> Self {
        self.with(7, 9, len)
    }

    /// The same with another [`TxOffload::l4_len`].
    #[must_use]
    pub const fn with_l4_len(self, len: u16) -> Self {
        self.with(16, 8, len)
    }

    /// The same with another [`TxOffload::tso_segsz`].
    #[must_use]
    pub const fn with_tso_segsz(self, size: u16) -> Self {
        self.with(24, 16, size)
    }

    /// The same with another [`TxOffload::outer_l2_len`].
    #[must_use]
    pub const fn with_outer_l2_len(self, len: u16) -> Self {
        self.with(49, 7, len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offload_fields_stand_where_dpdk_has_them() {
        let offload = TxOffload::default()
            .with_l2_len(14)
            .with_l3_len(20)
            .with_l4_len(32)
            .with_tso_segsz(1448)
            .with_outer_l2_len(18);

        assert_eq!(offload.0, 14 | 20 << 7 | 32 << 16 | 1448 << 24 | 18 << 49);
        assert_eq!(
            (offload.l2_len(), offload.l3_len(), offload.l4_len()),
            (14, 20, 32)
        );
        assert_eq!((offload.tso_segsz(), offload.outer_l2_len()), (1448, 18));
        assert_eq!(offload.outer_l3_len(), 0);
    }
}
