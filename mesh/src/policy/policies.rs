//! All policies, found by what they apply to.
//!
//! In: policies that come and go. Out: those that apply to one workload, without a look at the others. A clone shares
//! everything, and a change copies only the path to what changed.

use std::sync::Arc;

use imbl::OrdMap;

use super::{
    Action, Connection, Destination, Mode, Policy, Rejected, Scope,
    candidates::{ByKey, Candidates},
};

/// Every policy of the mesh.
#[derive(Clone, Debug, Default)]
pub struct Policies {
    pub(super) by_key: ByKey,
    global: Group,
    by_namespace: OrdMap<Arc<str>, Arc<Group>>,
    /// Those whose last version cannot be understood, whether an older one is held or not.
    pub(super) rejected: OrdMap<Arc<str>, Arc<Rejected>>,
}

/// The policies for everyone, or those of a namespace.
#[derive(Clone, Debug, Default)]
struct Group {
    all: ByKey,
    deny: Candidates,
    allow: Candidates,
    dry_run: ByKey,
}

impl Policies {
    /// Adds a policy, in place of one with the same key.
    pub fn insert(&mut self, policy: Policy) {
        let policy = Arc::new(policy);
        self.remove(&policy.key);
        self.by_key.insert(policy.key.clone(), policy.clone());
        match policy.scope {
            Scope::Global => self.global.insert(policy),
            Scope::Namespace => {
                let namespace = self.by_namespace.entry(policy.namespace.clone()).or_default();
                Arc::make_mut(namespace).insert(policy);
            }
            Scope::WorkloadSelector => {}
        }
    }

    /// Removes the policy `<namespace>/<name>`, if it is there.
    pub fn remove(&mut self, key: &str) {
        self.rejected.remove(key);
        let Some(policy) = self.by_key.remove(key) else { return };
        match policy.scope {
            Scope::Global => self.global.remove(&policy),
            Scope::Namespace => {
                if let Some(namespace) = self.by_namespace.get_mut(&policy.namespace) {
                    let namespace = Arc::make_mut(namespace);
                    namespace.remove(&policy);
                    if namespace.all.is_empty() {
                        self.by_namespace.remove(&policy.namespace);
                    }
                }
            }
            Scope::WorkloadSelector => {}
        }
    }

    /// Notes that the newest version of a policy cannot be understood. An older one that is held stays in force; without
    /// one, nothing is allowed where it would apply.
    pub fn reject(&mut self, rejected: Rejected) {
        self.rejected.insert(rejected.key.clone(), Arc::new(rejected));
    }

    /// Every policy whose newest version cannot be understood, in the order of their keys.
    pub fn rejected(&self) -> impl Iterator<Item = &Arc<Rejected>> {
        self.rejected.values()
    }

    /// The policy `<namespace>/<name>`.
    pub fn get(&self, key: &str) -> Option<&Arc<Policy>> {
        self.by_key.get(key)
    }

    /// Every policy, in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.by_key.values()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_key.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    /// Whether nothing changed between the two: then a decision made with the one holds with the other.
    pub fn same(&self, other: &Self) -> bool {
        self.by_key.ptr_eq(&other.by_key) && self.rejected.ptr_eq(&other.rejected)
    }

    /// The policies that apply to a workload: global ones, those of its namespace, those it names.
    pub fn applying<'a>(&'a self, to: Destination<'a>) -> impl Iterator<Item = &'a Arc<Policy>> {
        self.groups(to).flat_map(|group| group.all.values()).chain(self.named(to))
    }

