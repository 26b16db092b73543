//! What would happen to a connection, by the code that decides real ones on the state they are decided on.
//!
//! In: one snapshot, who connects, to where. Out: an [`Explanation`]: the next hop, and the verdict of the destination's
//! policies where this daemon can know it. Opens nothing.

mod answer;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    str::FromStr,
    sync::Arc,
};

use mesh::{
    policy::Connection,
    store::{Snapshot, Workload},
    telemetry::Reason,
};

pub(super) use self::answer::Explanation;
use self::answer::{Hop, Outcome, Party, Verdict, judge};
use super::{PodStatus, http::Request};
use crate::next_hop::{Experience, NextHop, NoRoute, Outbound, next_hop};

/// What is asked.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Question {
    from: Source,
    to: SocketAddr,
}

/// Who would connect.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Source {
    /// A pod of the mesh.
    Pod { namespace: String, name: String },
    /// Somebody outside of the mesh, at an address that policies may ask for.
    Outside { source: IpAddr },
}

/// Why a question cannot be answered.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum BadQuestion {
    #[error("`from` must be NAMESPACE/POD, `outside` or `outside/ADDRESS`, found `{found}`")]
    From { found: String },
    #[error("`to` must be ADDRESS:PORT, found `{found}`")]
    To { found: String },
    #[error("no workload {namespace}/{name} is known here")]
    UnknownPod { namespace: String, name: String },
}

impl Question {
    /// Reads the parameters `from` and `to`.
    pub(super) fn of(request: &Request) -> Result<Self, BadQuestion> {
        let from = request.parameter("from").unwrap_or_default().parse()?;
        let to = request.parameter("to").unwrap_or_default();
        let to = to.parse().map_err(|_| BadQuestion::To { found: to.to_owned() })?;
        Ok(Self { from, to })
    }

    /// Answers on `snapshot`. Of several endpoints `pick` chooses one, as for a real connection.
    pub(super) fn answer(
        &self,
        snapshot: &Snapshot,
        network: &str,
        pods: &[PodStatus],
        experience: &Experience<'_>,
        pick: u64,
    ) -> Result<Explanation, BadQuestion> {
        match &self.from {
            Source::Outside { source } => Ok(self.outsider(snapshot, network, *source)),
            Source::Pod { namespace, name } => {
                let source = workload(snapshot, pods, namespace, name).ok_or_else(|| {
                    BadQuestion::UnknownPod { namespace: namespace.clone(), name: name.clone() }
                })?;
                let outbound = Outbound { source: &source, orig_dst: self.to, network };
                let found = next_hop(snapshot, &outbound, experience, pick);
                Ok(self.member(snapshot, &source, found))
            }
        }
    }

    fn outsider(&self, snapshot: &Snapshot, network: &str, source: IpAddr) -> Explanation {
        let Some(workload) = snapshot.workload_by_address(network, self.to.ip()) else {
            let summary =
                format!("{} is no workload's address: the mesh has no part in it", self.to.ip());
            return self.explanation(Outcome::Forwarded, summary);
        };
        let connection =
            Connection { peer: None, source: SocketAddr::new(source, 0), destination: self.to };
        let verdict = judge(snapshot, workload, &connection);
        self.judged(verdict)
    }

