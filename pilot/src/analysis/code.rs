//! What can be found: every code with its severity, what it means in a line, and what helps.
//!
//! A code keeps its meaning for good: one that is given up is not given to anything else. `docs/codes.md` has a section
//! for each.

use std::fmt;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Severity {
    /// Traffic fails, or something that is to protect does not.
    Error,
    /// Something has no effect, or another one than it seems to have.
    Warning,
    /// True, and sometimes meant so.
    Note,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
        })
    }
}

macro_rules! codes {
    ($($code:ident = $id:literal $severity:ident $title:literal, $remedy:literal;)+) => {
        /// What is found.
        #[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
        #[expect(missing_docs, reason = "each has a title")]
        pub enum Code {
            $($code,)+
        }

        impl Code {
            /// All of them, by their ids.
            pub const ALL: &[Self] = &[$(Self::$code,)+];

            /// As it is printed and looked up.
            pub fn id(self) -> &'static str {
                match self {
                    $(Self::$code => $id,)+
                }
            }

            /// How bad it is.
            pub fn severity(self) -> Severity {
                match self {
                    $(Self::$code => Severity::$severity,)+
                }
            }

            /// What it means.
            pub fn title(self) -> &'static str {
                match self {
                    $(Self::$code => $title,)+
                }
            }

            /// What to do.
            pub fn remedy(self) -> &'static str {
                match self {
                    $(Self::$code => $remedy,)+
                }
            }
        }
    };
}

