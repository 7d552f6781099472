//! What only a packed ring has.
#![forbid(unsafe_code)]

#[path = "both.rs"]
mod both;

use crate::testing::FakeDriver;

fn ring(size: u16) -> FakeDriver {
    FakeDriver::packed(size)
}

const SIZES: &[u16] = &[1, 2, 5, 255, 256, 1025, 32768];
