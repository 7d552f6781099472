//! The text behind the name of a `--vdev`, which an orchestrator may have put together from the names
//! that its tenants chose. `cargo xtask fuzz devargs`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rte_net_vhost::devargs::{MAX_QUEUES, PortConfig};

fuzz_target!(|text: &str| {
    let config = match PortConfig::parse(text) {
        Ok(config) => config,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    assert!((1..=MAX_QUEUES).contains(&config.queues));
    assert!((1..108).contains(&config.iface.len()));
    // Said again, it means the same.
    let again = format!(
        "ptypes={},legacy-ol-flags={},ext-buffer={},linear-buffer={},tso={},postcopy-support={},\
         iommu-support={},client={},queues={},iface={}",
        u8::from(config.ptypes),
        u8::from(config.legacy_ol_flags),
        u8::from(config.ext_buffer),
        u8::from(config.linear_buffer),
        u8::from(config.tso),
        u8::from(config.postcopy_support),
        u8::from(config.iommu_support),
        u8::from(config.client),
        config.queues,
        config.iface,
    );
    assert_eq!(PortConfig::parse(&again), Ok(config));
});