    /// The first enforced policy of an action that applies and matches, and its first rule that does, counted from 1.
    pub(super) fn first_match<'a>(
        &'a self,
        action: Action,
        to: Destination<'a>,
        connection: &Connection<'_>,
    ) -> Option<(&'a Arc<Policy>, usize)> {
        let mut groups = self.groups(to);
        let in_group = |group: &'a Group| group.of(action).first_match(connection);
        groups.find_map(in_group).or_else(|| {
            let named = self.named(to).filter(|policy| policy.enforces(action));
            named.filter_map(|one| Some((one, one.matching_rule(connection)?))).next()
        })
    }

    /// The enforced ALLOW policies that apply; of many those first that share something with the connection.
    pub(super) fn allowing<'a>(
        &'a self,
        to: Destination<'a>,
        connection: &Connection<'_>,
        many: usize,
    ) -> impl Iterator<Item = &'a Arc<Policy>> {
        let count: usize = self.groups(to).map(|group| group.allow.all().len()).sum();
        let likely = |group: &'a Group| group.allow.likely(connection, many);
        let likely: Vec<_> =
            if count > many { self.groups(to).flat_map(likely).collect() } else { Vec::new() };
        let all = self.groups(to).flat_map(|group| group.allow.all().values());
        let named = self.named(to).filter(|policy| policy.enforces(Action::Allow));
        likely.into_iter().chain(all).chain(named)
    }

    /// The policies in dry-run mode that apply to a workload.
    pub(super) fn dry_runs<'a>(
        &'a self,
        to: Destination<'a>,
    ) -> impl Iterator<Item = &'a Arc<Policy>> {
        let named = self.named(to).filter(|policy| policy.mode == Mode::DryRun);
        self.groups(to).flat_map(|group| group.dry_run.values()).chain(named)
    }

    fn groups<'a>(&'a self, to: Destination<'a>) -> impl Iterator<Item = &'a Group> {
        let namespace = self.by_namespace.get(to.namespace).map(|group| &**group);
        std::iter::once(&self.global).chain(namespace)
    }

    /// The policies that apply only because the workload names them.
    fn named<'a>(&'a self, to: Destination<'a>) -> impl Iterator<Item = &'a Arc<Policy>> {
        // What applies anyway does not apply twice because it is also named.
        let applies_anyway = move |policy: &Policy| match policy.scope {
            Scope::Global => true,
            Scope::Namespace => *policy.namespace == *to.namespace,
            Scope::WorkloadSelector => false,
        };
        let named = to.policies.iter().filter_map(|key| self.by_key.get(key));
        named.filter(move |policy| !applies_anyway(policy))
    }

    /// The first policy that would apply to a workload, cannot be understood, and has no older version.
    pub fn invalid(&self, to: Destination<'_>) -> Option<&Arc<Rejected>> {
        let mut rejected = self.rejected.values();
        rejected.find(|one| one.applies(to) && !self.by_key.contains_key(&one.key))
    }

    /// The policies that a workload names and that are not here.
    pub fn missing<'a>(&self, to: Destination<'a>) -> impl Iterator<Item = &'a Arc<str>> {
        to.policies.iter().filter(|key| !self.by_key.contains_key(*key))
    }
}

impl Group {
    fn insert(&mut self, policy: Arc<Policy>) {
        match policy.mode {
            Mode::Enforce => self.of_mut(policy.action).insert(&policy),
            Mode::DryRun => {
                self.dry_run.insert(policy.key.clone(), policy.clone());
            }
        }
        self.all.insert(policy.key.clone(), policy);
    }

    fn remove(&mut self, policy: &Policy) {
        self.all.remove(&policy.key);
        match policy.mode {
            Mode::Enforce => self.of_mut(policy.action).remove(policy),
            Mode::DryRun => {
                self.dry_run.remove(&policy.key);
            }
        }
    }

    fn of(&self, action: Action) -> &Candidates {
        match action {
            Action::Allow => &self.allow,
            Action::Deny => &self.deny,
        }
    }

    fn of_mut(&mut self, action: Action) -> &mut Candidates {
        match action {
            Action::Allow => &mut self.allow,
            Action::Deny => &mut self.deny,
        }
    }
}

impl Policy {
    fn enforces(&self, action: Action) -> bool {
        self.action == action && self.mode == Mode::Enforce
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Reach, *};

    fn policy(key: &str, scope: Scope) -> Policy {
        let (namespace, name) = key.split_once('/').unwrap();
        Policy {
            key: key.into(),
            namespace: namespace.into(),
            name: name.into(),
            scope,
            action: Action::Allow,
            mode: Mode::Enforce,
            rules: Box::default(),
        }
    }

    fn check(policies: &Policies, namespace: &str, named: &[&str], expected: &[&str]) {
        let named: Vec<Arc<str>> = named.iter().map(|key| (*key).into()).collect();
        let to = Destination { namespace, policies: &named };
        let found: Vec<&str> = policies.applying(to).map(|policy| &*policy.key).collect();
        assert_eq!(found, expected, "{namespace} {named:?}");
    }

