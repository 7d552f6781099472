//! Both directions and layouts, with engines of all kinds of faults. Numbers in comments are those of the
//! fault table in docs/dma.md.
#![forbid(unsafe_code)]
#![allow(
    clippy::cast_possible_truncation,
    reason = "numbers of tests are small or wrap on purpose"
)]

mod bench;
mod dequeue;
mod enqueue;
mod faults;
