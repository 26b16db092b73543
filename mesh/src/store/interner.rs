//! Keeps one copy of what many workloads have in common.
//!
//! In: a decoded workload with texts of its own. Out: the same workload sharing equal parts with others. It holds nothing
//! alive for long: whatever only the interner knows is dropped when a table has doubled.

use std::{collections::HashSet, hash::Hash, sync::Arc};

use super::{GatewayAddress, GatewayTarget, Membership, Workload};
use crate::identity::Spiffe;

/// A table this small is not swept.
const SMALLEST_SWEPT: usize = 1024;

/// Shared parts of workloads.
#[derive(Debug, Default)]
pub(super) struct Interner {
    texts: Table<str>,
    identities: Table<[Spiffe]>,
    services: Table<[Membership]>,
    policies: Table<[Arc<str>]>,
}

/// Shared values of one type.
#[derive(Debug)]
struct Table<T: ?Sized> {
    held: HashSet<Arc<T>>,
    sweep_at: usize,
}

impl<T: ?Sized> Default for Table<T> {
    fn default() -> Self {
        Self { held: HashSet::default(), sweep_at: SMALLEST_SWEPT }
    }
}

impl<T: ?Sized + Eq + Hash> Table<T> {
    /// Puts the held copy in the place of an equal value, or holds this one from here on.
    fn share(&mut self, value: &mut Arc<T>) {
        if let Some(held) = self.held.get(&**value) {
            *value = held.clone();
            return;
        }
        if self.held.len() >= self.sweep_at {
            self.held.retain(|held| Arc::strong_count(held) > 1);
            self.sweep_at = (self.held.len() * 2).max(SMALLEST_SWEPT);
        }
        self.held.insert(value.clone());
    }
}

impl Interner {
    /// Shares every part of a workload that others are likely to have too. Its uid and name are its own.
    pub(super) fn workload(&mut self, workload: &mut Workload) {
        if workload.workload_name == workload.name {
            workload.workload_name = workload.name.clone();
        } else {
            self.texts.share(&mut workload.workload_name);
        }
        for text in [
            &mut workload.namespace,
            &mut workload.hostname,
            &mut workload.network,
            &mut workload.trust_domain,
            &mut workload.service_account,
            &mut workload.node,
            &mut workload.cluster,
            &mut workload.canonical_name,
            &mut workload.canonical_revision,
            &mut workload.locality.region,
            &mut workload.locality.zone,
            &mut workload.locality.subzone,
        ] {
            self.texts.share(text);
        }
        for gateway in [&mut workload.waypoint, &mut workload.network_gateway].into_iter().flatten()
        {
            self.gateway(gateway);
        }
        self.identities.share(&mut workload.identities);
        if let Some(memberships) = Arc::get_mut(&mut workload.services) {
            for membership in memberships {
                self.texts.share(&mut membership.service);
            }
        }
        self.services.share(&mut workload.services);
        if let Some(policies) = Arc::get_mut(&mut workload.policies) {
            for policy in policies {
                self.texts.share(policy);
            }
        }
        self.policies.share(&mut workload.policies);
    }

    fn gateway(&mut self, gateway: &mut GatewayAddress) {
        match &mut gateway.target {
            GatewayTarget::Address { network, ip: _ } => self.texts.share(network),
            GatewayTarget::Host { key } => self.texts.share(key),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_become_one() {
        let mut table = Table::<str>::default();
        let (mut a, mut b): (Arc<str>, Arc<str>) = ("shop".into(), "shop".into());
        table.share(&mut a);
        table.share(&mut b);
        assert!(Arc::ptr_eq(&a, &b));
    }

    #[test]
    fn what_nobody_uses_is_dropped_when_the_table_has_doubled() {
        let mut table = Table::<str>::default();
        let mut kept: Arc<str> = "kept".into();
        table.share(&mut kept);
        for n in 0..2 * SMALLEST_SWEPT {
            table.share(&mut n.to_string().into());
        }
        assert!(table.held.len() <= SMALLEST_SWEPT + 1, "{}", table.held.len());
        let mut again: Arc<str> = "kept".into();
        table.share(&mut again);
        assert!(Arc::ptr_eq(&kept, &again));
    }
}
