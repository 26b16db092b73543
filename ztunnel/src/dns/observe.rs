//! What is counted and logged of queries.
//!
//! In: queries, answers and failures. Out: `istio_dns_*`, and lines of target `dns` at level debug. Handles are resolved
//! once for each kind of query of a pod.

use std::{cell::RefCell, collections::HashMap, sync::Arc, time::Duration};

use mesh::store::Workload;
use metrics::{Counter, Histogram, Label, SharedString, counter, histogram};

use super::wire::{Request, Transport};

/// Kinds of queries whose handles are kept for a pod; beyond, they are looked up in the registry.
const KEPT_KINDS: usize = 64;

/// The handles of one pod.
#[derive(Default)]
pub(super) struct Observer {
    /// The record whose labels they have.
    workload: RefCell<Option<Arc<Workload>>>,
    kinds: RefCell<HashMap<(String, Transport), Handles>>,
}

/// The handles of one kind of query.
#[derive(Clone)]
struct Handles {
    requests: Counter,
    upstream_requests: Counter,
    upstream_failures: Counter,
    upstream_duration: Histogram,
}

impl Observer {
    /// A query came.
    pub(super) fn query(&self, request: &Request, workload: Option<&Arc<Workload>>) {
        self.handles(request, workload).requests.increment(1);
    }

    /// A query was passed on, and answered or not.
    pub(super) fn forwarded(
        &self,
        request: &Request,
        workload: Option<&Arc<Workload>>,
        took: Duration,
        answered: bool,
    ) {
        let handles = self.handles(request, workload);
        handles.upstream_requests.increment(1);
        handles.upstream_duration.record(took.as_secs_f64());
        if !answered {
            handles.upstream_failures.increment(1);
        }
    }

    fn handles(&self, request: &Request, workload: Option<&Arc<Workload>>) -> Handles {
        let mut labelled = self.workload.borrow_mut();
        let mut kinds = self.kinds.borrow_mut();
        let same = match (&*labelled, workload) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        if !same || kinds.len() >= KEPT_KINDS {
            kinds.clear();
            *labelled = workload.cloned();
        }
        let key = (request.kind(), request.transport());
        if let Some(known) = kinds.get(&key) {
            return known.clone();
        }
        let handles = Handles::new(&key.0, key.1, workload.map(|workload| &**workload));
        kinds.insert(key, handles.clone());
        handles
    }
}

impl Handles {
    fn new(kind: &str, transport: Transport, workload: Option<&Workload>) -> Self {
        let known = |value: Option<&Arc<str>>| match value.filter(|value| !value.is_empty()) {
            Some(value) => SharedString::from(value.clone()),
            None => "unknown".into(),
        };
        let labels = vec![
            Label::new("request_query_type", kind.to_owned()),
            Label::new("request_protocol", transport.as_str()),
            Label::new(
                "source_canonical_service",
                known(workload.map(|workload| &workload.canonical_name)),
            ),
            Label::new(
                "source_canonical_revision",
                known(workload.map(|workload| &workload.canonical_revision)),
            ),
        ];
        Self {
            requests: counter!("istio_dns_requests_total", labels.clone()),
            upstream_requests: counter!("istio_dns_upstream_requests_total", labels.clone()),
            upstream_failures: counter!("istio_dns_upstream_failures_total", labels.clone()),
            upstream_duration: histogram!("istio_dns_upstream_request_duration_seconds", labels),
        }
    }
}

impl Transport {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
        }
    }
}

/// One query's line.
pub(super) fn log(
    request: &Request,
    workload: Option<&Workload>,
    result: &str,
    endpoints: Option<usize>,
) {
    // Its fields are made for those who read them.
    if !tracing::enabled!(target: "dns", tracing::Level::DEBUG) {
        return;
    }
    tracing::debug!(
        target: "dns",
        {
            src.workload = workload.map(|workload| &*workload.name),
            src.namespace = workload.map(|workload| &*workload.namespace),
            query = request.kind(),
            domain = request.name(),
            result,
            endpoints,
        },
        "query"
    );
}
