//! The node daemon: captures pod traffic, tunnels it, authorizes it.

pub mod next_hop;
