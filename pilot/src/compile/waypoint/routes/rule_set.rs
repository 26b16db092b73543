//! The one form that rules of a VirtualService and of the Gateway API's routes have, and which of them count where.
//!
//! In: the user's objects. Out: [`Routes`], made once for all waypoints, and the [`RuleSet`]s of one host in the order
//! in which they are tried. What a rule does is not looked at here.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
};

use super::{delegate, gateway_api};
use crate::manifests::{
    Manifests, Meta,
    networking::{Destination, HttpRule, TcpRule, TlsRule, VirtualService},
};

/// The Gateway API and Istio differ in what a prefix is, and in what becomes of a request that leads nowhere.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Semantics {
    VirtualService,
    GatewayApi,
}

/// Rules for some hosts, from one object or merged from several.
#[derive(Debug)]
pub(crate) struct RuleSet<'a> {
    pub(crate) namespace: &'a str,
    /// Of the VirtualService, or of that which istiod would make of the routes.
    pub(crate) name: Cow<'a, str>,
    pub(crate) semantics: Semantics,
    /// Full names; one may begin with `*`.
    pub(crate) hosts: Vec<String>,
    pub(crate) http: Cow<'a, [HttpRule]>,
    /// The object that each of those rules comes from.
    pub(crate) of_http: Vec<&'a Meta>,
    /// The object of the other rules.
    pub(crate) of_connections: Option<&'a Meta>,
    pub(crate) tls: Cow<'a, [TlsRule]>,
    pub(crate) tcp: Cow<'a, [TcpRule]>,
    /// Who may use them; empty means everybody.
    pub(crate) export_to: &'a [String],
    /// When the oldest of the objects was created, empty if it does not say.
    pub(crate) created: &'a str,
}

/// Who may use rules: whatever is addressed more closely goes first.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Visibility {
    OwnNamespace,
    Named,
    Everybody,
}

impl RuleSet<'_> {
    fn visibility(&self, client_namespace: &str) -> Option<Visibility> {
        let own = self.namespace == client_namespace;
        let to = |name: &str| self.export_to.iter().any(|namespace| namespace == name);
        if self.export_to.is_empty() || to("*") {
            Some(Visibility::Everybody)
        } else if own && to(".") {
            Some(Visibility::OwnNamespace)
        } else {
            to(client_namespace).then_some(Visibility::Named)
        }
    }

    /// Everything its rules lead to, mirrors included.
    pub(crate) fn destinations(&self) -> impl Iterator<Item = &Destination> {
        let http = self.http.iter().flat_map(|rule| {
            let routed = rule.route.iter().map(|route| &route.destination);
            let mirrored = rule.mirrors.iter().map(|mirror| &mirror.destination);
            routed.chain(&rule.mirror).chain(mirrored)
        });
        let tls = self.tls.iter().flat_map(|rule| &rule.route);
        let tcp = self.tcp.iter().flat_map(|rule| &rule.route);
        http.chain(tls.chain(tcp).map(|route| &route.destination))
    }
}

/// All rules that count for waypoints, by their hosts.
#[derive(Debug, Default)]
pub(crate) struct Routes<'a> {
    sets: Vec<RuleSet<'a>>,
    /// Indices of sets by a full host name.
    exact: HashMap<String, Vec<usize>>,
    /// Names that begin with `*`, and indices of sets.
    wildcards: BTreeMap<String, Vec<usize>>,
}

impl<'a> Routes<'a> {
    pub(crate) fn of(manifests: &'a Manifests, cluster_domain: &'a str) -> Self {
        let delegates = delegate::Delegates::of(&manifests.virtual_services);
        let own = manifests.virtual_services.iter().filter_map(|object| {
            of_virtual_service(&object.meta, &object.spec, &delegates, cluster_domain)
        });
        let mut sets: Vec<RuleSet<'a>> = own.collect();
        sets.extend(gateway_api::rule_sets(manifests, cluster_domain));
        let mut routes = Self { sets, ..Self::default() };
        for (i, set) in routes.sets.iter().enumerate() {
            for host in &set.hosts {
                if host.starts_with('*') {
                    routes.wildcards.entry(host.clone()).or_default().push(i);
                } else {
                    routes.exact.entry(host.clone()).or_default().push(i);
                }
            }
        }
        routes
    }

