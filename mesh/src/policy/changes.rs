//! What changed between two sets of policies, and which open connections a change could end.
//!
//! In: two [`Policies`]. Out: [`Change`]s, found without a look at what both share. A change that only lets more in
//! concerns nobody who is in.

use std::sync::Arc;

use imbl::ordmap::DiffItem;

use super::{Action, Destination, Mode, Policies, Policy, Reach, Rejected, Scope};
use crate::identity::Spiffe;

/// A policy that is not as it was.
#[derive(Clone, Debug)]
pub enum Change<'a> {
    /// It came, went, or says something else.
    Policy {
        /// `<namespace>/<name>`.
        key: &'a Arc<str>,
        /// What it said.
        old: Option<&'a Policy>,
        /// What it says.
        new: Option<&'a Policy>,
    },
    /// A policy that cannot be understood came or changed, and no older version of it is held.
    Invalid(&'a Rejected),
}

/// Which of a destination's open connections a change could end.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Concern {
    /// All of them.
    pub everyone: bool,
    /// Those whose peer a rule could match.
    pub matching: bool,
    /// Those that it allowed.
    pub allowed_by_it: bool,
    /// Those that no ALLOW policy restricted.
    pub unrestricted: bool,
}

/// Where a changed policy applies, before or after.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct ReachOfChange<'a> {
    /// To every workload.
    pub everyone: bool,
    /// To the workloads of these namespaces.
    pub namespaces: [Option<&'a str>; 2],
}

impl Policies {
    /// What changed since `older`.
    pub fn changes_since<'a>(&'a self, older: &'a Self) -> impl Iterator<Item = Change<'a>> {
        let policies = older.by_key.diff(&self.by_key).map(|item| match item {
            DiffItem::Add(key, new) => Change::Policy { key, old: None, new: Some(new) },
            DiffItem::Update { old: (_, old), new: (key, new) } => {
                Change::Policy { key, old: Some(old), new: Some(new) }
            }
            DiffItem::Remove(key, old) => Change::Policy { key, old: Some(old), new: None },
        });
        // What is rejected and held may stop being held.
        let unshared = older.rejected.diff(&self.rejected).filter_map(|item| match item {
            DiffItem::Add(key, _) | DiffItem::Update { new: (key, _), .. } => Some(key),
            DiffItem::Remove(..) => None,
        });
        let invalid = unshared.filter(|key| !self.by_key.contains_key(*key));
        let invalid = invalid.filter_map(|key| self.rejected.get(key));
        policies.chain(invalid.map(|rejected| Change::Invalid(rejected)))
    }
}

