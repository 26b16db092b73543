//! Policies that were sent and cannot be understood: what is known of whom they would restrict.
//!
//! In: the resource's name and bytes, and what is wrong with it. Out: a [`Rejected`]. Where its scope cannot be read, the
//! wider reading holds: nothing is let in that the policy might have denied.

use std::sync::Arc;

use prost::Message;
use proto::security::{self, Authorization};

use super::Destination;

/// A policy that was sent and cannot be understood. Unless an older version of it is held, nothing is allowed where it
/// would apply.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Rejected {
    /// `<namespace>/<name>`: its name in xDS.
    pub key: Arc<str>,
    /// Which workloads it would apply to, beside those that name it.
    pub reach: Reach,
    /// The field and what is wrong with it.
    pub fault: Arc<str>,
}

/// Which workloads a policy that cannot be understood would apply to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Reach {
    /// Every workload.
    Everyone,
    /// Every workload of a namespace.
    Namespace(Arc<str>),
    /// Only those that name it.
    Named,
    /// It would only report.
    NoOne,
}

impl Rejected {
    /// Reads what can be read of a resource that is no policy. `root_namespace` is where policies for everyone are.
    pub fn of(name: &str, bytes: &[u8], fault: &str, root_namespace: &str) -> Self {
        let reach = match Authorization::decode(bytes) {
            Ok(wire) => Reach::of(name, &wire, root_namespace),
            Err(_) => Reach::of_namespace(namespace_of(name), root_namespace),
        };
        Self { key: name.into(), reach, fault: fault.into() }
    }

    /// Whether it would apply to a workload.
    pub(super) fn applies(&self, to: Destination<'_>) -> bool {
        match &self.reach {
            Reach::Everyone => true,
            Reach::Namespace(namespace) if **namespace == *to.namespace => true,
            Reach::Namespace(_) | Reach::Named => to.policies.contains(&self.key),
            Reach::NoOne => false,
        }
    }
}

impl Reach {
    fn of(name: &str, wire: &Authorization, root_namespace: &str) -> Self {
        if wire.dry_run {
            return Self::NoOne;
        }
        let own = Some(wire.namespace.as_str()).filter(|namespace| !namespace.is_empty());
        let namespace = own.or_else(|| namespace_of(name));
        match (security::Scope::try_from(wire.scope), namespace) {
            (Ok(security::Scope::Global), _) | (Ok(security::Scope::Namespace), None) => {
                Self::Everyone
            }
            (Ok(security::Scope::Namespace), Some(namespace)) => Self::Namespace(namespace.into()),
            (Ok(security::Scope::WorkloadSelector), _) => Self::Named,
            (Err(_), namespace) => Self::of_namespace(namespace, root_namespace),
        }
    }

    /// Whom a policy of a namespace could restrict at most.
    fn of_namespace(namespace: Option<&str>, root_namespace: &str) -> Self {
        match namespace {
            Some(namespace) if namespace != root_namespace => Self::Namespace(namespace.into()),
            Some(_) | None => Self::Everyone,
        }
    }
}

/// The namespace in `<namespace>/<name>`.
fn namespace_of(name: &str) -> Option<&str> {
    name.split_once('/').map(|(namespace, _)| namespace).filter(|namespace| !namespace.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: &str = "istio-system";

    fn check(name: &str, wire: &Authorization, expected: Reach) {
        let found = Rejected::of(name, &wire.encode_to_vec(), "action: 9", ROOT).reach;
        assert_eq!(found, expected, "{name} {wire:?}");
    }

    fn of_shop() -> Authorization {
        Authorization { name: "p".into(), namespace: "shop".into(), ..Default::default() }
    }

    fn shop() -> Reach {
        Reach::Namespace("shop".into())
    }

    #[test]
    fn a_rejected_policy_reaches_whom_its_scope_says() {
        check("shop/p", &Authorization { scope: 0, ..of_shop() }, Reach::Everyone);
        check("shop/p", &Authorization { scope: 1, ..of_shop() }, shop());
        check("shop/p", &Authorization { scope: 2, ..of_shop() }, Reach::Named);
        check("shop/p", &Authorization { dry_run: true, ..of_shop() }, Reach::NoOne);
    }

    #[test]
    fn one_of_an_unknown_scope_reaches_its_namespace_and_from_the_root_everyone() {
        check("shop/p", &Authorization { scope: 9, ..of_shop() }, shop());
        let root = Authorization { namespace: ROOT.into(), scope: 9, ..of_shop() };
        check("istio-system/p", &root, Reach::Everyone);
    }

    #[test]
    fn one_that_does_not_say_its_namespace_has_it_in_its_name() {
        let nameless = Authorization { namespace: "".into(), scope: 1, ..of_shop() };
        check("shop/p", &nameless, shop());
        check("p", &nameless, Reach::Everyone);
    }

    #[test]
    fn one_that_is_no_message_reaches_the_namespace_in_its_name() {
        let reach = |name: &str| Rejected::of(name, &[0xff; 3], "no message", ROOT).reach;
        assert_eq!(reach("shop/p"), shop());
        assert_eq!(reach("istio-system/p"), Reach::Everyone);
        assert_eq!(reach("p"), Reach::Everyone);
        assert_eq!(reach("/p"), Reach::Everyone);
    }
}