    /// The rules for one host at a waypoint, in the order in which they are tried.
    ///
    /// Only rules of the host's namespace and of the waypoint's count.
    pub(crate) fn of_host(
        &self,
        hostname: &str,
        host_namespace: &str,
        client_namespace: &str,
    ) -> Vec<&RuleSet<'a>> {
        let mut found: Vec<usize> = self.exact.get(hostname).cloned().unwrap_or_default();
        for (pattern, sets) in &self.wildcards {
            if covers(pattern, hostname) {
                found.extend(sets);
            }
        }
        found.sort_unstable();
        found.dedup();
        let found = found.into_iter().filter_map(|i| {
            let set = &self.sets[i];
            let namespaces = [host_namespace, client_namespace];
            let near = namespaces.contains(&set.namespace);
            // A route of the Gateway API names its parent: it has no wildcards.
            let named = set.semantics == Semantics::VirtualService
                || set.hosts.iter().any(|host| host == hostname);
            let visibility = set.visibility(client_namespace).filter(|_| near && named)?;
            let own_route =
                set.semantics == Semantics::GatewayApi && set.namespace == client_namespace;
            let age = (set.created.is_empty(), set.created, set.name.as_ref(), set.namespace);
            Some(((visibility, !own_route, age), set))
        });
        let mut found: Vec<_> = found.collect();
        found.sort_by_key(|(place, _)| *place);
        found.into_iter().map(|(_, set)| set).collect()
    }
}

/// Whether a name that begins with `*` covers another, which may begin with `*` itself.
fn covers(pattern: &str, hostname: &str) -> bool {
    let suffix = &pattern[1..];
    pattern == hostname || hostname.len() > suffix.len() && hostname.ends_with(suffix)
}

/// Nothing, if it is not for the mesh or only for others to delegate to.
fn of_virtual_service<'a>(
    meta: &'a Meta,
    spec: &'a VirtualService,
    delegates: &delegate::Delegates<'a>,
    cluster_domain: &str,
) -> Option<RuleSet<'a>> {
    let for_mesh = spec.gateways.is_empty() || spec.gateways.iter().any(|name| name == "mesh");
    if !for_mesh || spec.hosts.is_empty() {
        return None;
    }
    let hosts = spec.hosts.iter().map(|host| full_name(host, &meta.namespace, cluster_domain));
    let (http, of_http) = delegates.resolve(meta, spec);
    Some(RuleSet {
        namespace: &meta.namespace,
        name: Cow::Borrowed(&*meta.name),
        semantics: Semantics::VirtualService,
        hosts: hosts.map(Cow::into_owned).collect(),
        http,
        of_http,
        of_connections: Some(meta),
        tls: Cow::Borrowed(&spec.tls),
        tcp: Cow::Borrowed(&spec.tcp),
        export_to: &spec.export_to,
        created: &meta.created,
    })
}

/// A host as an object of `namespace` names it: one without a dot is a Service beside it.
pub(crate) fn full_name<'a>(host: &'a str, namespace: &str, cluster_domain: &str) -> Cow<'a, str> {
    if host.is_empty() || host.contains('.') || host.starts_with('*') {
        Cow::Borrowed(host)
    } else {
        Cow::Owned(format!("{host}.{namespace}.svc.{cluster_domain}"))
    }
}

#[cfg(test)]
mod tests {
    use std::{path::Path, sync::Arc};

    use super::*;
    use crate::manifests::read_text;

    fn manifests(text: &str) -> Manifests {
        let mut problems = Vec::new();
        let resources = read_text(&Arc::from(Path::new("f.yaml")), text, &mut problems);
        assert!(problems.is_empty(), "{problems:?}");
        Manifests::gather(&resources).0
    }

