//! One rule of an AuthorizationPolicy as a policy of Envoy.
//!
//! A rule is from AND to AND when. Envoy has it as permissions (what is asked for) and principals (by whom), any of
//! each: a condition is repeated in every one of its side. What a chain cannot check is left out where that refuses
//! more, and takes the whole rule with it where it would allow more.

use proto::envoy::envoy::{
    config::{
        core::v3::TypedExtensionConfig,
        rbac::v3::{
            Permission, Policy, Principal,
            permission::{self, Rule as May},
            principal::{self, Identifier as Is},
        },
    },
    extensions::path::r#match::uri_template::v3::UriTemplateMatchConfig,
    r#type::matcher::v3::{MetadataMatcher, PathMatcher, path_matcher},
};

use super::matcher;
use crate::{
    compile::{
        MeshConfig,
        waypoint::{ChainKind, message::any},
    },
    manifests::{Action, Condition, Operation, Rule, Source, Values},
};

/// How rules are read.
#[derive(Clone, Copy)]
pub(super) struct Reading<'a> {
    pub config: &'a MeshConfig,
    pub kind: ChainKind,
    pub action: Action,
    /// The policy's.
    pub namespace: &'a str,
}

/// The chain cannot check an attribute, or its value means nothing.
struct Unchecked;

type Checked<T> = Result<T, Unchecked>;

/// What a condition says something about.
enum Clause {
    May(Permission),
    Is(Principal),
}

/// Matches never: what a policy without rules does.
pub(super) fn never() -> Policy {
    Policy {
        permissions: vec![not_permission(permission(May::Any(true)))],
        principals: vec![not_principal(principal(Is::Any(true)))],
        ..Policy::default()
    }
}

