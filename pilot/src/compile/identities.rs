//! Which identities live on which node.
//!
//! In: pods. Out: [`NodeIdentities`], of which the certificate service asks what a node may have.

use std::{collections::BTreeMap, sync::Arc};

use imbl::HashMap;

use crate::manifests::{Object, Pod, PodState};

/// Namespace and service account.
type Account = (Arc<str>, Box<str>);

/// The service accounts of the pods on each node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeIdentities {
    /// With how many pods each has.
    nodes: HashMap<Box<str>, Arc<BTreeMap<Account, usize>>>,
}

impl NodeIdentities {
    pub(super) fn of<'a>(pods: impl IntoIterator<Item = &'a Arc<Object<Pod>>>) -> Self {
        let mut identities = Self::default();
        for pod in pods {
            identities.add(pod);
        }
        identities
    }

    /// Whether a pod of `service_account` that has not ended is scheduled on `node`.
    pub fn has(&self, node: &str, namespace: &str, service_account: &str) -> bool {
        let accounts = self.nodes.get(node);
        accounts.is_some_and(|accounts| {
            accounts.contains_key(&(namespace.into(), service_account.into()))
        })
    }

    /// Whether a pod of `service_account` that has not ended is scheduled on any node.
    pub fn anywhere(&self, namespace: &str, service_account: &str) -> bool {
        let account = (namespace.into(), service_account.into());
        self.nodes.values().any(|accounts| accounts.contains_key(&account))
    }

    /// Namespace and service account of all pods of `node`, if these are one: of a host that is a workload itself.
    pub fn only(&self, node: &str) -> Option<(&str, &str)> {
        let mut accounts = self.nodes.get(node)?.keys();
        let (namespace, service_account) = accounts.next()?;
        accounts.next().is_none().then_some((namespace, service_account))
    }

    pub(super) fn add(&mut self, pod: &Object<Pod>) {
        if let Some((node, account)) = of_pod(pod) {
            let accounts = self.nodes.entry(node.into()).or_default();
            *Arc::make_mut(accounts).entry(account).or_default() += 1;
        }
    }

    /// Takes back what [`Self::add`] did.
    pub(super) fn remove(&mut self, pod: &Object<Pod>) {
        let Some((node, account)) = of_pod(pod) else { return };
        let Some(accounts) = self.nodes.get_mut(node) else { return };
        let accounts = Arc::make_mut(accounts);
        if let Some(pods) = accounts.get_mut(&account) {
            *pods -= 1;
            if *pods == 0 {
                accounts.remove(&account);
            }
        }
        if accounts.is_empty() {
            self.nodes.remove(node);
        }
    }
}

/// Where a pod lives that has not ended, and as whom.
fn of_pod(pod: &Object<Pod>) -> Option<(&str, Account)> {
    let node = &*pod.spec.node;
    let lives = pod.spec.state != PodState::Ended && !node.is_empty();
    lives.then(|| (node, (Arc::clone(&pod.meta.namespace), pod.spec.service_account.clone())))
}
