//! Turns one snapshot into the next.
//!
//! In: an [`Update`]. Out: a [`Snapshot`] whose indexes agree with its resources. The cost is that of what changed: everything
//! else stays shared with the snapshot before.

use std::sync::Arc;

use imbl::OrdMap;

use super::{
    Endpoints, Service, Snapshot, Update, Workload, endpoints::Layout, few::Few,
    interner::Interner, keys,
};

impl Snapshot {
    /// Applies one change.
    pub(super) fn apply(&mut self, update: Update, interner: &mut Interner) {
        match update {
            Update::Workload(mut workload) => {
                interner.workload(&mut workload);
                self.put_workload(Arc::new(workload));
            }
            Update::Service(service) => self.put_service(Arc::new(service)),
            Update::RemoveAddress(name) => self.remove_address(&name),
            Update::Policy(policy) => self.policies.insert(policy),
            Update::RejectPolicy(rejected) => self.policies.reject(rejected),
            Update::RemovePolicy(key) => self.policies.remove(&key),
        }
    }

    fn put_workload(&mut self, workload: Arc<Workload>) {
        let former = self.workloads.insert(workload.uid.clone(), workload.clone());
        if let Some(former) = &former {
            self.forget_names(former, Some(&workload));
            for membership in former.services.iter() {
                if workload.membership(&membership.service).is_none() {
                    self.remove_endpoint(&membership.service, former);
                }
            }
        }
        self.addresses.put_workload(&workload, former.as_deref());
        let same = |held: &Workload| held.uid == workload.uid;
        put(&mut self.workloads_by_name, workload.name.clone(), &workload, same);
        if let Some(key) = host_key(&workload) {
            put(&mut self.workloads_by_host, key, &workload, same);
        }
        for membership in workload.services.iter() {
            let known = self.services.get(&membership.service);
            let empty = || known.map(|service| Layout::of(&service.load_balancing));
            self.endpoints
                .entry(membership.service.clone())
                .or_insert_with(|| Endpoints::laid_out(empty().unwrap_or_default()))
                .put(workload.clone(), former.as_deref());
        }
    }

    fn put_service(&mut self, service: Arc<Service>) {
        let former = self.services.insert(service.key.clone(), service.clone());
        self.addresses.put_service(&service, former.as_deref());
        // The key contains the host name: a service of the same key is under it already.
        let same = |held: &Service| held.key == service.key;
        put(&mut self.services_by_host, service.hostname.clone(), &service, same);
        if let Some(endpoints) = self.endpoints.get_mut(&service.key) {
            endpoints.lay_out(Layout::of(&service.load_balancing));
        }
    }

    /// A name is a workload's uid, or else a service's `<namespace>/<hostname>`. A removal of what is not there is no error.
    fn remove_address(&mut self, name: &str) {
        if let Some(workload) = self.workloads.remove(name) {
            self.forget_names(&workload, None);
            self.addresses.remove_workload(&workload);
            for membership in workload.services.iter() {
                self.remove_endpoint(&membership.service, &workload);
            }
        } else if let Some(service) = self.services.remove(name) {
            self.addresses.remove_service(&service);
            remove(&mut self.services_by_host, &service.hostname, |held| held.key == service.key);
        }
    }

    /// Takes a workload out of the indexes by name, except under names that the next version of it has too.
    fn forget_names(&mut self, former: &Workload, next: Option<&Workload>) {
        let same = |held: &Workload| held.uid == former.uid;
        if next.is_none_or(|next| next.name != former.name) {
            remove(&mut self.workloads_by_name, &former.name, same);
        }
        if let Some(host) = host_key(former)
            && next.and_then(host_key).is_none_or(|next| next != host)
        {
            remove(&mut self.workloads_by_host, &host, same);
        }
    }

    fn remove_endpoint(&mut self, service: &str, workload: &Workload) {
        let Some(endpoints) = self.endpoints.get_mut(service) else { return };
        endpoints.remove(workload);
        if endpoints.is_empty() {
            self.endpoints.remove(service);
        }
    }
}

fn host_key(workload: &Workload) -> Option<Arc<str>> {
    (!workload.hostname.is_empty())
        .then(|| keys::namespaced(&workload.namespace, &workload.hostname))
}

fn put<T>(
    index: &mut OrdMap<Arc<str>, Few<T>>,
    key: Arc<str>,
    value: &Arc<T>,
    same: impl Fn(&T) -> bool,
) {
    let few = match index.get(&key) {
        Some(few) => few.put(value.clone(), same),
        None => Few::One(value.clone()),
    };
    index.insert(key, few);
}

fn remove<T>(index: &mut OrdMap<Arc<str>, Few<T>>, key: &str, same: impl Fn(&T) -> bool) {
    match index.get(key).and_then(|few| few.without(same)) {
        Some(rest) => index.insert(key.into(), rest).map(drop),
        None => index.remove(key).map(drop),
    };
}
