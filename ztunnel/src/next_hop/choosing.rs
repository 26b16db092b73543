//! What a choice among endpoints depends on besides the mesh: chance, and what this node has learnt.
//!
//! In: a random number, and lookups that the caller keeps. Out: nothing by itself; choices read it.

use std::{net::IpAddr, sync::Arc};

use mesh::store::Workload;

use super::dice::Dice;

/// What this node knows of endpoints that the control plane does not.
#[derive(Clone, Copy)]
pub struct Experience<'a> {
    /// How many connections of this node are open to a workload.
    pub open: &'a dyn Fn(&Workload) -> u32,
    /// Whether a workload is left alone for a while because connections to it failed, at this address if it is known.
    pub ejected: &'a dyn Fn(&Workload, Option<IpAddr>) -> bool,
    /// The uids of those that were tried for this very connection.
    pub tried: &'a [Arc<str>],
}

impl Experience<'static> {
    /// No connection was ever made.
    pub const NONE: Self = Self { open: &|_| 0, ejected: &|_, _| false, tried: &[] };
}

/// Chance and experience.
pub(super) struct Choosing<'a> {
    pub(super) dice: Dice,
    pub(super) experience: &'a Experience<'a>,
}
