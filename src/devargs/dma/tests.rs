#![forbid(unsafe_code)]

use proptest::prelude::*;

use super::*;
use crate::devargs::PortConfig;

fn parsed(dma: &str) -> DmaConfig {
    let args = format!("iface=a,queues=4,{dma}");
    PortConfig::parse(&args).unwrap().dma.unwrap()
}

fn refused(dma: &str) -> String {
    let args = format!("iface=a,queues=4,{dma}");
    PortConfig::parse(&args).unwrap_err().to_string()
}

fn shown(config: &DmaConfig) -> Vec<String> {
    let show = |queue: &QueueEngines| {
        let engines: Vec<_> = queue.engines.iter().map(EngineName::to_string).collect();
        let direction = if queue.rx { "rx" } else { "tx" };
        format!("{direction}{} {}", queue.queue, engines.join(" "))
    };
    config.queues.iter().map(show).collect()
}

#[test]
fn a_list_names_queues_and_engines() {
    let config = parsed("dmas=[txq0@00:04.0;txq1@0000:00:04.1,rxq0@wq0.0;rxq1@dma_skeleton;]");
    assert_eq!(
        shown(&config),
        [
            "tx0 0000:00:04.0",
            "tx1 0000:00:04.1",
            "rx0 wq0.0",
            "rx1 dma_skeleton"
        ]
    );
    assert_eq!((config.threshold, config.ring_size), (1024, 4096));
}

#[test]
fn brackets_may_be_left_out() {
    let config = parsed("dmas=txq0@a;rxq3@b,dmathr=4k,dma_ring_size=1000");
    assert_eq!(shown(&config), ["tx0 a", "rx3 b"]);
    assert_eq!((config.threshold, config.ring_size), (4096, 1024));
}

#[test]
fn ranges_and_stars_stand_for_many_queues() {
    let config = parsed("dmas=[txq1-2@a+b;rxq*@sw]");
    assert_eq!(
        shown(&config),
        ["tx1 a b", "tx2 a b", "rx0 sw", "rx1 sw", "rx2 sw", "rx3 sw"]
    );
}

#[test]
fn entries_of_one_queue_add_up_and_doubles_count_once() {
    let config = parsed("dmas=[txq0@a;txq0@b;txq0@a+c],dmas=[txq0@d]");
    assert_eq!(shown(&config), ["tx0 a b c d"]);
    assert_eq!(config.doubled, ["txq0@a+c"]);
}

#[test]
fn an_engine_may_be_asked_for_by_its_driver() {
    let config = parsed("dmas=[txq0@ioat:00:04.0+dsa:e7:01.0-q3+wq:wq0.1+dmadev:x#1+y#0+sw:2]");
    let expected = "tx0 ioat:0000:00:04.0 dsa:0000:e7:01.0-q3 wq:wq0.1 dmadev:x#1 y#0 sw:2";
    assert_eq!(shown(&config), [expected]);
    let name = |nth: usize| &config.queues[0].engines[nth];
    assert_eq!(name(3).vchan, Some(1));
    assert_eq!(name(5).backend, Some(Backend::Software));
}

#[test]
fn what_looks_like_a_pci_address_is_written_whole() {
    for (written, whole) in [
        ("0:4.0", "0000:00:04.0"),
        ("1:E7:01.7", "0001:e7:01.7"),
        ("e7:01.0-q0", "0000:e7:01.0-q0"),
    ] {
        assert_eq!(pci(written).as_deref(), Some(whole));
    }
    for other in [
        "00:20.0",
        "00:04.8",
        "00:04",
        "1:2:3:4.0",
        "00:04.0-q",
        "wq0.1",
    ] {
        assert_eq!(pci(other), None, "{other}");
    }
}

#[test]
fn a_work_queue_has_one_name() {
    let config = parsed("dmas=[txq0@wq00.01+wq0.1+wq:wq0.01+e7:01.0-q03]");
    assert_eq!(shown(&config), ["tx0 wq0.1 wq:wq0.1 0000:e7:01.0-q3"]);
}

