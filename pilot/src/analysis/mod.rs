//! Looks for what is valid and yet not what was meant.
//!
//! In: [`Manifests`] and the mesh's settings. Out: [`Finding`]s, each with a [`Code`] that `docs/codes.md` explains, the
//! object, the field, the reason and what helps. No I/O, no clock; equal input gives equal findings in the same order.
//!
//! Where the input has no pod (or no Secret, no ServiceAccount) at all, it is taken not to hold such objects, and
//! nothing is said of those that are missing: what users keep in a repository has none.

mod attached;
mod code;
mod connections;
mod gateway_routes;
mod hosts;
mod identities;
mod layer4;
mod mtls;
mod objects;
mod references;
mod routes;
mod secrets;
mod shadow;
mod view;
mod virtual_services;
mod waypoints;

use std::fmt;

use serde::Serialize;

use crate::{
    compile::MeshConfig,
    manifests::{self, Manifests, Meta, Place, Problem},
};
use view::View;

pub use code::{Code, Severity};

/// One thing that was found.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Finding {
    /// Where the object stands.
    pub place: Place,
    /// What it is, such as `Pod shop/web`; empty if it was not reached.
    pub object: String,
    /// Which field, such as `spec.ports[0].port`; empty if the whole object is meant.
    pub field: String,
    /// What was found.
    pub code: Code,
    /// What is the matter.
    pub reason: String,
}

/// As programs read it.
#[derive(Serialize)]
struct Written<'a> {
    code: &'static str,
    severity: String,
    kind: &'a str,
    namespace: &'a str,
    name: &'a str,
    place: String,
    field: &'a str,
    reason: &'a str,
    remedy: &'static str,
}

impl Finding {
    /// Kind, namespace and name of the object; empty where it has none.
    pub fn identity(&self) -> (&str, &str, &str) {
        let (kind, name) = self.object.split_once(' ').unwrap_or(("", &self.object));
        let (namespace, name) = name.split_once('/').unwrap_or(("", name));
        (kind, namespace, name)
    }

    /// As JSON.
    pub fn json(&self) -> serde_json::Value {
        let (kind, namespace, name) = self.identity();
        let written = Written {
            code: self.code.id(),
            severity: self.code.severity().to_string(),
            kind,
            namespace,
            name,
            place: self.place.to_string(),
            field: &self.field,
            reason: &self.reason,
            remedy: self.code.remedy(),
        };
        serde_json::json!(written)
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} {}: ", self.place, self.code.severity(), self.code.id())?;
        for part in [&self.object, &self.field] {
            if !part.is_empty() {
                write!(f, "{part}: ")?;
            }
        }
        f.write_str(&self.reason)
    }
}

/// What the parts of the analysis find.
#[derive(Debug, Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, code: Code, meta: &Meta, field: &str, reason: impl Into<String>) {
        self.0.push(Finding {
            place: meta.place.clone(),
            object: meta.title(),
            field: field.into(),
            code,
            reason: reason.into(),
        });
    }
}

/// Everything that is found, sorted by where it stands.
pub fn analyze(manifests: &Manifests, config: &MeshConfig) -> Vec<Finding> {
    let view = View::of(manifests, config);
    let mut findings = Findings::default();
    for part in [
        references::find,
        secrets::find,
        hosts::find,
        layer4::find,
        attached::find,
        identities::find,
        virtual_services::find,
        gateway_routes::find,
        connections::find,
        mtls::find,
        waypoints::find,
        objects::find,
    ] {
        part(&view, &mut findings);
    }
    findings.0.sort();
    findings.0.dedup();
    findings.0
}

/// Findings with the problems of reading the same input. A warning about a field of which a finding tells more is left
/// out.
pub fn with_problems(mut findings: Vec<Finding>, problems: &[Problem]) -> Vec<Finding> {
    let known = |problem: &Problem| {
        problem.severity == manifests::Severity::Warning
            && findings.iter().any(|one| one.object == problem.object && one.field == problem.field)
    };
    let problems: Vec<_> = problems.iter().filter(|problem| !known(problem)).collect();
    findings.extend(problems.into_iter().map(|problem| Finding {
        place: problem.place.clone(),
        object: problem.object.clone(),
        field: problem.field.clone(),
        code: match problem.severity {
            manifests::Severity::Error => Code::Refused,
            manifests::Severity::Warning => Code::Ignored,
        },
        reason: problem.reason.clone(),
    }));
    findings.sort();
    findings
}

#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod tests;