    fn member(
        &self,
        snapshot: &Snapshot,
        source: &Workload,
        found: Result<NextHop, NoRoute>,
    ) -> Explanation {
        let explanation = match found {
            Err(no_route) => Explanation {
                reason: Some(Reason::from(&no_route).as_str()),
                ..self.explanation(Outcome::NoRoute, no_route.to_string())
            },
            Ok(NextHop::Direct { dial, authority, expect, workload, service }) => {
                let ip = source.addresses.first().copied().unwrap_or(Ipv4Addr::UNSPECIFIED.into());
                let connection = Connection {
                    peer: source.identity(),
                    source: SocketAddr::new(ip, 0),
                    destination: authority.get(),
                };
                let verdict = judge(snapshot, &workload, &connection);
                let hop =
                    Hop::tunnel("direct", dial, authority, &expect, &workload, service.as_deref());
                Explanation { hop: Some(hop), ..self.judged(verdict) }
            }
            Ok(NextHop::Waypoint { dial, authority, expect, waypoint, service }) => {
                let summary = format!("forwarded to waypoint {}, which decides", waypoint.uid);
                let hop = Hop::tunnel(
                    "waypoint",
                    dial,
                    authority,
                    &expect,
                    &waypoint,
                    service.as_deref(),
                );
                Explanation { hop: Some(hop), ..self.explanation(Outcome::Forwarded, summary) }
            }
            Ok(NextHop::Across { dial, authority, behind, gateway, target, service, .. }) => {
                let network = &target.network;
                let summary = format!(
                    "forwarded to network `{network}` through its gateway {}: who is behind it decides",
                    gateway.uid
                );
                let service = service.as_deref();
                let hop = Hop::tunnel("across", dial, authority, &behind, &target, service);
                Explanation { hop: Some(hop), ..self.explanation(Outcome::Forwarded, summary) }
            }
            Ok(NextHop::Plain { dial, workload, service }) => {
                let summary =
                    format!("forwarded in the clear to {}, which accepts no tunnels", workload.uid);
                let hop = Hop {
                    workload: Some(Party::of(&workload)),
                    ..Hop::clear("plain", dial, service.as_deref())
                };
                Explanation { hop: Some(hop), ..self.explanation(Outcome::Forwarded, summary) }
            }
            Ok(NextHop::Passthrough { dial, service }) => {
                let summary = format!("forwarded in the clear to {dial}, which is not in the mesh");
                let hop = Hop::clear("passthrough", dial, service.as_deref());
                Explanation { hop: Some(hop), ..self.explanation(Outcome::Forwarded, summary) }
            }
            Ok(NextHop::Unresolved(unresolved)) => {
                let summary =
                    format!("forwarded to an address that {} has in DNS", unresolved.host);
                let hop = Hop { kind: "unresolved", host: Some(unresolved.host), ..Hop::empty() };
                Explanation { hop: Some(hop), ..self.explanation(Outcome::Forwarded, summary) }
            }
        };
        Explanation { source: Some(Party::of(source)), ..explanation }
    }

    fn judged(&self, (verdict, reason): (Verdict, Option<Reason>)) -> Explanation {
        let outcome = if verdict.allowed { Outcome::Allowed } else { Outcome::Denied };
        let summary = verdict.sentence.clone();
        Explanation {
            reason: reason.map(Reason::as_str),
            policy: Some(verdict),
            ..self.explanation(outcome, summary)
        }
    }

    fn explanation(&self, outcome: Outcome, summary: String) -> Explanation {
        let from = match &self.from {
            Source::Pod { namespace, name } => format!("{namespace}/{name}"),
            Source::Outside { source } if source.is_unspecified() => "outside".to_owned(),
            Source::Outside { source } => format!("outside/{source}"),
        };
        let (source, hop, policy) = (None, None, None);
        Explanation { from, to: self.to, outcome, reason: None, summary, source, hop, policy }
    }
}

impl FromStr for Source {
    type Err = BadQuestion;