    fn some() -> Policies {
        let mut policies = Policies::default();
        policies.insert(policy("root/all", Scope::Global));
        policies.insert(policy("shop/ns", Scope::Namespace));
        policies.insert(policy("shop/sel", Scope::WorkloadSelector));
        policies.insert(policy("bank/ns", Scope::Namespace));
        policies
    }

    #[test]
    fn a_workload_has_global_policies_those_of_its_namespace_and_those_it_names() {
        check(&some(), "shop", &[], &["root/all", "shop/ns"]);
        check(&some(), "shop", &["shop/sel"], &["root/all", "shop/ns", "shop/sel"]);
        check(&some(), "bank", &["shop/sel"], &["root/all", "bank/ns", "shop/sel"]);
        check(&some(), "other", &[], &["root/all"]);
    }

    #[test]
    fn a_named_policy_that_applies_anyway_applies_once() {
        check(&some(), "shop", &["root/all", "shop/ns"], &["root/all", "shop/ns"]);
    }

    #[test]
    fn a_replaced_policy_leaves_its_former_scope() {
        let mut policies = some();
        policies.insert(policy("shop/ns", Scope::WorkloadSelector));
        policies.insert(policy("root/all", Scope::Namespace));
        check(&policies, "shop", &[], &[]);
        check(&policies, "root", &["shop/ns"], &["root/all", "shop/ns"]);
        assert_eq!(policies.len(), 4);
    }

    fn rejected(key: &str, reach: Reach) -> Rejected {
        Rejected { key: key.into(), reach, fault: "action: 9".into() }
    }

    fn check_invalid(policies: &Policies, namespace: &str, named: &[&str], expected: Option<&str>) {
        let named: Vec<Arc<str>> = named.iter().map(|key| (*key).into()).collect();
        let to = Destination { namespace, policies: &named };
        let found = policies.invalid(to).map(|rejected| &*rejected.key);
        assert_eq!(found, expected, "{namespace} {named:?}");
    }

    #[test]
    fn a_rejected_policy_that_never_was_accepted_counts_where_it_would_apply() {
        let check = |reach: Reach, namespace: &str, named: &[&str], expected: bool| {
            let mut policies = some();
            policies.reject(rejected("shop/new", reach));
            check_invalid(&policies, namespace, named, expected.then_some("shop/new"));
        };
        check(Reach::Everyone, "bank", &[], true);
        check(Reach::Namespace("shop".into()), "shop", &[], true);
        check(Reach::Namespace("shop".into()), "bank", &[], false);
        check(Reach::Namespace("shop".into()), "bank", &["shop/new"], true);
        check(Reach::Named, "shop", &[], false);
        check(Reach::Named, "shop", &["shop/new"], true);
        check(Reach::NoOne, "shop", &["shop/new"], false);
    }

    #[test]
    fn a_rejected_change_leaves_the_older_version_in_force() {
        let mut policies = some();
        policies.reject(rejected("shop/ns", Reach::Namespace("shop".into())));
        check_invalid(&policies, "shop", &[], None);
        check(&policies, "shop", &[], &["root/all", "shop/ns"]);
        assert_eq!(policies.rejected().count(), 1, "and is shown");
    }

    #[test]
    fn a_rejection_ends_with_a_good_version_or_with_the_policy() {
        let mut policies = some();
        policies.reject(rejected("shop/new", Reach::Everyone));
        policies.insert(policy("shop/new", Scope::WorkloadSelector));
        assert_eq!(policies.rejected().count(), 0);
        policies.reject(rejected("shop/late", Reach::Everyone));
        policies.remove("shop/late");
        assert_eq!(policies.rejected().count(), 0);
    }

    #[test]
    fn a_removed_policy_is_missing_where_it_is_named() {
        let mut policies = some();
        policies.remove("shop/sel");
        policies.remove("shop/never-was");
        let named = ["shop/sel".into()];
        let to = Destination { namespace: "shop", policies: &named };
        assert_eq!(policies.missing(to).map(|key| &**key).collect::<Vec<_>>(), ["shop/sel"]);
        assert_eq!(some().missing(to).count(), 0);
    }
}
