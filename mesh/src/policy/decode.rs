//! Turns `istio.security.Authorization` into a [`Policy`].
//!
//! A value that cannot be understood makes the whole policy invalid: leaving it out could turn a list into "no
//! constraint" and widen the policy. Extensions are ignored, as they are none of L4's.

use ipnet::IpNet;
use proto::security::{
    self, Authorization, ServiceAccountMatch as WireServiceAccount, StringMatch as WireStringMatch,
    string_match::MatchType as WireMatchType,
};

use super::{
    Action, Clause, DecodeError, Field, Match, Mode, Policy, Rule, Scope, ServiceAccount,
    StringMatch,
};
use crate::wire::{self, Fault};

impl TryFrom<Authorization> for Policy {
    type Error = DecodeError;

    fn try_from(wire: Authorization) -> Result<Self, DecodeError> {
        let namespace = wire::required(&wire.namespace);
        let namespace = namespace.map_err(|fault| DecodeError::new("namespace", fault))?;
        let name = wire::required(&wire.name).map_err(|fault| DecodeError::new("name", fault))?;
        let scope = match security::Scope::try_from(wire.scope) {
            Ok(security::Scope::Global) => Scope::Global,
            Ok(security::Scope::Namespace) => Scope::Namespace,
            Ok(security::Scope::WorkloadSelector) => Scope::WorkloadSelector,
            Err(_) => {
                return Err(DecodeError::new("scope", Fault::EnumValue { found: wire.scope }));
            }
        };
        let action = match security::Action::try_from(wire.action) {
            Ok(security::Action::Allow) => Action::Allow,
            Ok(security::Action::Deny) => Action::Deny,
            Err(_) => {
                return Err(DecodeError::new("action", Fault::EnumValue { found: wire.action }));
            }
        };
        Ok(Self {
            key: format!("{namespace}/{name}").into(),
            namespace: namespace.into(),
            name: name.into(),
            scope,
            action,
            mode: if wire.dry_run { Mode::DryRun } else { Mode::Enforce },
            rules: nested("rules", &wire.rules, rule)?,
        })
    }
}

fn rule(wire: &security::Rule) -> Result<Rule, DecodeError> {
    Ok(Rule { clauses: nested("clauses", &wire.clauses, clause)? })
}

fn clause(wire: &security::Clause) -> Result<Clause, DecodeError> {
    Ok(Clause { matches: nested("matches", &wire.matches, one_match)? })
}

fn one_match(wire: &security::Match) -> Result<Match, DecodeError> {
    Ok(Match {
        namespaces: Field {
            any_of: wire::each("namespaces", &wire.namespaces, string_match)?,
            none_of: wire::each("not_namespaces", &wire.not_namespaces, string_match)?,
        },
        service_accounts: Field {
            any_of: wire::each("service_accounts", &wire.service_accounts, service_account)?,
            none_of: wire::each(
                "not_service_accounts",
                &wire.not_service_accounts,
                service_account,
            )?,
        },
        principals: Field {
            any_of: wire::each("principals", &wire.principals, string_match)?,
            none_of: wire::each("not_principals", &wire.not_principals, string_match)?,
        },
        source_ips: Field {
            any_of: wire::each("source_ips", &wire.source_ips, address)?,
            none_of: wire::each("not_source_ips", &wire.not_source_ips, address)?,
        },
        destination_ips: Field {
            any_of: wire::each("destination_ips", &wire.destination_ips, address)?,
            none_of: wire::each("not_destination_ips", &wire.not_destination_ips, address)?,
        },
        destination_ports: Field {
            any_of: wire::each("destination_ports", &wire.destination_ports, |p| wire::port(*p))?,
            none_of: wire::each("not_destination_ports", &wire.not_destination_ports, |p| {
                wire::port(*p)
            })?,
        },
    })
}

fn string_match(wire: &WireStringMatch) -> Result<StringMatch, Fault> {
    match &wire.match_type {
        Some(WireMatchType::Exact(text)) => Ok(StringMatch::Exact(text.as_str().into())),
        Some(WireMatchType::Prefix(text)) => Ok(StringMatch::Prefix(text.as_str().into())),
        Some(WireMatchType::Suffix(text)) => Ok(StringMatch::Suffix(text.as_str().into())),
        Some(WireMatchType::Presence(())) => Ok(StringMatch::Presence),
        None => Err(Fault::Unset),
    }
}

