//! A fake driver, frontend and packets, for tests without DPDK.
