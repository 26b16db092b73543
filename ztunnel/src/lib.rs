//! The node daemon: captures pod traffic, tunnels it, authorizes it.
#![deny(unsafe_code)]

pub mod admin;
pub mod admission;
pub mod balance;
pub mod capture;
pub mod config;
mod control_plane;
pub mod daemon;
pub mod dns;
mod identity;
pub mod next_hop;
pub mod pods;
pub mod proxy;
pub mod proxy_config;
pub mod sys;
