//! PeerAuthentications, as policies that refuse peers without an identity.
//!
//! The widest scope is the mesh (the root namespace), then the namespace, then the pods of a selector; the oldest of
//! each counts, and UNSET takes the mode of the next wider one. DISABLE is as PERMISSIVE: tunnels are taken anyway.

use std::{collections::HashMap, sync::Arc};

use proto::security::{
    Action, Authorization, Clause, Match, Rule, Scope, StringMatch, string_match::MatchType,
};

use super::{MeshConfig, selector::Selectors};
use crate::manifests::{Labels, MtlsMode, Object, PeerAuthentication, Selector};

/// Name of the policy, in the root namespace, that every pod in mode STRICT refers to. Istio's own, so that it means
/// the same in both meshes' dumps.
const STATIC_STRICT: &str = "istio_converted_static_strict";

/// The modes of a mesh.
pub(crate) struct Modes {
    root: Box<str>,
    /// Whether there is any PeerAuthentication.
    any: bool,
    mesh: Option<Arc<Object<PeerAuthentication>>>,
    namespaces: HashMap<Box<str>, Arc<Object<PeerAuthentication>>>,
    /// Those with a selector.
    workloads: Vec<Arc<Object<PeerAuthentication>>>,
    selectors: Selectors<Arc<Object<PeerAuthentication>>>,
}

/// Whether plain text is taken.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Mode {
    Permissive,
    Strict,
}

/// What a pod's PeerAuthentication comes to.
enum Effect {
    /// Everything is taken.
    Open,
    /// Every port refuses plain text.
    Strict,
    /// Some ports do: a policy of its own.
    Ports(Vec<Rule>),
}

impl Modes {
    pub(crate) fn of(all: &[Arc<Object<PeerAuthentication>>], config: &MeshConfig) -> Self {
        let mut sorted: Vec<&Arc<Object<PeerAuthentication>>> = all.iter().collect();
        sorted.sort_by(|a, b| a.meta.seniority().cmp(&b.meta.seniority()));
        let root = config.root_namespace.as_str();
        let mut modes = Self {
            root: root.into(),
            any: !all.is_empty(),
            mesh: None,
            namespaces: HashMap::new(),
            workloads: Vec::new(),
            selectors: Selectors::default(),
        };
        let mut selecting = Vec::new();
        for policy in sorted {
            let in_root = *policy.meta.namespace == *root;
            match Selector::labels(policy.spec.selector.as_ref()) {
                // A selector in the root namespace has no scope of its own.
                Some(_) if in_root => {}
                Some(labels) => {
                    modes.workloads.push(Arc::clone(policy));
                    selecting.push((&*policy.meta.namespace, labels, Arc::clone(policy)));
                }
                None if in_root => {
                    modes.mesh.get_or_insert_with(|| Arc::clone(policy));
                }
                None => {
                    let namespace = (&*policy.meta.namespace).into();
                    modes.namespaces.entry(namespace).or_insert_with(|| Arc::clone(policy));
                }
            }
        }
        modes.selectors = Selectors::new(selecting);
        modes
    }

    /// The name of the policy that enforces a pod's mode.
    pub(crate) fn policy_for(&self, namespace: &str, pod: &Labels) -> Option<String> {
        let mut selecting: Vec<_> = self.selectors.matching(namespace, pod).collect();
        selecting.sort_by(|a, b| a.meta.seniority().cmp(&b.meta.seniority()));
        let effect = match selecting.first() {
            Some(policy) => match self.effect(policy) {
                Effect::Ports(_) => {
                    return Some(format!("{namespace}/{}", port_policy_name(policy)));
                }
                effect @ (Effect::Open | Effect::Strict) => effect,
            },
            None if self.namespace_mode(namespace) == Mode::Strict => Effect::Strict,
            None => Effect::Open,
        };
        matches!(effect, Effect::Strict).then(|| format!("{}/{STATIC_STRICT}", self.root))
    }

    /// The messages, in no order.
    pub(crate) fn compile(&self) -> Vec<Authorization> {
        let mut messages = Vec::new();
        if self.any {
            let rule = Rule { clauses: vec![clause(no_identity())] };
            messages.push(deny(&self.root, STATIC_STRICT.to_owned(), vec![rule]));
        }
        for policy in &self.workloads {
            if let Effect::Ports(rules) = self.effect(policy) {
                messages.push(deny(&policy.meta.namespace, port_policy_name(policy), rules));
            }
        }
        messages
    }

    fn effect(&self, policy: &Object<PeerAuthentication>) -> Effect {
        let parent = || self.namespace_mode(&policy.meta.namespace);
        let own = policy.spec.mtls.map(|mtls| mtls.mode).and_then(Mode::of).unwrap_or_else(parent);
        let ports = policy.spec.port_level_mtls.iter().flatten();
        let different: Vec<u32> = ports
            .filter(|(_, mtls)| Mode::of(mtls.mode).is_some_and(|mode| mode != own))
            .filter_map(|(port, _)| u32::try_from(port.0).ok())
            .collect();
        match own {
            Mode::Permissive if different.is_empty() => Effect::Open,
            Mode::Strict if different.is_empty() => Effect::Strict,
            Mode::Permissive => {
                let rules = different.into_iter().map(|port| {
                    let strict = Match { destination_ports: vec![port], ..no_identity() };
                    Rule { clauses: vec![clause(strict)] }
                });
                Effect::Ports(rules.collect())
            }
            Mode::Strict => {
                let exempt = different.into_iter().map(|port| {
                    clause(Match { not_destination_ports: vec![port], ..Match::default() })
                });
                let clauses = std::iter::once(clause(no_identity())).chain(exempt).collect();
                Effect::Ports(vec![Rule { clauses }])
            }
        }
    }

    fn namespace_mode(&self, namespace: &str) -> Mode {
        let scopes = [self.namespaces.get(namespace), self.mesh.as_ref()];
        let modes = scopes.into_iter().flatten().filter_map(|policy| policy.spec.mtls);
        modes.filter_map(|mtls| Mode::of(mtls.mode)).next().unwrap_or(Mode::Permissive)
    }
}

impl Mode {
    fn of(mode: MtlsMode) -> Option<Self> {
        match mode {
            MtlsMode::Unset => None,
            MtlsMode::Disable | MtlsMode::Permissive => Some(Self::Permissive),
            MtlsMode::Strict => Some(Self::Strict),
        }
    }
}

fn port_policy_name(policy: &Object<PeerAuthentication>) -> String {
    format!("converted_peer_authentication_{}", policy.meta.name)
}

fn deny(namespace: &str, name: String, rules: Vec<Rule>) -> Authorization {
    Authorization {
        name,
        namespace: namespace.to_owned(),
        scope: Scope::WorkloadSelector.into(),
        action: Action::Deny.into(),
        rules,
        ..Authorization::default()
    }
}

fn clause(one: Match) -> Clause {
    Clause { matches: vec![one] }
}

/// True exactly when the peer has shown no certificate.
fn no_identity() -> Match {
    let presence = StringMatch { match_type: Some(MatchType::Presence(())) };
    Match { not_principals: vec![presence], ..Match::default() }
}