fn service_account(wire: &WireServiceAccount) -> Result<ServiceAccount, Fault> {
    Ok(ServiceAccount {
        namespace: wire::required(&wire.namespace)?.into(),
        name: wire::required(&wire.service_account)?.into(),
    })
}

fn address(wire: &security::Address) -> Result<IpNet, Fault> {
    wire::cidr(&wire.address, wire.length)
}

/// Decodes each item of a repeated message; the path of an error begins with the item's index.
fn nested<T, U>(
    field: &str,
    items: &[T],
    decode: impl Fn(&T) -> Result<U, DecodeError>,
) -> Result<Box<[U]>, DecodeError> {
    let decode_at = |(index, item)| {
        decode(item).map_err(|error| error.within(format_args!("{field}[{index}]")))
    };
    items.iter().enumerate().map(decode_at).collect()
}

#[cfg(test)]
mod tests {
    use proto::security::Address;

    use super::*;

    fn check(wire: Authorization, expected: &str) {
        let found = match Policy::try_from(wire) {
            Ok(policy) => format!("{} {:?} {:?}", policy.key, policy.scope, policy.action),
            Err(error) => error.to_string(),
        };
        assert_eq!(found, expected);
    }

    fn named() -> Authorization {
        Authorization { name: "p".into(), namespace: "shop".into(), ..Default::default() }
    }

    fn with(one: security::Match) -> Authorization {
        let clause = security::Clause { matches: vec![Default::default(), one] };
        let rule = security::Rule { clauses: vec![clause] };
        Authorization { rules: vec![rule], ..named() }
    }

    #[test]
    fn a_policy_is_known_by_namespace_and_name() {
        check(named(), "shop/p Global Allow");
        check(Authorization { scope: 1, action: 1, ..named() }, "shop/p Namespace Deny");
        check(Authorization { scope: 2, ..named() }, "shop/p WorkloadSelector Allow");
    }

    #[test]
    fn a_policy_without_a_name_or_namespace_is_refused() {
        check(Authorization { name: "".into(), ..named() }, "name: is empty");
        check(Authorization { namespace: "".into(), ..named() }, "namespace: is empty");
    }

    #[test]
    fn an_unknown_scope_or_action_is_refused() {
        check(Authorization { scope: 3, ..named() }, "scope: 3 is not a known value");
        check(Authorization { action: 2, ..named() }, "action: 2 is not a known value");
    }

    #[test]
    fn an_invalid_value_makes_the_policy_invalid_and_is_named() {
        let at = "rules[0].clauses[0].matches[1]";
        let unset = WireStringMatch::default;
        let cidr = |bytes, length| vec![Address { address: vec![10; bytes], length }];
        let account = || WireServiceAccount { namespace: "a".into(), service_account: "".into() };
        for (one, expected) in [
            (
                security::Match { namespaces: vec![unset()], ..Default::default() },
                "namespaces[0]: has no value",
            ),
            (
                security::Match { not_principals: vec![unset()], ..Default::default() },
                "not_principals[0]: has no value",
            ),
            (
                security::Match { source_ips: cidr(4, 33), ..Default::default() },
                "source_ips[0]: a prefix of 10.10.10.10 has at most 32 bits, found 33",
            ),
            (
                security::Match { not_source_ips: cidr(5, 8), ..Default::default() },
                "not_source_ips[0]: an address has 4 or 16 bytes, found 5",
            ),
            (
                security::Match { destination_ips: cidr(0, 0), ..Default::default() },
                "destination_ips[0]: an address has 4 or 16 bytes, found 0",
            ),
            (
                security::Match { destination_ports: vec![80, 65_536], ..Default::default() },
                "destination_ports[1]: a port is at most 65535, found 65536",
            ),
            (
                security::Match { not_service_accounts: vec![account()], ..Default::default() },
                "not_service_accounts[0]: is empty",
            ),
        ] {
            check(with(one), &format!("{at}.{expected}"));
        }
    }
}
