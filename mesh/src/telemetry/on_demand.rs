//! Names that were resolved for a connection: Istio's `istio_on_demand_dns_total`.

use metrics::{SharedString, counter};

use super::Party;

/// Counts that a workload's name had to be resolved for a connection of `source`.
pub fn resolved_on_demand(source: &Party, hostname: &str) {
    let known = |value: &Option<std::sync::Arc<str>>| {
        value.clone().map_or(SharedString::const_str("unknown"), SharedString::from)
    };
    let principal = source.principal.as_ref();
    let principal: SharedString =
        principal.map_or("unknown".into(), |principal| principal.to_string().into());
    counter!(
        "istio_on_demand_dns_total",
        "source_workload" => known(&source.workload),
        "source_canonical_service" => known(&source.canonical_name),
        "source_canonical_revision" => known(&source.canonical_revision),
        "source_workload_namespace" => known(&source.namespace),
        "source_principal" => principal,
        "source_app" => known(&source.canonical_name),
        "source_version" => known(&source.canonical_revision),
        "source_cluster" => known(&source.cluster),
        "hostname" => hostname.to_owned(),
    )
    .increment(1);
}
