//! The registry after pods came, went or changed.
//!
//! In: a [`Registry`] and which pods are others. Out: another that shares all else with it, or nothing if more than
//! what is behind services would be another.

use std::sync::Arc;

use super::{Marks, Member, Registry, can_be_reached, pod_key};
use crate::{
    compile::incremental::PodChange,
    manifests::{Manifests, Object, Pod},
};

impl Registry {
    /// The registry of other pods and else the same objects; nothing if more than what is behind services is another.
    pub(in crate::compile) fn with_pods(
        &self,
        manifests: &Manifests,
        changes: &[PodChange],
    ) -> Option<Self> {
        let is_listed = |pod: &Arc<Object<Pod>>| {
            let key = pod_key(&pod.meta.namespace, &pod.meta.name);
            self.fixed.listing.contains_key(key.as_str())
        };
        let both = || changes.iter().flat_map(|change| change.old.iter().chain(&change.new));
        if Marks::of(manifests) != self.marks || both().any(is_listed) {
            return None;
        }
        let mut members = self.members.clone();
        for PodChange { old, new } in changes {
            if let Some(old) = old {
                for host in self.fixed.selecting_pod(old) {
                    let is_it = |one: &Member| match one {
                        Member::Pod(pod) => Arc::ptr_eq(pod, old),
                        Member::Listed(..)
                        | Member::Foreign(..)
                        | Member::Entry(_)
                        | Member::Inline(..)
                        | Member::Name(_) => false,
                    };
                    Arc::make_mut(&mut members[host.index]).retain(|one| !is_it(one));
                }
            }
            if let Some(new) = new.as_ref().filter(|pod| can_be_reached(pod)) {
                for host in self.fixed.selecting_pod(new) {
                    let members = Arc::make_mut(&mut members[host.index]);
                    let at = members.partition_point(|one| one.order() < Member::order_of(new));
                    members.insert(at, Member::Pod(Arc::clone(new)));
                }
            }
        }
        Some(Self { fixed: Arc::clone(&self.fixed), members, marks: self.marks })
    }
}