impl Reading<'_> {
    /// The rule, unless it would allow more than it says.
    pub(super) fn policy(self, rule: &Rule) -> Option<Policy> {
        let mut conditions_may = Vec::new();
        let mut conditions_is = Vec::new();
        for condition in rule.when.iter().flatten() {
            for clause in self.lenient(self.condition(condition))?.into_iter().flatten() {
                match clause {
                    Clause::May(one) => conditions_may.push(one),
                    Clause::Is(one) => conditions_is.push(one),
                }
            }
        }
        let mut operations = Vec::new();
        for operation in rule.to.iter().flatten().filter_map(|to| to.operation.as_ref()) {
            operations.push(self.operation(operation)?);
        }
        let mut sources = Vec::new();
        for source in rule.from.iter().flatten().filter_map(|from| from.source.as_ref()) {
            sources.push(self.source(source)?);
        }
        Some(Policy {
            permissions: every(operations, &conditions_may, |all| {
                let all = if all.is_empty() { vec![permission(May::Any(true))] } else { all };
                permission(May::AndRules(permission::Set { rules: all }))
            }),
            principals: every(sources, &conditions_is, |all| {
                let all = if all.is_empty() { vec![principal(Is::Any(true))] } else { all };
                principal(Is::AndIds(principal::Set { ids: all }))
            }),
            ..Policy::default()
        })
    }

    /// Nothing in place of what cannot be checked; no rule at all if that allows more.
    #[expect(clippy::option_option, reason = "no rule, or no clause of it")]
    fn lenient<T>(self, checked: Checked<T>) -> Option<Option<T>> {
        match (checked, self.action) {
            (Ok(value), _) => Some(Some(value)),
            (Err(Unchecked), Action::Allow) => None,
            (Err(Unchecked), Action::Deny | Action::Audit | Action::Custom) => Some(None),
        }
    }

    fn http(self) -> Checked<()> {
        match self.kind {
            ChainKind::Http => Ok(()),
            ChainKind::Tcp => Err(Unchecked),
        }
    }

    fn operation(self, operation: &Operation) -> Option<Vec<Permission>> {
        let host = |value: &str| May::Header(matcher::host(value));
        let method = |value: &str| May::Header(matcher::header(":method", value));
        let mut all = Vec::new();
        for clauses in [
            self.requests(&operation.hosts, &operation.not_hosts, host),
            self.requests(&operation.methods, &operation.not_methods, method),
            self.requests(&operation.paths, &operation.not_paths, path),
            permissions(&operation.ports, &operation.not_ports, port),
        ] {
            all.extend(self.lenient(clauses)?.into_iter().flatten());
        }
        Some(all)
    }

    /// What only a request has.
    fn requests(
        self,
        values: &Values,
        not_values: &Values,
        may: fn(&str) -> May,
    ) -> Checked<Vec<Permission>> {
        permissions(values, not_values, |value| self.http().map(|()| permission(may(value))))
    }

    fn source(self, source: &Source) -> Option<Vec<Principal>> {
        let account = |value: &str| Ok(self.account(value));
        let mut all = Vec::new();
        for clauses in [
            self.peers(&source.principals, &source.not_principals),
            self.request_principals(&source.request_principals, &source.not_request_principals),
            principals(&source.service_accounts, &source.not_service_accounts, account),
            principals(&source.namespaces, &source.not_namespaces, namespace),
            self.domains(&source.trust_domains, &source.not_trust_domains),
            principals(&source.remote_ip_blocks, &source.not_remote_ip_blocks, remote_ip),
            principals(&source.ip_blocks, &source.not_ip_blocks, direct_ip),
        ] {
            all.extend(self.lenient(clauses)?.into_iter().flatten());
        }
        Some(all)
    }

    fn account(self, value: &str) -> Principal {
        principal(Is::FilterState(matcher::service_account(value, self.namespace)))
    }

    /// Peers by name, under every name that the mesh's trust domain has.
    fn peers(self, values: &Values, not_values: &Values) -> Checked<Vec<Principal>> {
        let renamed = |values: &Values| {
            let all = values.as_ref()?.iter().flat_map(|value| match value.split_once('/') {
                Some((domain, rest)) if !domain.starts_with('*') => {
                    let domains = self.aliases(domain).into_iter();
                    domains.map(|domain| format!("{domain}/{rest}")).collect()
                }
                Some(_) | None => vec![value.clone()],
            });
            Some(all.collect())
        };
        principals(&renamed(values), &renamed(not_values), |value| {
            Ok(principal(Is::FilterState(matcher::principal(value))))
        })
    }

    fn domains(self, values: &Values, not_values: &Values) -> Checked<Vec<Principal>> {
        let renamed = |values: &Values| {
            let all = values.as_ref()?.iter().flat_map(|value| self.aliases(value));
            Some(all.collect())
        };
        principals(&renamed(values), &renamed(not_values), |value| {
            Ok(principal(Is::FilterState(matcher::trust_domain(value))))
        })
    }

    /// The mesh's trust domain under all its names; another's under its own. `cluster.local` is the mesh's, whatever
    /// it is called.
    fn aliases(self, domain: &str) -> Vec<String> {
        if domain == "cluster.local" || self.config.trust_domains().any(|own| own == domain) {
            self.config.trust_domains().map(str::to_owned).collect()
        } else {
            vec![domain.to_owned()]
        }
    }

    fn request_principals(self, values: &Values, not_values: &Values) -> Checked<Vec<Principal>> {
        extended(values, not_values, |values| {
            self.http()?;
            let mut each: Vec<_> = values
                .iter()
                .map(|value| {
                    let both = matcher::request_principal(value).map(token);
                    principal(Is::AndIds(principal::Set { ids: both.into() }))
                })
                .collect();
            Ok(if each.len() == 1 {
                each.remove(0)
            } else {
                principal(Is::OrIds(principal::Set { ids: each }))
            })
        })
    }

    fn claim(self, path: &[&str], values: &Values, not: &Values) -> Checked<Vec<Principal>> {
        extended(values, not, |values| {
            self.http()?;
            Ok(token(matcher::claim(path, values)))
        })
    }

    fn condition(self, condition: &Condition) -> Checked<Vec<Clause>> {
        let Condition { key, values, not_values } = condition;
        let account = |value: &str| Ok(self.account(value));
        let is = |clauses: Checked<Vec<Principal>>| {
            clauses.map(|clauses| clauses.into_iter().map(Clause::Is).collect())
        };
        let may = |clauses: Checked<Vec<Permission>>| {
            clauses.map(|clauses| clauses.into_iter().map(Clause::May).collect())
        };
        match key.as_str() {
            "source.ip" => is(principals(values, not_values, direct_ip)),
            "remote.ip" => is(principals(values, not_values, remote_ip)),
            "source.namespace" => is(principals(values, not_values, namespace)),
            "source.principal" => is(self.peers(values, not_values)),
            "source.serviceAccount" => is(principals(values, not_values, account)),
            "source.trustDomain" => is(self.domains(values, not_values)),
            "request.auth.principal" => is(self.request_principals(values, not_values)),
            "request.auth.audiences" => is(self.claim(&["aud"], values, not_values)),
            "request.auth.presenter" => is(self.claim(&["azp"], values, not_values)),
            "destination.ip" => may(permissions(values, not_values, |value| {
                let block = matcher::cidr(value).ok_or(Unchecked)?;
                Ok(permission(May::DestinationIp(block)))
            })),
            "destination.port" => may(permissions(values, not_values, port)),
            "connection.sni" => may(permissions(values, not_values, |value| {
                Ok(permission(May::RequestedServerName(matcher::string(value))))
            })),
            _ => self.named_condition(condition).unwrap_or(Err(Unchecked)),
        }
    }

    /// A condition whose key has a name in brackets; nothing if there is no such key.
    fn named_condition(self, condition: &Condition) -> Option<Checked<Vec<Clause>>> {
        let Condition { key, values, not_values } = condition;
        let bracketed = |prefix: &str| key.strip_prefix(prefix)?.strip_suffix(']');
        if let Some(name) = bracketed("request.headers[") {
            let clauses = principals(values, not_values, |value| {
                self.http()?;
                Ok(principal(Is::Header(matcher::header(name, value))))
            });
            return Some(clauses.map(|all| all.into_iter().map(Clause::Is).collect()));
        }
        if let Some(path) = bracketed("request.auth.claims[") {
            let path: Vec<_> = path.split("][").collect();
            let clauses = self.claim(&path, values, not_values);
            return Some(clauses.map(|all| all.into_iter().map(Clause::Is).collect()));
        }
        let (filter, name) = bracketed("experimental.")?.split_once('[')?;
        if !filter.starts_with("envoy.filters.") {
            return None;
        }
        let one = |value: &String| {
            let matcher = matcher::filter_metadata(filter, name, value);
            #[expect(deprecated, reason = "older proxies know no other")]
            permission(May::Metadata(matcher))
        };
        let mut all = Vec::new();
        for (values, not) in [(values, false), (not_values, true)] {
            let Some(values) = values else { continue };
            let mut each: Vec<_> = values.iter().map(one).collect();
            let any = if each.len() == 1 { each.remove(0) } else { any_permission(each) };
            all.push(Clause::May(if not { not_permission(any) } else { any }));
        }
        Some(Ok(all))
    }
}