impl<'a> Change<'a> {
    /// `<namespace>/<name>`.
    pub fn key(&self) -> &'a Arc<str> {
        match self {
            Self::Policy { key, .. } => key,
            Self::Invalid(rejected) => &rejected.key,
        }
    }

    /// Where it applies, beside the workloads that name it.
    pub fn reach(&self) -> ReachOfChange<'a> {
        match *self {
            Self::Policy { old, new, .. } => {
                let namespace = |policy: &'a Policy| match policy.scope {
                    Scope::Namespace => Some(&*policy.namespace),
                    Scope::Global | Scope::WorkloadSelector => None,
                };
                let both = [old, new];
                ReachOfChange {
                    everyone: both.iter().flatten().any(|one| one.scope == Scope::Global),
                    namespaces: both.map(|one| one.and_then(namespace)),
                }
            }
            Self::Invalid(Rejected { reach, .. }) => match reach {
                Reach::Everyone => ReachOfChange { everyone: true, ..Default::default() },
                Reach::Namespace(namespace) => {
                    ReachOfChange { namespaces: [Some(namespace), None], ..Default::default() }
                }
                Reach::Named | Reach::NoOne => ReachOfChange::default(),
            },
        }
    }

    /// Which open connections to `to` it could end.
    pub fn concern(&self, to: Destination<'_>) -> Concern {
        match *self {
            Self::Invalid(rejected) => {
                Concern { everyone: rejected.applies(to), ..Concern::default() }
            }
            // Named and gone: nothing is allowed.
            Self::Policy { key, new: None, .. } if to.policies.contains(key) => {
                Concern { everyone: true, ..Concern::default() }
            }
            Self::Policy { old, new, .. } => {
                let in_force = |policy: Option<&'a Policy>| {
                    policy.filter(|one| one.mode == Mode::Enforce && one.applies(to))
                };
                let (old, new) = (in_force(old), in_force(new));
                let did_allow = old.is_some_and(|old| old.action == Action::Allow);
                Concern {
                    everyone: false,
                    matching: new.is_some_and(|new| new.action == Action::Deny),
                    allowed_by_it: did_allow,
                    unrestricted: !did_allow && new.is_some_and(|new| new.action == Action::Allow),
                }
            }
        }
    }

    /// Whether what it says could match a peer, whatever the addresses and ports.
    pub fn could_match(&self, peer: Option<&Spiffe>) -> bool {
        match self {
            Self::Policy { new, .. } => new.is_some_and(|policy| policy.could_match(peer)),
            Self::Invalid(_) => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::fixture::policies, *};

    /// What changes from one set to the other, for a workload of namespace `shop` that names `named`.
    fn check(old: &str, new: &str, named: &[&str], expected: &[&str]) {
        let (old, new) = (policies(old), policies(new));
        let named: Vec<Arc<str>> = named.iter().map(|key| (*key).into()).collect();
        let to = Destination { namespace: "shop", policies: &named };
        let found = new.changes_since(&old).map(|change| {
            let Concern { everyone, matching, allowed_by_it, unrestricted } = change.concern(to);
            let whom = [
                (everyone, "everyone"),
                (matching, "matching"),
                (allowed_by_it, "allowed-by-it"),
                (unrestricted, "unrestricted"),
            ];
            let whom = whom.iter().filter(|(yes, _)| *yes).map(|(_, whom)| *whom);
            format!("{}: {}", change.key(), whom.collect::<Vec<_>>().join(" "))
        });
        assert_eq!(found.collect::<Vec<_>>(), expected, "{old:?} {new:?}");
    }

    #[test]
    fn what_both_share_is_no_change() {
        let shared = "allow shop/a namespace *";
        check(shared, shared, &[], &[]);
        check(
            shared,
            "allow shop/a namespace *\ndeny shop/b namespace *",
            &[],
            &["shop/b: matching"],
        );
    }

    #[test]
    fn a_deny_concerns_whom_it_matches_and_its_end_concerns_nobody() {
        check("", "deny shop/d namespace *", &[], &["shop/d: matching"]);
        check("deny shop/d namespace none", "deny shop/d namespace *", &[], &["shop/d: matching"]);
        check("deny shop/d namespace *", "", &[], &["shop/d: "]);
        check("deny-dry shop/d namespace *", "deny shop/d namespace *", &[], &["shop/d: matching"]);
    }

    #[test]
    fn an_allow_concerns_those_it_allowed_and_when_it_comes_those_nothing_restricted() {
        check("", "allow shop/a namespace *", &[], &["shop/a: unrestricted"]);
        check("allow shop/a namespace *", "", &[], &["shop/a: allowed-by-it"]);
        check(
            "allow shop/a namespace *",
            "allow shop/a namespace none",
            &[],
            &["shop/a: allowed-by-it"],
        );
        check(
            "allow shop/a namespace *",
            "deny shop/a namespace *",
            &[],
            &["shop/a: matching allowed-by-it"],
        );
        check(
            "allow shop/a namespace *",
            "allow-dry shop/a namespace *",
            &[],
            &["shop/a: allowed-by-it"],
        );
    }

    #[test]
    fn a_policy_that_does_not_apply_concerns_nobody() {
        check("", "deny bank/d namespace *", &[], &["bank/d: "]);
        check("", "deny shop/d selector *", &[], &["shop/d: "]);
        check("", "deny shop/d selector *", &["shop/d"], &["shop/d: matching"]);
        check("", "deny-dry shop/d namespace *", &[], &["shop/d: "]);
        check("", "deny root/d global *", &[], &["root/d: matching"]);
    }

    #[test]
    fn a_policy_that_is_named_and_gone_concerns_everyone() {
        check("deny shop/d selector none", "", &["shop/d"], &["shop/d: everyone"]);
    }

    #[test]
    fn a_rejection_concerns_everyone_it_reaches_unless_an_older_version_is_held() {
        let reject = |from: &str, key: &str, reach: Reach| {
            let old = policies(from);
            let mut new = old.clone();
            new.reject(Rejected { key: key.into(), reach, fault: "action".into() });
            let to = Destination { namespace: "shop", policies: &[] };
            let concerns = new.changes_since(&old).map(|change| change.concern(to).everyone);
            concerns.collect::<Vec<_>>()
        };
        assert_eq!(reject("", "shop/p", Reach::Namespace("shop".into())), [true]);
        assert_eq!(reject("", "shop/p", Reach::Named), [false]);
        let held = "deny shop/p namespace none";
        assert!(reject(held, "shop/p", Reach::Namespace("shop".into())).is_empty());
    }

    #[test]
    fn a_change_of_scope_reaches_where_it_applied_and_where_it_applies() {
        let (old, new) = (policies("deny shop/d namespace *"), policies("deny shop/d global *"));
        let reach = new.changes_since(&old).next().unwrap().reach();
        assert_eq!(reach, ReachOfChange { everyone: true, namespaces: [Some("shop"), None] });
    }

    #[test]
    fn a_policy_could_match_a_peer_if_no_condition_on_peers_excludes_it() {
        let web = Spiffe::new("td", "web", "front").unwrap();
        for (rules, web_could, nobody_could) in [
            ("*", true, true),
            ("none", false, false),
            ("{}", false, false),
            ("ports=1", true, true),
            ("namespaces=web ports=1", true, false),
            ("namespaces=bank", false, false),
            ("namespaces=bank , principals=td/ns/web/*", true, false),
            ("namespaces=bank | not_principals=*", false, true),
            ("namespaces=web & service_accounts=web/back", false, false),
        ] {
            let new = policies(&format!("deny shop/d namespace {rules}"));
            let old = Policies::default();
            let change = new.changes_since(&old).next().unwrap();
            let could = [Some(&web), None].map(|peer| change.could_match(peer));
            assert_eq!(could, [web_could, nobody_could], "{rules}");
        }
    }
}
