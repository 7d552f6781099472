//! bindgen's output for the installed DPDK headers; see `wrapper.h` and build.rs.

#![allow(
    missing_docs,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::undocumented_unsafe_blocks,
    clippy::multiple_unsafe_ops_per_block,
    clippy::missing_safety_doc,
    clippy::ptr_as_ptr,
    clippy::borrow_as_ptr,
    clippy::cast_possible_truncation,
    clippy::unnecessary_safety_comment,
    unnecessary_transmutes,
    reason = "generated"
)]

use super::abi::{rte_device, rte_mbuf};

include!(concat!(env!("OUT_DIR"), "/dpdk.rs"));