/// Each alternative with all conditions; one alternative if there is none.
fn every<T: Clone>(
    mut alternatives: Vec<Vec<T>>,
    conditions: &[T],
    and: impl Fn(Vec<T>) -> T,
) -> Vec<T> {
    if alternatives.is_empty() {
        alternatives.push(Vec::new());
    }
    let all = alternatives.into_iter().map(|mut alternative| {
        alternative.extend_from_slice(conditions);
        and(alternative)
    });
    all.collect()
}

/// One of the values, and none of the others.
fn permissions(
    values: &Values,
    not_values: &Values,
    one: impl Fn(&str) -> Checked<Permission>,
) -> Checked<Vec<Permission>> {
    let any = |values: &Vec<String>| {
        let each: Checked<_> = values.iter().map(|value| one(value)).collect();
        Ok(any_permission(each?))
    };
    let mut all = Vec::new();
    if let Some(values) = values {
        all.push(any(values)?);
    }
    if let Some(values) = not_values {
        all.push(not_permission(any(values)?));
    }
    Ok(all)
}

/// One of the values, and none of the others.
fn principals(
    values: &Values,
    not_values: &Values,
    one: impl Fn(&str) -> Checked<Principal>,
) -> Checked<Vec<Principal>> {
    extended(values, not_values, |values| {
        let each: Checked<_> = values.iter().map(|value| one(value)).collect();
        Ok(principal(Is::OrIds(principal::Set { ids: each? })))
    })
}

/// The same for an attribute that takes its values together.
fn extended(
    values: &Values,
    not_values: &Values,
    any: impl Fn(&[String]) -> Checked<Principal>,
) -> Checked<Vec<Principal>> {
    let mut all = Vec::new();
    if let Some(values) = values {
        all.push(any(values)?);
    }
    if let Some(values) = not_values {
        all.push(not_principal(any(values)?));
    }
    Ok(all)
}

fn permission(rule: May) -> Permission {
    Permission { rule: Some(rule) }
}

fn not_permission(of: Permission) -> Permission {
    permission(May::NotRule(Box::new(of)))
}

fn any_permission(rules: Vec<Permission>) -> Permission {
    permission(May::OrRules(permission::Set { rules }))
}

fn principal(identifier: Is) -> Principal {
    Principal { identifier: Some(identifier) }
}

fn not_principal(of: Principal) -> Principal {
    principal(Is::NotId(Box::new(of)))
}

#[expect(deprecated, reason = "older proxies know no other")]
fn token(matcher: MetadataMatcher) -> Principal {
    principal(Is::Metadata(matcher))
}

fn namespace(value: &str) -> Checked<Principal> {
    Ok(principal(Is::FilterState(matcher::namespace(value))))
}

fn direct_ip(value: &str) -> Checked<Principal> {
    matcher::cidr(value).map(|block| principal(Is::DirectRemoteIp(block))).ok_or(Unchecked)
}

fn remote_ip(value: &str) -> Checked<Principal> {
    matcher::cidr(value).map(|block| principal(Is::RemoteIp(block))).ok_or(Unchecked)
}

fn port(value: &str) -> Checked<Permission> {
    let port: u16 = value.parse().map_err(|_| Unchecked)?;
    Ok(permission(May::DestinationPort(port.into())))
}

/// A path, or a template of one: `{*}` is a segment, `{**}` any number of them.
fn path(value: &str) -> May {
    if !value.contains("{*}") && !value.contains("{**}") {
        let rule = path_matcher::Rule::Path(matcher::string(value));
        return May::UrlPath(PathMatcher { rule: Some(rule) });
    }
    let path_template = value.replace("{*}", "*").replace("{**}", "**");
    May::UriTemplate(TypedExtensionConfig {
        name: "uri-template".to_owned(),
        typed_config: Some(any(&UriTemplateMatchConfig { path_template })),
    })
}
