//! The node daemon: captures pod traffic, tunnels it, authorizes it.
#![forbid(unsafe_code)]

fn main() {}
