//! What an EnvoyFilter asks for and cannot have.
//!
//! In: an EnvoyFilter. Out: problems. A patch that cannot be read is an error: one that is to refuse requests would
//! refuse none. What waypoints are not patched with, as under istiod, is a warning.

use super::{
    document::Report,
    extensions::{ConfigPatch, EnvoyFilter, PatchContext, PatchOperation},
};
use crate::proto_json;

pub(super) fn envoy_filter(filter: &EnvoyFilter, report: &mut Report<'_>) {
    if filter.target_refs.is_empty() {
        return report.warning("spec.targetRefs", "none: it changes no waypoint");
    }
    for (i, patch) in filter.config_patches.iter().enumerate() {
        check(patch, &format!("spec.configPatches[{i}]"), report);
    }
}

fn check(patch: &ConfigPatch, field: &str, report: &mut Report<'_>) {
    let context = patch.r#match.as_ref().map_or(PatchContext::Any, |one| one.context);
    if !matches!(context, PatchContext::Any | PatchContext::SidecarInbound) {
        let field = format!("{field}.match.context");
        return report.warning(&field, "waypoints take ANY and SIDECAR_INBOUND only: not applied");
    }
    let Some(change) = &patch.patch else {
        return report.error(&format!("{field}.patch"), "missing");
    };
    let message = match (patch.apply_to.as_str(), change.operation) {
        ("CLUSTER", PatchOperation::Add) => "envoy.config.cluster.v3.Cluster",
        ("NETWORK_FILTER", _) => "envoy.config.listener.v3.Filter",
        ("HTTP_FILTER", _) => {
            "envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter"
        }
        ("VIRTUAL_HOST", PatchOperation::Merge) => "envoy.config.route.v3.VirtualHost",
        ("HTTP_ROUTE", PatchOperation::Merge) => "envoy.config.route.v3.Route",
        (other, operation) => {
            let reason = format!("{operation:?} of {other} is not applied to waypoints");
            return report.warning(&format!("{field}.applyTo"), reason);
        }
    };
    if change.operation == PatchOperation::Remove {
        return;
    }
    let field = format!("{field}.patch.value");
    match &change.value {
        Some(value) => {
            if let Err(error) = proto_json::check(message, value) {
                report.error(&field, format!("{error:#}"));
            }
        }
        None => report.error(&field, "missing"),
    }
}
