//! Limits for connections, as annotations say them.
//!
//! In: the annotations of a Namespace, Pod or Service. Out: [`Limits`], with what is wrong reported. What the daemons do
//! with them is theirs.

use std::{fmt::Display, str::FromStr};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use mesh::store::Limits;

use super::document::Report;

const MAX_CONNECTIONS: &str = "aquifer.io/max-connections";
const CONNECTION_RATE: &str = "aquifer.io/connection-rate";

/// Which limits a kind of resource may set.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum LimitsOf {
    /// Of the pods in it: how fast they connect.
    Namespace,
    /// Of itself, as destination and as source.
    Pod,
    /// Of itself, as destination.
    Service,
}

/// Reads the annotations. One that cannot be used is an error, and one that has no effect here a warning.
pub(crate) fn limits(metadata: &ObjectMeta, of: LimitsOf, report: &mut Report<'_>) -> Limits {
    let (is_destination, is_source) = match of {
        LimitsOf::Namespace => (false, true),
        LimitsOf::Pod => (true, true),
        LimitsOf::Service => (true, false),
    };
    Limits {
        max_connections: annotation(metadata, MAX_CONNECTIONS, is_destination, report),
        connection_rate: annotation(metadata, CONNECTION_RATE, is_source, report),
    }
}

fn annotation<T: FromStr<Err: Display>>(
    metadata: &ObjectMeta,
    key: &str,
    has_effect: bool,
    report: &mut Report<'_>,
) -> Option<T> {
    let value = metadata.annotations.as_ref()?.get(key)?;
    if !has_effect {
        report.warning("metadata.annotations", format!("{key}: has no effect here"));
        return None;
    }
    match value.parse() {
        Ok(limit) => Some(limit),
        Err(reason) => {
            report.error("metadata.annotations", format!("{key}: `{value}`: {reason}"));
            None
        }
    }
}
