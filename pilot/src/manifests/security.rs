//! `AuthorizationPolicy` and `PeerAuthentication` as the user writes them (l7 attributes included: which of them are
//! enforced where is the compiler's question).

use std::{collections::BTreeMap, fmt};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use schemars::JsonSchema;
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{self, DeserializeOwned},
};

use super::{Duration, Labels, document::Report};

/// A whole document of `security.istio.io`.
#[derive(Deserialize)]
#[serde(bound = "T: Default + DeserializeOwned, S: Default + DeserializeOwned")]
pub(crate) struct Document<T, S = serde_yaml_ng::Value>
where
    S: Default,
{
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    pub metadata: ObjectMeta,
    #[serde(default, deserialize_with = "null_is_default")]
    pub spec: T,
    /// Written by a control plane; of most kinds its content is not ours to check.
    #[serde(default, deserialize_with = "null_is_default")]
    pub status: S,
}

/// Who may talk to whom.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AuthorizationPolicy {
    /// Which pods of the namespace it guards; all if there is none.
    pub selector: Option<Selector>,
    /// A waypoint it is attached to.
    pub target_ref: Option<TargetRef>,
    /// Waypoints it is attached to.
    pub target_refs: Option<Vec<TargetRef>>,
    /// What a match means.
    pub action: Action,
    /// Who decides, for [`Action::Custom`].
    pub provider: Option<Provider>,
    /// What matches: any of these.
    pub rules: Option<Vec<Rule>>,
    /// Evaluated and logged, not enforced: the annotation `istio.io/dry-run`.
    #[serde(skip)]
    pub dry_run: bool,
}

/// What a match means.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Action {
    /// The connection is allowed.
    #[default]
    Allow,
    /// The connection is refused.
    Deny,
    /// The request is logged.
    Audit,
    /// Another service decides.
    Custom,
}

/// Pods by their labels.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Selector {
    /// Labels a pod must have.
    pub match_labels: Option<Labels>,
}

/// A resource that a policy is attached to.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(default)]
pub struct TargetRef {
    /// The group of its kind; empty for Kubernetes' own.
    pub group: Option<String>,
    /// Its kind.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Its namespace, which can only be the policy's.
    pub namespace: Option<String>,
}

/// Who decides a [`Action::Custom`] policy.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct Provider {
    /// Its name in the mesh's configuration.
    pub name: String,
}

/// One rule: from AND to AND when.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(default)]
pub struct Rule {
    /// Any of these sources.
    pub from: Option<Vec<From>>,
    /// Any of these operations.
    pub to: Option<Vec<To>>,
    /// All of these conditions.
    pub when: Option<Vec<Condition>>,
}

/// Wraps a [`Source`], as the format has it.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(default)]
pub struct From {
    /// The source.
    pub source: Option<Source>,
}

/// Wraps an [`Operation`], as the format has it.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(default)]
pub struct To {
    /// The operation.
    pub operation: Option<Operation>,
}

/// Values of one attribute.
pub type Values = Option<Vec<String>>;

/// Who connects: all of these attributes.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(
    missing_docs,
    reason = "the fields are the attributes of Istio's reference, by the same names"
)]
pub struct Source {
    pub principals: Values,
    pub not_principals: Values,
    pub request_principals: Values,
    pub not_request_principals: Values,
    pub namespaces: Values,
    pub not_namespaces: Values,
    pub service_accounts: Values,
    pub not_service_accounts: Values,
    pub ip_blocks: Values,
    pub not_ip_blocks: Values,
    pub remote_ip_blocks: Values,
    pub not_remote_ip_blocks: Values,
    pub trust_domains: Values,
    pub not_trust_domains: Values,
}

/// What is asked for: all of these attributes.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(
    missing_docs,
    reason = "the fields are the attributes of Istio's reference, by the same names"
)]
pub struct Operation {
    pub hosts: Values,
    pub not_hosts: Values,
    pub ports: Values,
    pub not_ports: Values,
    pub methods: Values,
    pub not_methods: Values,
    pub paths: Values,
    pub not_paths: Values,
}

