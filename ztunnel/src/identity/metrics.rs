//! How old certificates are and how the asking for them goes, as metrics.
//!
//! In: [`Identities`], when metrics are scraped. Out: gauges and counters.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
    time::SystemTime,
};

use mesh::identity::{CertificateState, Identities};
use metrics::{counter, gauge};

/// Identities that have a series of their own. Those past it, by name, are in the dump.
const LABELLED: usize = 256;

/// Identities that were given a series and are not shown any more have their value taken away: a gauge cannot be.
#[derive(Default)]
pub struct CertificateMetrics {
    shown: Mutex<BTreeSet<String>>,
}

impl CertificateMetrics {
    /// Brings the metrics up to date.
    pub(crate) fn update(&self, identities: &Identities) {
        let mut without = 0_u32;
        let mut shown = BTreeSet::new();
        for (who, state) in identities.states() {
            match state {
                CertificateState::Available { credential, .. } if shown.len() < LABELLED => {
                    let name = who.to_string();
                    let expiry =
                        gauge!("aquifer_certificate_expiry_seconds", "identity" => name.clone());
                    expiry.set(since_epoch(credential.not_after()));
                    shown.insert(name);
                }
                CertificateState::Available { .. } => {}
                CertificateState::Initializing | CertificateState::Unavailable { .. } => {
                    without += 1;
                }
            }
        }
        let mut before = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        for gone in before.difference(&shown) {
            gauge!("aquifer_certificate_expiry_seconds", "identity" => gone.clone()).set(0.0);
        }
        *before = shown;
        gauge!("aquifer_certificates_missing").set(without);
        let report = identities.report();
        counter!("aquifer_certificates_issued_total").absolute(report.issued);
        for (kind, count) in report.failed {
            counter!("aquifer_certificate_failures_total", "reason" => kind).absolute(count);
        }
        if let Some(at) = report.last_issued {
            gauge!("aquifer_certificate_last_issued_seconds").set(since_epoch(at));
        }
    }
}

fn since_epoch(moment: SystemTime) -> f64 {
    moment.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
