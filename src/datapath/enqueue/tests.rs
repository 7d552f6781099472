#![forbid(unsafe_code)]
#![allow(clippy::duplicate_mod, reason = "the same tests for both layouts")]

mod packed;
mod split;
