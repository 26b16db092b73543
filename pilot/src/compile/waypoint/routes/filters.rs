//! What a route says to the filters before it: faults to inject, and who may ask from another origin.
//!
//! In: a rule. Out: `typed_per_filter_config`, by the filter's name.

use std::collections::HashMap;

use proto::{
    envoy::envoy::extensions::filters::{
        common::fault::v3::{FaultDelay, fault_delay::FaultDelaySecifier},
        http::{
            cors::v3::CorsPolicy as EnvoyCors,
            fault::v3::{FaultAbort, HttpFault, fault_abort::ErrorType},
        },
    },
    google::Any,
};

use super::wire::{always, any, duration, flag, hundredths, percent, string_match};
use crate::manifests::{
    grpc_code,
    networking::{Abort, CorsPolicy, Delay, Fault, HttpRule, StringMatch, UnmatchedPreflights},
};

const FAULT: &str = "envoy.filters.http.fault";
const CORS: &str = "envoy.filters.http.cors";

pub(super) fn of_rule(rule: &HttpRule) -> HashMap<String, Any> {
    let mut all = HashMap::new();
    if let Some(of) = &rule.fault {
        all.insert(FAULT.to_owned(), any(&fault(of)));
    }
    if let Some(of) = &rule.cors_policy {
        all.insert(CORS.to_owned(), any(&cors(of)));
    }
    all
}

fn fault(of: &Fault) -> HttpFault {
    HttpFault {
        delay: of.delay.as_ref().map(delay),
        abort: of.abort.as_ref().map(abort),
        ..HttpFault::default()
    }
}

fn delay(of: &Delay) -> FaultDelay {
    let percentage = match of.percentage {
        Some(percentage) => percent(percentage.value),
        None => hundredths(u32::try_from(of.percent).unwrap_or_default()),
    };
    FaultDelay {
        percentage: Some(percentage),
        fault_delay_secifier: of.fixed_delay.map(duration).map(FaultDelaySecifier::FixedDelay),
    }
}

fn abort(of: &Abort) -> FaultAbort {
    let http = of.http_status.and_then(|status| status.try_into().ok()).map(ErrorType::HttpStatus);
    let grpc = of.grpc_status.as_deref().and_then(grpc_code).map(ErrorType::GrpcStatus);
    FaultAbort {
        percentage: of.percentage.map(|percentage| percent(percentage.value)),
        error_type: http.or(grpc),
        ..FaultAbort::default()
    }
}

fn cors(of: &CorsPolicy) -> EnvoyCors {
    let exact = |origin: &String| StringMatch { exact: Some(origin.clone()), ..Default::default() };
    // The older list counts only where the newer one is not used.
    let older: Vec<StringMatch> = of.allow_origin.iter().map(exact).collect();
    let origins = if of.allow_origins.is_empty() { &older } else { &of.allow_origins };
    EnvoyCors {
        allow_origin_string_match: origins.iter().filter_map(string_match).collect(),
        allow_methods: of.allow_methods.join(","),
        allow_headers: of.allow_headers.join(","),
        expose_headers: of.expose_headers.join(","),
        max_age: of.max_age.map(|age| age.0.as_secs().to_string()).unwrap_or_default(),
        allow_credentials: of.allow_credentials.and_then(flag),
        filter_enabled: always(hundredths(100)),
        forward_not_matching_preflights: flag(
            of.unmatched_preflights != UnmatchedPreflights::Ignore,
        ),
        ..EnvoyCors::default()
    }
}
