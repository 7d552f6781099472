//! The packet's way between mbufs and virtqueues.