/// One attribute by its name.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// The attribute, such as `source.ip`.
    pub key: String,
    /// Any of these.
    pub values: Values,
    /// None of these.
    pub not_values: Values,
}

/// Whether plain text is taken.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PeerAuthentication {
    /// Which pods of the namespace; all if there is none.
    pub selector: Option<Selector>,
    /// The mode of every port that is not listed.
    pub mtls: Option<Mtls>,
    /// The modes of single ports of the pod.
    pub port_level_mtls: Option<BTreeMap<PortKey, Mtls>>,
}

/// Wraps a [`MtlsMode`], as the format has it.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(default)]
pub struct Mtls {
    /// The mode.
    pub mode: MtlsMode,
}

/// Whether plain text is taken.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum MtlsMode {
    /// As the next wider scope says.
    #[default]
    Unset,
    /// Yes.
    Disable,
    /// Yes.
    Permissive,
    /// No.
    Strict,
}

/// Whose tokens a request may carry.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RequestAuthentication {
    /// Which pods of the namespace; all if there is none.
    pub selector: Option<Selector>,
    /// A waypoint or gateway it is attached to.
    pub target_ref: Option<TargetRef>,
    /// Waypoints or gateways it is attached to.
    pub target_refs: Vec<TargetRef>,
    /// Issuers that are trusted.
    pub jwt_rules: Vec<JwtRule>,
}

/// One issuer of tokens.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the fields are those of Istio's reference, by the same names")]
pub struct JwtRule {
    pub issuer: String,
    pub audiences: Vec<String>,
    pub jwks_uri: String,
    pub jwks: String,
    pub from_headers: Vec<JwtHeader>,
    pub from_params: Vec<String>,
    pub from_cookies: Vec<String>,
    pub output_payload_to_header: String,
    pub forward_original_token: bool,
    pub output_claim_to_headers: Vec<ClaimToHeader>,
    pub timeout: Option<Duration>,
    pub space_delimited_claims: Vec<String>,
}

/// A header that carries a token.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the fields are those of Istio's reference, by the same names")]
pub struct JwtHeader {
    pub name: String,
    pub prefix: String,
}

/// A claim that is handed on.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the fields are those of Istio's reference, by the same names")]
pub struct ClaimToHeader {
    pub header: String,
    pub claim: String,
}

/// A port as the key of a map: YAML has it as a number, JSON as a text.
#[derive(Clone, Copy, Debug, Eq, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
pub struct PortKey(pub u64);

impl<'de> Deserialize<'de> for PortKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = PortKey;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a port number")
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<PortKey, E> {
                Ok(PortKey(number))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<PortKey, E> {
                text.parse()
                    .map(PortKey)
                    .map_err(|_| E::invalid_value(de::Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl Selector {
    /// The labels asked for; none means every pod.
    pub fn labels(selector: Option<&Self>) -> Option<&Labels> {
        selector
            .and_then(|selector| selector.match_labels.as_ref())
            .filter(|labels| !labels.is_empty())
    }
}

/// Reads the annotation `istio.io/dry-run`.
pub(crate) fn dry_run(metadata: &ObjectMeta, report: &mut Report<'_>) -> bool {
    let Some(value) = metadata.annotations.as_ref().and_then(|all| all.get("istio.io/dry-run"))
    else {
        return false;
    };
    match value.as_str() {
        "true" | "True" | "TRUE" | "t" | "T" | "1" => {
            report.warning(
                "metadata.annotations",
                format!("istio.io/dry-run: {value}: the policy is neither enforced nor tried"),
            );
            true
        }
        "false" | "False" | "FALSE" | "f" | "F" | "0" => false,
        other => {
            report.error(
                "metadata.annotations",
                format!("istio.io/dry-run: `{other}` is neither true nor false"),
            );
            false
        }
    }
}

fn null_is_default<'de, D: Deserializer<'de>, T: Default + DeserializeOwned>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
