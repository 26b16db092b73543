//! Who may send what to a host.
//!
//! In: the policies and extensions attached to a waypoint or to the host. Out: the filters that decide, in the order
//! in which they stand in a chain.

use std::collections::BTreeSet;

use proto::envoy::envoy::{
    config::listener::v3::Filter,
    extensions::filters::network::http_connection_manager::v3::HttpFilter,
};

use super::Context;
use crate::compile::registry::{Host, Port};

/// Filters of requests by their place in a chain.
#[derive(Debug, Default)]
pub(crate) struct Filters {
    /// Before all that decides: CUSTOM policies, extensions, tokens, extensions, policies.
    pub before: Vec<HttpFilter>,
    /// After what routes ask for (faults, CORS): extensions that count, and those without a place.
    pub after: Vec<HttpFilter>,
}

/// For requests to one port of a host, or to pods directly.
pub(crate) fn http_filters(
    _context: &Context<'_>,
    _host: Option<&Host>,
    _port: Option<&Port>,
) -> Filters {
    Filters::default()
}

/// For connections to one port of a host, or to pods directly.
pub(crate) fn network_filters(
    _context: &Context<'_>,
    _host: Option<&Host>,
    _port: Option<&Port>,
) -> Vec<Filter> {
    Vec::new()
}

/// The services that these filters ask: namespace and host name.
pub(crate) fn referenced(_context: &Context<'_>) -> BTreeSet<(String, String)> {
    BTreeSet::new()
}