codes! {
    Refused = "AQ0001" Error "the object cannot be read as what it says it is",
        "correct the field; the last good form stays in force until then";
    Ignored = "AQ0002" Warning "a field has no effect",
        "leave it out, or say it in a form that is followed";

    NoWaypoint = "AQ0101" Error "a label asks for a waypoint that is not there",
        "create the Gateway, or correct istio.io/use-waypoint and istio.io/use-waypoint-namespace";
    NoBackend = "AQ0102" Error "a route leads to a host that is not there",
        "correct the name or its namespace, or create the Service or ServiceEntry";
    NoBackendPort = "AQ0103" Error "a route leads to a port that its host has not",
        "name one of the ports of the Service, not one of its pods";
    NoParent = "AQ0104" Error "a route is for something that is not there",
        "correct parentRefs: group, kind, name, namespace and port";
    NoDelegate = "AQ0105" Error "a rule is delegated to a VirtualService that cannot take it",
        "name a VirtualService without hosts that is exported to this namespace";
    NoSubset = "AQ0106" Error "a route leads to a subset that is defined nowhere",
        "define the subset in a DestinationRule of the host that the waypoint's namespace sees";
    NoProvider = "AQ0107" Error "an extension provider is not there",
        "add it to extensionProviders of meshConfig, with a service that is there";
    NoSecret = "AQ0108" Error "a Secret is not there",
        "create the Secret in the namespace of the object that names it";
    NoTarget = "AQ0109" Error "a policy is attached to something that is not there",
        "correct targetRefs: kind and name, in the policy's own namespace";
    NoServiceAccount = "AQ0110" Warning "a pod runs as a service account that is not there",
        "create the ServiceAccount, or correct spec.serviceAccountName";
    NoGrant = "AQ0111" Error "a Gateway's route leads into another namespace without a grant",
        "create a ReferenceGrant in the namespace of the backend";
    NoRoots = "AQ0112" Error "a BackendTLSPolicy names roots that are not there",
        "create the ConfigMap with the key ca.crt, or say wellKnownCACertificates: System";

    NoEndpoints = "AQ0201" Warning "nothing is behind a host",
        "correct the selector, or add the endpoints";
    NoTargetPort = "AQ0202" Error "a port leads to a named port that no pod has",
        "name the container port, or give targetPort as a number";
    NoSuchHost = "AQ0203" Warning "rules are for a host that is not there",
        "correct the host, or create the Service or ServiceEntry";
    WildcardWithoutWaypoint = "AQ0204" Error "a wildcard host has no waypoint",
        "label the ServiceEntry or its namespace with istio.io/use-waypoint";
    HostTaken = "AQ0205" Warning "another object of the namespace has the host already",
        "take the host out of one of the two";
    WildcardTcp = "AQ0206" Error "a wildcard host has a port that a waypoint cannot resolve",
        "say HTTP or TLS as its protocol, or name the hosts one by one";
    SharedAddress = "AQ0207" Warning "two hosts have one address",
        "give each its own address, or leave the address out to have one allocated";
    NotVisible = "AQ0208" Error "a route leads to a host that its namespace does not see",
        "export the ServiceEntry to everybody (exportTo: ['*'])";
    PartialExport = "AQ0209" Note "exportTo names single namespaces",
        "say '.', '*' or '~': daemons cannot be told of single namespaces";

    AllowsNothing = "AQ0301" Error "a rule of ALLOW needs the request, and no waypoint sees it",
        "attach the policy to the Service or its waypoint with targetRefs, or keep to ports and identities";
    DeniesNothing = "AQ0302" Error "a rule of DENY needs the request, and no waypoint sees it",
        "attach the policy to the Service or its waypoint with targetRefs, or keep to ports and identities";
    DeniesMore = "AQ0303" Error "a rule of DENY loses the part that needs the request",
        "attach the policy to the Service or its waypoint with targetRefs, or keep to ports and identities";
    ActionWithoutWaypoint = "AQ0304" Error "CUSTOM or AUDIT is asked for where there is no waypoint",
        "attach the policy to the Service or its waypoint with targetRefs";
    RequestRuleOnTcp = "AQ0305" Warning "a rule needs the request, on a port that has none",
        "restrict the rule to the HTTP ports, or name the port's protocol http";
    TokenNotNeeded = "AQ0306" Note "tokens are checked, and none is needed",
        "add an AuthorizationPolicy that allows requestPrincipals only";
    WithoutTarget = "AQ0307" Error "only waypoints follow it, and it is attached to none",
        "say targetRefs in the place of selector";
    NeverMatches = "AQ0308" Warning "a policy without rules matches nothing",
        "add a rule; `{}` matches everything";
    NobodyHasIt = "AQ0309" Warning "a policy names an identity that no workload has",
        "correct it: TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT";
    NoTokenChecked = "AQ0310" Warning "a policy needs a token that nothing checks",
        "attach a RequestAuthentication to the same target";
    HostWithoutPort = "AQ0311" Note "a policy matches hosts without their port",
        "add the port: clients say it unless it is 80 or 443";
    CustomBeforeToken = "AQ0312" Error "CUSTOM is decided before tokens are checked",
        "leave request.auth and requestPrincipals to an ALLOW or DENY policy";
    OtherSidesPort = "AQ0313" Error "a port of the other side is meant",
        "name container ports where daemons or pods decide, ports of the Service where a waypoint does";

    Shadowed = "AQ0401" Warning "a rule is never reached",
        "put it before the broader one, or narrow that one";
    SeveralVirtualServices = "AQ0402" Warning "several VirtualServices are for one host",
        "make one of them, or delegate";
    MixedRoutes = "AQ0403" Warning "a host has a VirtualService and a route of the Gateway API",
        "use one of the two for each host";
    SecondPolicy = "AQ0404" Warning "another DestinationRule of the host stands before this one",
        "make one of them";
    PortReplaces = "AQ0405" Warning "a port's settings drop what the rule says for all ports",
        "repeat it in portLevelSettings";
    NoDefaultRule = "AQ0406" Note "requests that match no rule are answered with 404",
        "add a last rule without match, if that is not meant";
    ForeignRoute = "AQ0407" Warning "rules of this namespace do not count for the host",
        "move them to the namespace of the Service or of its waypoint";
    NotExported = "AQ0408" Warning "rules are not exported to the waypoint of their host",
        "add the waypoint's namespace to exportTo";
    AnswersError = "AQ0409" Error "a rule can only be answered with 500",
        "use the filters and backends that a waypoint applies";
    NoBackends = "AQ0410" Warning "a rule without backends is answered with 500",
        "add backendRefs or a redirect";
    OtherProtocol = "AQ0411" Warning "rules are for a protocol that no port of the host speaks",
        "name the protocol of the port: appProtocol, or the beginning of its name";
    MatchNeverMet = "AQ0412" Warning "a match can never be met",
        "correct the port; a waypoint follows TLS rules for the host's own name only";
    NothingInSubset = "AQ0413" Warning "no endpoint has the labels of a subset",
        "correct the labels";
    FieldNotFollowed = "AQ0414" Note "a field of a route is not followed",
        "leave it out";

    StrictOutside = "AQ0501" Error "STRICT is asked for pods that are not in the mesh",
        "label the namespace or the pods with istio.io/dataplane-mode=ambient";
    PlainClients = "AQ0502" Note "pods beside it are not in the mesh and cannot connect in plain text",
        "enrol them, or make the ports they need PERMISSIVE";
    PlainButStrict = "AQ0503" Warning "a DestinationRule asks for plain text where STRICT refuses it",
        "leave out tls: in an ambient mesh tunnels are used whatever it says";
    SeveralModes = "AQ0504" Warning "an older PeerAuthentication of the same scope counts",
        "make one of them";
    DisableIsPermissive = "AQ0505" Note "DISABLE is as PERMISSIVE",
        "say PERMISSIVE: tunnels are taken anyway";

    PolicyWithoutWaypoint = "AQ0601" Error "a policy is attached to a service that has no waypoint",
        "label the Service or its namespace with istio.io/use-waypoint";
    RouteWithoutWaypoint = "AQ0602" Warning "rules are for a service that has no waypoint",
        "label the Service or its namespace with istio.io/use-waypoint";
    RuleWithoutWaypoint = "AQ0603" Warning "a DestinationRule is for a service that no waypoint connects to",
        "label the Service or its namespace with istio.io/use-waypoint";
    WaypointNotReady = "AQ0604" Warning "a waypoint has no pod that is ready",
        "see why its pods are not: services are reached without it until then";
    WaypointDenied = "AQ0605" Error "a waypoint does not admit the namespace",
        "allow it in allowedRoutes of the Gateway's listener";
    WaypointForOthers = "AQ0606" Error "a waypoint is not for this traffic",
        "set istio.io/waypoint-for of the Gateway to all, or use another waypoint";
    WaypointElsewhere = "AQ0607" Error "a host of one namespace asks for a waypoint of another",
        "use a waypoint of its own namespace";
    BadCanary = "AQ0608" Warning "the second waypoint takes no traffic",
        "correct the istio.io/use-waypoint-canary labels and its weight";
    IdleWaypoint = "AQ0609" Note "nothing uses a waypoint",
        "label a namespace or a Service with istio.io/use-waypoint, or delete it";
    NoTunnelListener = "AQ0610" Error "a waypoint takes no tunnels",
        "add a listener with protocol HBONE on port 15008";

    NoEffect = "AQ0701" Note "nothing in an ambient mesh follows it",
        "see docs/ for what to use in its place";
    SelectsNothing = "AQ0702" Warning "a selector selects nothing",
        "correct the labels, which must be those of pods of the same namespace";
    NoIdentity = "AQ0703" Note "a WorkloadEntry has no service account",
        "say serviceAccount: tunnels to it expect an identity";
    UnknownValue = "AQ0704" Error "a label has a value that means nothing",
        "correct the value";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_distinct_and_in_order() {
        let ids: Vec<_> = Code::ALL.iter().map(|code| code.id()).collect();
        let mut sorted = ids.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(ids, sorted);
    }
}
