//! Anything at all in any order: the session survives, and no file is left.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::Place;
use crate::port::Port;
use crate::raw::*;
use rte_net_vhost::session::SessionConfig;
use rte_net_vhost::session::features::*;

/// With an IOMMU; a number, for the strategy's sake.
const OFFERED: u64 = 0xf_7866_ffcb;

#[derive(Clone, Debug)]
struct Said {
    request: u32,
    flags: u32,
    body: Vec<u8>,
    files: Vec<bool>,
}

/// Messages that lead somewhere, so that the odd ones meet a device in all states.
fn sensible() -> impl Strategy<Value = Said> {
    let index = 0..4_u32;
    let said = |request: u32, body: Vec<u8>, files: Vec<bool>| Said {
        request,
        flags: NEED_REPLY,
        body,
        files,
    };
    (0..20_u32, index, any::<bool>()).prop_map(move |(which, index, flag)| match which {
        0 => {
            let features = if flag { OFFERED } else { VIRTIO_F_VERSION_1 };
            said(SET_FEATURES, u64s(&[features]), vec![])
        }
        1 => said(SET_PROTOCOL_FEATURES, u64s(&[0x8100]), vec![]),
        2 => {
            let regions = [[0, 0x10000, UVA, 0], [0x10000, 0x1000, UVA + 0x10000, 0]];
            let count = 1 + usize::from(flag);
            said(SET_MEM_TABLE, table(&regions[..count]), vec![true; count])
        }
        3 => said(SET_VRING_NUM, u32s(&[index, RING_SIZE]), vec![]),
        4 => said(SET_VRING_BASE, u32s(&[index, 0]), vec![]),
        5 => said(SET_VRING_ADDR, Frontend::addresses(index), vec![]),
        6 => said(SET_VRING_KICK, u64s(&[index.into()]), vec![false]),
        7 => said(SET_VRING_CALL, u64s(&[index.into()]), vec![false]),
        8 | 9 => said(SET_VRING_ENABLE, u32s(&[index, flag.into()]), vec![]),
        10 => said(GET_VRING_BASE, u32s(&[index, 0]), vec![]),
        11 => said(RESET_OWNER, vec![], vec![]),
        12 => said(POSTCOPY_ADVISE, vec![], vec![]),
        13 => said(POSTCOPY_LISTEN, vec![], vec![]),
        14 => said(POSTCOPY_END, vec![], vec![]),
        15 => said(SET_MEM_TABLE, u64s(&[0]), vec![]),
        16 => said(SET_FEATURES, u64s(&[OFFERED & !(1 << 34)]), vec![]),
        17 | 18 => {
            // An update that makes all rings work, or an invalidation of a page of them.
            let (size, kind) = if flag { (0x11000, 2) } else { (0x1000, 3) };
            let page = UVA + u64::from(index) * 0x1000;
            let at = if flag { UVA } else { page };
            let mut body = u64s(&[at, size, at]);
            body.extend([3, kind, 0, 0, 0, 0, 0, 0]);
            said(IOTLB_MSG, body, vec![])
        }
        _ => {
            let mut body = u64s(&[0]);
            body.extend(u64s(&[0x20000, 0x1000, UVA + 0x20000, 0]));
            let request = if flag { ADD_MEM_REG } else { REM_MEM_REG };
            said(request, body, vec![true])
        }
    })
}

fn odd() -> impl Strategy<Value = Said> {
    let body = vec(prop_oneof![3 => 0..3_u8, 1 => any::<u8>()], 0..80);
    let files = vec(any::<bool>(), 0..3);
    (0..46_u32, body, files).prop_map(|(request, body, files)| Said {
        request,
        flags: NEED_REPLY,
        body,
        files,
    })
}

fn sequence() -> impl Strategy<Value = Vec<Said>> {
    vec(prop_oneof![6 => sensible(), 1 => odd()], 1..60)
}

#[test]
fn any_sequence_of_messages_is_survived() {
    let place = Place::new();
    let config = SessionConfig {
        features: OFFERED,
        ..place.config()
    };
    let (endpoint, port) = place.serve_with(config, Port::default());
    let memory = memory(0x11000);
    // All here, so that nobody waits for a page.
    memory.write_all_at(&[0; 0x11000], 0).unwrap();
    let call = event();
    let idle = crate::open_files();
    let begin = Instant::now();
    let config = Config {
        cases: 2000,
        failure_persistence: None,
        ..Config::default()
    };
    let run = TestRunner::new(config).run(&sequence(), |sequence| {
        if begin.elapsed() > Duration::from_secs(5) {
            return Ok(());
        }
        let raw = Raw::connect(&place.path());
        'said: for said in sequence {
            let files: Vec<&dyn AsFd> = said
                .files
                .iter()
                .map(|&is_memory| -> &dyn AsFd {
                    if is_memory { &memory } else { &call }
                })
                .collect();
            raw.send(&message(said.request, said.flags, &said.body), &files);
            // Every message is answered, or is the last, but for an acknowledgement.
            let may_acknowledge = said.body.len() == 8 && said.files.is_empty();
            let ends_with = match said.request {
                SET_MEM_TABLE | ADD_MEM_REG | REM_MEM_REG if may_acknowledge => {
                    // Fails when the connection has ended.
                    let _ = (&raw.socket).write_all(&message(GET_FEATURES, 0, &[]));
                    GET_FEATURES
                }
                request => request,
            };
            'answers: loop {
                let mut header = [0; 12];
                match (&raw.socket).read_exact(&mut header) {
                    Ok(()) => (),
                    Err(error) if error.kind() == ErrorKind::UnexpectedEof => break 'said,
                    Err(error) if error.kind() == ErrorKind::ConnectionReset => break 'said,
                    Err(error) => panic!("{said:?}: {error}"),
                }
                let size = u32::from_ne_bytes(header[8..].try_into().unwrap());
                let mut body = vec![0; size as usize];
                (&raw.socket).read_exact(&mut body).unwrap();
                if header[..4] == ends_with.to_ne_bytes() {
                    break 'answers;
                }
            }
        }
        drop(raw);
        crate::until(|| crate::open_files() == idle);
        prop_assert_eq!(port.given(), Vec::<u16>::new());
        Ok(())
    });
    run.unwrap();
    assert_eq!(Raw::connect(&place.path()).get(GET_FEATURES), OFFERED);
    drop(endpoint);
    drop::<(_, OwnedFd)>((memory, call));
    place.no_file_left();
}