    fn from_str(text: &str) -> Result<Self, BadQuestion> {
        let bad = || BadQuestion::From { found: text.to_owned() };
        match text.split_once('/') {
            None if text == "outside" => Ok(Self::Outside { source: Ipv4Addr::UNSPECIFIED.into() }),
            Some(("outside", source)) if source.parse::<IpAddr>().is_ok() => {
                source.parse().map(|source| Self::Outside { source }).map_err(|_| bad())
            }
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => {
                Ok(Self::Pod { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            None | Some(_) => Err(bad()),
        }
    }
}

/// The workload of a pod: one of this node by what the node knows, any other by name.
fn workload(
    snapshot: &Snapshot,
    pods: &[PodStatus],
    namespace: &str,
    name: &str,
) -> Option<Arc<Workload>> {
    let local = pods.iter().find(|pod| pod.namespace == namespace && pod.name == name);
    if let Some(pod) = local {
        return snapshot.workload_of(namespace, name, &pod.service_account).cloned();
    }
    let named =
        |workload: &&Arc<Workload>| *workload.namespace == *namespace && *workload.name == *name;
    snapshot.workloads().find(named).cloned()
}

#[cfg(test)]
mod tests {
    use hyper::Method;
    use mesh::store::{Store, Update};

    use super::*;
    use crate::next_hop::fixture::{NETWORK, snapshot};

    const SHOP: &str = "
        workload web   10.0.0.1     hbone sa=web
        workload cart  10.0.0.2     hbone sa=cart
        workload old   10.0.0.3
        service  cart  10.1.0.2:80  -> cart:8080
        service  empty 10.1.0.3:80  ->
        workload ew    203.0.113.5  network=far
        workload away  -            hbone network=far gateway=203.0.113.5@far
        service  global 10.1.0.4:80 -> away:8080 san=spiffe://cluster.local/ns/shop/sa/srv
    ";

    fn ask(from: &str, to: &str) -> Result<Explanation, BadQuestion> {
        let request = Request::of(Method::GET, &format!("/explain?from={from}&to={to}"));
        Question::of(&request)?.answer(&snapshot(SHOP), NETWORK, &[], &Experience::NONE, 0)
    }

    fn check(from: &str, to: &str, expected: &str) {
        let found = match ask(from, to) {
            Ok(Explanation { outcome, reason, summary, .. }) => match reason {
                Some(reason) => format!("{outcome:?} {reason}: {summary}"),
                None => format!("{outcome:?}: {summary}"),
            },
            Err(bad) => bad.to_string(),
        };
        assert_eq!(found, expected, "{from} -> {to}");
    }

    #[test]
    fn a_service_is_explained_by_its_endpoint_and_that_ones_policies() {
        check(
            "shop/web",
            "10.1.0.2:80",
            "Allowed: no policy restricts who may connect to the destination",
        );
        let hop = ask("shop/web", "10.1.0.2:80").unwrap().hop.unwrap();
        let found = (hop.kind, hop.dial.unwrap().to_string(), hop.authority.unwrap());
        assert_eq!(found, ("direct", "10.0.0.2:15008".to_owned(), "10.0.0.2:8080".to_owned()));
        assert_eq!(hop.expect, ["spiffe://cluster.local/ns/shop/sa/cart"]);
    }

    #[test]
    fn what_leaves_the_mesh_is_said_to_be_in_the_clear() {
        let passthrough =
            "Forwarded: forwarded in the clear to 192.0.2.1:80, which is not in the mesh";
        check("shop/web", "192.0.2.1:80", passthrough);
        let plain =
            "Forwarded: forwarded in the clear to cluster//Pod/shop/old, which accepts no tunnels";
        check("shop/web", "10.0.0.3:80", plain);
    }

    #[test]
    fn another_network_is_explained_by_its_gateway_and_whom_to_expect_behind_it() {
        let across = "Forwarded: forwarded to network `far` through its gateway cluster//Pod/shop/ew: \
                      who is behind it decides";
        check("shop/web", "10.1.0.4:80", across);
        let hop = ask("shop/web", "10.1.0.4:80").unwrap().hop.unwrap();
        let found = (hop.kind, hop.dial.unwrap().to_string(), hop.authority.unwrap());
        let expected = ("across", "203.0.113.5:15008".to_owned(), "global.shop:80".to_owned());
        assert_eq!(found, expected);
        assert_eq!(hop.expect, ["spiffe://cluster.local/ns/shop/sa/srv"]);
    }

    #[test]
    fn no_route_has_the_word_that_log_and_metrics_have() {
        let found = ask("shop/web", "10.1.0.2:81").unwrap();
        assert_eq!((found.outcome, found.reason), (Outcome::NoRoute, Some("unknown_service_port")));
    }

    #[test]
    fn a_denial_has_the_word_and_the_sentence_that_the_log_has() {
        use proto::security::{Action, Authorization, Clause, Match, Rule, Scope};
        let rule = |port| Rule {
            clauses: vec![Clause {
                matches: vec![Match { destination_ports: vec![port], ..Default::default() }],
            }],
        };
        let policy = Authorization {
            name: "only-81".into(),
            namespace: "shop".into(),
            scope: Scope::Namespace.into(),
            action: Action::Allow.into(),
            rules: vec![rule(81)],
            ..Default::default()
        };
        let store = Store::new();
        let workloads = snapshot(SHOP);
        let known = workloads.workloads().map(|one| Update::Workload((**one).clone()));
        store.apply(known.chain([Update::Policy(policy.try_into().unwrap())]));
        let request = Request::of(Method::GET, "/explain?from=shop/web&to=10.0.0.2:80");
        let question = Question::of(&request).unwrap();
        let found = question.answer(&store.load(), NETWORK, &[], &Experience::NONE, 0).unwrap();
        assert_eq!((found.outcome, found.reason), (Outcome::Denied, Some("policy_no_allow")));
        let expected = "no policy allows this connection: nearest is rule 1 of shop/only-81, \
                        whose destination_ports wants 81 and found 80";
        assert_eq!(found.summary, expected);
        assert!(!found.policy.unwrap().allowed);
    }

    #[test]
    fn an_outsider_is_judged_without_an_identity() {
        check(
            "outside",
            "10.0.0.2:8080",
            "Allowed: no policy restricts who may connect to the destination",
        );
        let nobody = "Forwarded: 192.0.2.1 is no workload's address: the mesh has no part in it";
        check("outside/198.51.100.7", "192.0.2.1:80", nobody);
    }

    #[test]
    fn a_bad_question_is_answered_by_what_is_wrong() {
        check(
            "shop",
            "10.0.0.2:80",
            "`from` must be NAMESPACE/POD, `outside` or `outside/ADDRESS`, found `shop`",
        );
        check("shop/web", "10.0.0.2", "`to` must be ADDRESS:PORT, found `10.0.0.2`");
        check("shop/nobody", "10.0.0.2:80", "no workload shop/nobody is known here");
    }
}