#[test]
fn a_bad_entry_is_quoted_and_told_what_is_expected() {
    let queue = "txq<N>, txq<N>-<M>, txq* or the same with rxq is expected before @";
    let name = "an engine's name has 1 to 63 letters, digits, or any of . : _ -";
    for (entry, problem) in [
        ("txq0", "<queue>@<engine> is expected"),
        ("txq0:0000:00:04.0", "<queue>@<engine> is expected"),
        ("txd0@a", queue),
        ("txq@a", queue),
        ("txqx@a", queue),
        ("txq-1@a", queue),
        ("txq+1@a", queue),
        ("@a", queue),
        ("txq4@a", "there is no such queue, see queues="),
        ("txq2-4@a", "there is no such queue, see queues="),
        ("txq65536@a", queue),
        ("txq2-1@a", "the first queue of a range is above the last"),
        ("txq0@", name),
        ("txq0@a+", name),
        ("txq0@a b", name),
        ("txq0@a=1", name),
        ("txq0@[a]", name),
        ("txq0@a#x", "a number is expected behind #"),
        ("txq0@sw#0", "only a dmadev has channels behind #"),
        (
            "txq0@ioat:x",
            "a PCI address is expected, such as 0000:00:04.0",
        ),
        ("txq0@wq:x", "a work queue is expected, such as wq0.1"),
    ] {
        assert_eq!(
            refused(&format!("dmas=[txq0@ok;{entry}]")),
            format!("dmas: {entry}: {problem}")
        );
    }
    assert!(refused(&format!("dmas=[txq0@{}]", "a".repeat(64))).ends_with(name));
    assert!(refused("dmas=[txq0@a;;txq0@b]").contains("<queue>@<engine>"));
}

#[test]
fn a_list_must_be_there_and_closed() {
    assert!(refused("dmas").starts_with("dmas: has no value"));
    for empty in ["dmas=", "dmas=[]", "dmas=[;]"] {
        assert!(
            refused(empty).contains("a list of queues and engines"),
            "{empty}"
        );
    }
    assert_eq!(
        refused("dmas=[txq0@a,dmathr=1"),
        "dmas=[txq0@a,dmathr=1: the bracket is not closed"
    );
}

#[test]
fn thresholds_and_ring_sizes_are_numbers() {
    for value in ["", "x", "-1", "1m", "k", "4294967296", "4194304k"] {
        let text = refused(&format!("dmas=[txq0@a],dmathr={value}"));
        assert!(text.starts_with(&format!("dmathr={value}: ")), "{text}");
    }
    for key in ["dma-ring-size", "dma_ring_size"] {
        for value in ["", "0", "x", "-1", "4294967296"] {
            let text = refused(&format!("{key}={value}"));
            assert!(text.starts_with(&format!("{key}={value}: ")), "{text}");
        }
    }
    for (size, rounded) in [("1", 1), ("33", 64), ("65536", 65536), ("1000000", 65536)] {
        let config = parsed(&format!("dmas=[txq0@a],dma-ring-size={size}"));
        assert_eq!(config.ring_size, rounded);
    }
    assert_eq!(parsed("dmas=[txq0@a],dmathr=0").threshold, 0);
    assert!(refused("dma-ring-size=1,dma_ring_size=2").contains("given twice"));
}

#[test]
fn without_a_list_there_are_no_engines() {
    let config = PortConfig::parse("iface=a,dmathr=1,dma-ring-size=32").unwrap();
    assert_eq!(config.dma, None);
}

proptest! {
    #[test]
    fn no_list_makes_the_parser_fail_otherwise(list in "[\\[\\]txqrsw0-9@;:,.#+*-]{0,40}|\\PC{0,40}") {
        if let Ok(config) = PortConfig::parse(&format!("iface=a,queues=3,dmas={list}"))
            && let Some(dma) = config.dma
        {
            for queue in dma.queues {
                prop_assert!(queue.queue < 3);
                prop_assert!(!queue.engines.is_empty());
            }
        }
    }
}
