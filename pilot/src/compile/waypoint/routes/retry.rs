//! When a request is tried again.
//!
//! In: a rule's retries, or those of the mesh for rules that say nothing. Out: Envoy's `RetryPolicy`, if there are to be
//! any.

use proto::envoy::envoy::{
    config::route::v3::{
        RetryPolicy,
        retry_policy::{
            RetryBackOff, RetryHostPredicate, RetryPriority, retry_host_predicate, retry_priority,
        },
    },
    extensions::retry::{
        host::previous_hosts::v3::PreviousHostsPredicate,
        priority::previous_priorities::v3::PreviousPrioritiesConfig,
    },
};

use super::wire::{any, duration, number};
use crate::manifests::networking::Retries;

const DEFAULT_ATTEMPTS: u32 = 2;
const DEFAULT_CONDITIONS: &str =
    "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes";
const STATUS_CODES: &str = "retriable-status-codes";
/// How often another host is looked for, before one that was tried is taken again.
const HOST_ATTEMPTS: i64 = 5;
/// After how many attempts another locality is tried.
const ATTEMPTS_PER_LOCALITY: i32 = 2;

/// Whether attempts may land on one host.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Balancing {
    /// A retry shall find another host.
    Free,
    /// A request has its host, by the hash of something in it.
    Hashed,
}

/// Nothing, if requests are not to be tried again.
pub(super) fn policy(of: Option<&Retries>, balancing: Balancing) -> Option<RetryPolicy> {
    let standard = RetryPolicy {
        retry_on: DEFAULT_CONDITIONS.to_owned(),
        num_retries: number(DEFAULT_ATTEMPTS),
        retry_host_predicate: predicates(balancing == Balancing::Free),
        host_selection_retry_max_attempts: HOST_ATTEMPTS,
        ..RetryPolicy::default()
    };
    let Some(of) = of else { return Some(standard) };
    let attempts = u32::try_from(of.attempts).ok().filter(|attempts| *attempts > 0)?;
    let (retry_on, retriable_status_codes) = conditions(&of.retry_on);
    Some(RetryPolicy {
        retry_on,
        retriable_status_codes,
        num_retries: number(attempts),
        per_try_timeout: of.per_try_timeout.map(duration),
        retry_host_predicate: match of.retry_ignore_previous_hosts {
            Some(ignore) => predicates(ignore),
            None => standard.retry_host_predicate.clone(),
        },
        retry_priority: of.retry_remote_localities.unwrap_or_default().then(other_localities),
        retry_back_off: of.backoff.map(|backoff| RetryBackOff {
            base_interval: Some(duration(backoff)),
            max_interval: None,
        }),
        ..standard
    })
}

/// Numbers are status codes.
fn conditions(text: &str) -> (String, Vec<u32>) {
    if text.is_empty() {
        return (DEFAULT_CONDITIONS.to_owned(), Vec::new());
    }
    let mut names = Vec::new();
    let mut codes = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        match part.parse() {
            Ok(code) => codes.push(code),
            Err(_) => names.push(part),
        }
    }
    if !codes.is_empty() && !names.contains(&STATUS_CODES) {
        names.push(STATUS_CODES);
    }
    (names.join(","), codes)
}

fn predicates(other_host: bool) -> Vec<RetryHostPredicate> {
    let predicate = || RetryHostPredicate {
        name: "envoy.retry_host_predicates.previous_hosts".to_owned(),
        config_type: Some(retry_host_predicate::ConfigType::TypedConfig(any(
            &PreviousHostsPredicate {},
        ))),
    };
    other_host.then(predicate).into_iter().collect()
}

fn other_localities() -> RetryPriority {
    let config = PreviousPrioritiesConfig { update_frequency: ATTEMPTS_PER_LOCALITY };
    RetryPriority {
        name: "envoy.retry_priorities.previous_priorities".to_owned(),
        config_type: Some(retry_priority::ConfigType::TypedConfig(any(&config))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_codes_are_split_from_conditions() {
        for (text, names, codes) in [
            ("", DEFAULT_CONDITIONS, vec![]),
            ("5xx", "5xx", vec![]),
            ("503", "retriable-status-codes", vec![503]),
            ("reset, 503,409", "reset,retriable-status-codes", vec![503, 409]),
            ("retriable-status-codes,500", "retriable-status-codes", vec![500]),
        ] {
            assert_eq!(conditions(text), (names.to_owned(), codes), "{text}");
        }
    }

    #[test]
    fn no_attempts_are_no_policy() {
        for attempts in [0, -1] {
            let none = Retries { attempts, ..Default::default() };
            assert_eq!(policy(Some(&none), Balancing::Free), None);
        }
    }

    #[test]
    fn a_hashed_request_is_retried_where_it_was() {
        let default = |balancing| policy(None, balancing).unwrap().retry_host_predicate.len();
        assert_eq!(default(Balancing::Free), 1);
        assert_eq!(default(Balancing::Hashed), 0);
        let elsewhere =
            Retries { attempts: 1, retry_ignore_previous_hosts: Some(true), ..Default::default() };
        let policy = policy(Some(&elsewhere), Balancing::Hashed).unwrap();
        assert_eq!(policy.retry_host_predicate.len(), 1);
    }
}
