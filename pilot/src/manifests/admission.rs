//! Whether an object may be written at all: what an API server asks before it stores one.
//!
//! In: an `AdmissionReview` (admission.k8s.io/v1) of an object. Out: the answer, by the checks that manifests of a folder
//! undergo; what depends on other objects is no reason to refuse one. No I/O.

use std::{path::Path, sync::Arc};

use serde_json::{Value, json};

use super::{Kind, Manifests, Problem, Severity, read_object};

/// What an API server shows of each warning.
const WARNING_BYTES: usize = 256;

/// An answer, and what it is counted as.
pub(crate) struct Reviewed {
    /// The `AdmissionReview` to send back.
    pub answer: Value,
    /// The kind, if it is one that is served.
    pub kind: Option<Kind>,
    /// Why the object is refused.
    pub refused: Option<String>,
}

/// Answers a review; nothing if it is none.
pub(crate) fn review(review: &Value, root_namespace: &str) -> Option<Reviewed> {
    let request = review.get("request")?;
    let uid = request["uid"].as_str()?;
    let text = |path: &str| request.pointer(path).and_then(Value::as_str).unwrap_or_default();
    let kind = Kind::named(text("/kind/group"), text("/kind/kind"));
    let is_written = matches!(text("/operation"), "CREATE" | "UPDATE");
    let problems = match kind {
        Some(kind) if is_written => problems(kind, &request["object"], root_namespace),
        Some(_) | None => Vec::new(),
    };
    let of = |severity| problems.iter().filter(move |problem| problem.severity == severity);
    let errors: Vec<_> = of(Severity::Error).map(sentence).collect();
    let mut response = json!({ "uid": uid, "allowed": errors.is_empty() });
    let refused = (!errors.is_empty()).then(|| errors.join("; "));
    if let Some(reason) = &refused {
        response["status"] = json!({ "code": 422, "reason": "Invalid", "message": reason });
    }
    let warnings: Vec<_> = of(Severity::Warning).map(|one| shortened(sentence(one))).collect();
    if !warnings.is_empty() {
        response["warnings"] = json!(warnings);
    }
    let answer = json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "response": response,
    });
    Some(Reviewed { answer, kind, refused })
}

fn problems(kind: Kind, object: &Value, root_namespace: &str) -> Vec<Problem> {
    let mut problems = Vec::new();
    let place: Arc<Path> = Path::new("admission").into();
    if let Some(resource) = read_object(kind, object.clone(), &place, &mut problems) {
        problems.extend(Manifests::gather([&resource]).0.check_root(root_namespace));
    }
    problems
}

/// Object, field, reason.
fn sentence(problem: &Problem) -> String {
    let parts = [&problem.object, &problem.field, &problem.reason];
    let parts: Vec<&str> =
        parts.into_iter().map(|part| &**part).filter(|part| !part.is_empty()).collect();
    parts.join(": ")
}

fn shortened(mut text: String) -> String {
    let mut end = text.len().min(WARNING_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(operation: &str, group: &str, kind: &str, spec: &Value) -> Value {
        json!({"request": {
            "uid": "u-1",
            "operation": operation,
            "kind": {"group": group, "version": "v1", "kind": kind},
            "object": {
                "apiVersion": format!("{group}/v1"),
                "kind": kind,
                "metadata": {"name": "web", "namespace": "shop", "managedFields": [{"manager": "x"}]},
                "spec": spec,
            },
        }})
    }

    fn check(operation: &str, group: &str, kind: &str, spec: Value, refusal: Option<&str>) {
        let found = review(&asked(operation, group, kind, &spec), "istio-system").unwrap();
        assert_eq!(found.answer["response"]["uid"], "u-1");
        assert_eq!(found.answer["response"]["allowed"], refusal.is_none(), "{kind} {spec}");
        let message = found.answer["response"]["status"]["message"].as_str();
        assert_eq!(message, found.refused.as_deref());
        match (message, refusal) {
            (Some(found), Some(expected)) => assert!(found.starts_with(expected), "{found}"),
            (found, expected) => assert_eq!(found, expected),
        }
    }

    #[test]
    fn an_object_that_pilot_would_refuse_is_not_stored() {
        let security = "security.istio.io";
        let policy = "AuthorizationPolicy";
        let bad = || json!({"action": "ALLOWED"});
        check("CREATE", security, policy, json!({"action": "DENY"}), None);
        let refusal = Some("AuthorizationPolicy shop/web: spec.action: ");
        check("CREATE", security, policy, bad(), refusal);
        check("UPDATE", security, policy, bad(), refusal);
        check("DELETE", security, policy, bad(), None);
        check("CREATE", "example.com", policy, bad(), None);
        check(
            "CREATE",
            security,
            policy,
            json!({"tomorrow": 1}),
            Some("AuthorizationPolicy shop/web: spec.tomorrow: "),
        );
        check(
            "CREATE",
            "networking.istio.io",
            "VirtualService",
            json!({"hosts": ["web"], "http": [{"route": [{"destination": {"host": "web"}, "weight": -1}]}]}),
            Some("VirtualService shop/web: spec.http[0].route[0]"),
        );
    }

    #[test]
    fn what_is_no_review_gets_no_answer() {
        for text in [json!({}), json!([]), json!({"request": {}}), json!({"request": {"uid": 1}})] {
            assert!(review(&text, "istio-system").is_none(), "{text}");
        }
    }
}