    fn virtual_service(namespace: &str, name: &str, more: &str) -> String {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}, \
             namespace: {namespace}}}\nspec:\n  http: [{{directResponse: {{status: 200}}}}]\n  {more}\n---\n"
        )
    }

    fn route(namespace: &str, name: &str, parent: &str) -> String {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}, \
             namespace: {namespace}}}\nspec:\n  parentRefs: [{parent}]\n  rules: [{{}}]\n---\n"
        )
    }

    /// The names of the sets for `web.app` at a waypoint in `gw`.
    fn check(text: &str, expected: &[&str]) {
        let manifests = manifests(text);
        let routes = Routes::of(&manifests, "cluster.local");
        let found = routes.of_host("web.app.svc.cluster.local", "app", "gw");
        let names: Vec<_> = found.iter().map(|set| set.name.as_ref()).collect();
        assert_eq!(names, expected, "{text}");
    }

    #[test]
    fn rules_of_the_services_and_the_waypoints_namespace_count() {
        let host = "hosts: [web.app.svc.cluster.local]";
        let all = [
            virtual_service("app", "own", "hosts: [web]"),
            virtual_service("gw", "near", host),
            virtual_service("far", "far", host),
            virtual_service("gw", "other", "hosts: [web]"),
        ];
        check(&all.concat(), &["near", "own"]);
    }

    #[test]
    fn rules_count_where_they_are_exported_to_and_narrower_ones_go_first() {
        let host = "hosts: [web.app.svc.cluster.local], exportTo:";
        let all = [
            virtual_service("app", "a-hidden", "hosts: [web]\n  exportTo: ['.']"),
            virtual_service("app", "b-public", "hosts: [web]\n  exportTo: ['*']"),
            virtual_service("app", "c-named", "hosts: [web]\n  exportTo: [gw]"),
            virtual_service("gw", "d-private", &host.replace(", exportTo:", "\n  exportTo: ['.']")),
        ];
        check(&all.concat(), &["d-private", "c-named", "b-public"]);
    }

    #[test]
    fn wildcards_cover_longer_names_and_gateways_are_not_the_mesh() {
        let all = [
            virtual_service("app", "a", "hosts: ['*.app.svc.cluster.local']"),
            virtual_service("app", "b", "hosts: ['*.svc.cluster.local']"),
            virtual_service("app", "c", "hosts: ['*.web.app.svc.cluster.local']"),
            virtual_service("app", "d", "hosts: [web]\n  gateways: [ingress]"),
            virtual_service("app", "e", "hosts: [web]\n  gateways: [ingress, mesh]"),
        ];
        check(&all.concat(), &["a", "b", "e"]);
    }

    #[test]
    fn routes_of_one_port_are_merged_and_a_consumers_route_does_not_count() {
        let service = "{group: '', kind: Service, name: web}";
        let port = "{group: '', kind: Service, name: web, port: 80}";
        let foreign = "{group: '', kind: Service, name: web, namespace: app}";
        let all = [
            route("app", "a", service),
            route("app", "b", service),
            route("app", "c", port),
            route("far", "d", foreign),
            route("gw", "e", foreign),
        ];
        let (of_port, merged) =
            ("app~80~web.app.svc.cluster.local", "app~web.app.svc.cluster.local");
        check(&all.concat(), &["gw~web.app.svc.cluster.local", of_port, merged]);
    }

    #[test]
    fn a_rule_with_a_filter_we_do_not_apply_answers_500() {
        let text = route("app", "a", "{group: '', kind: Service, name: web}").replace(
            "rules: [{}]",
            "rules: [{filters: [{type: ExtensionRef, extensionRef: {group: g, kind: k, name: n}}], \
             backendRefs: [{name: web, port: 80}]}]",
        );
        let manifests = manifests(&text);
        let routes = Routes::of(&manifests, "cluster.local");
        let sets = routes.of_host("web.app.svc.cluster.local", "app", "app");
        let [rule] = sets[0].http.as_ref() else { panic!("{sets:?}") };
        assert!(rule.route.is_empty());
        assert_eq!(rule.direct_response.as_ref().map(|answer| answer.status), Some(500));
    }
}
