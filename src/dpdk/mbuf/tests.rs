use super::*;

fn mbuf() -> Box<rte_mbuf> {
    // SAFETY: integers and pointers, for which zero is a value.
    unsafe { Box::new_zeroed().assume_init() }
}

fn handle(memory: &mut rte_mbuf) -> Mbuf {
    Mbuf(NonNull::from(memory))
}

#[test]
fn init_rx_fills_the_first_cache_line() {
    let mut memory = mbuf();
    let template = RxTemplate {
        rearm: 128 | 1 << 16 | 1 << 32 | 3 << 48,
        ol_flags: 0,
    };

    let mbuf = handle(&mut memory);
    mbuf.init_rx(
        template,
        RxFields {
            ol_flags: 1,
            packet_type: 0x11,
            pkt_len: 60,
            data_len: 60,
            vlan_tci: 5,
        },
    );

    assert_eq!(
        (mbuf.data_off(), mbuf.refcnt(), mbuf.nb_segs(), mbuf.port()),
        (128, 1, 1, 3)
    );
    assert_eq!((mbuf.ol_flags(), mbuf.packet_type()), (1, 0x11));
    assert_eq!(
        (mbuf.pkt_len(), mbuf.data_len(), mbuf.vlan_tci()),
        (60, 60, 5)
    );
    assert!(mbuf.is_plain());
}

#[test]
fn only_a_single_direct_segment_of_one_owner_is_plain() {
    let mut memory = mbuf();
    let mbuf = handle(&mut memory);
    mbuf.set_nb_segs(1);
    mbuf.add_reference();
    assert!(mbuf.is_plain());

    mbuf.add_reference();
    assert!(!mbuf.is_plain());
    memory.refcnt = 1;

    let mbuf = handle(&mut memory);
    mbuf.set_nb_segs(2);
    assert!(!mbuf.is_plain());
    mbuf.set_nb_segs(1);

    mbuf.set_ol_flags(RTE_MBUF_F_EXTERNAL);
    assert!(!mbuf.is_plain());
    mbuf.set_ol_flags(RTE_MBUF_F_INDIRECT);
    assert!(!mbuf.is_plain());
}

#[test]
fn a_buffer_is_exclusive_when_nobody_shares_it() {
    let mut memory = mbuf();
    memory.refcnt = 1;
    let mbuf = handle(&mut memory);
    assert!(mbuf.is_exclusive());
    mbuf.set_ol_flags(RTE_MBUF_F_INDIRECT);
    assert!(!mbuf.is_exclusive());
    mbuf.set_ol_flags(RTE_MBUF_F_EXTERNAL);
    assert!(!mbuf.is_exclusive());

    let mut shared = rte_mbuf_ext_shared_info {
        free_cb: None,
        fcb_opaque: ptr::null_mut(),
        refcnt: 1,
    };
    memory.shinfo = &raw mut shared;
    assert!(handle(&mut memory).is_exclusive());
    // SAFETY: `shared` from above.
    unsafe { (*memory.shinfo).refcnt = 2 };
    assert!(!handle(&mut memory).is_exclusive());
}

#[test]
fn prepend_needs_headroom() {
    let mut memory = mbuf();
    let mut buffer = [0u8; 64];
    memory.buf_addr = buffer.as_mut_ptr().cast();
    let mbuf = handle(&mut memory);
    mbuf.set_data_off(4);
    mbuf.set_data_len(20);
    mbuf.set_pkt_len(20);

    assert_eq!(mbuf.prepend(4), Some(buffer.as_mut_ptr()));
    assert_eq!(
        (mbuf.data_off(), mbuf.data_len(), mbuf.pkt_len()),
        (0, 24, 24)
    );
    assert_eq!(mbuf.prepend(4), None);
    assert_eq!(
        (mbuf.data_off(), mbuf.data_len(), mbuf.pkt_len()),
        (0, 24, 24)
    );
}
