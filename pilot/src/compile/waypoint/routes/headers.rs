//! What a route does to headers.
//!
//! In: operations on requests and responses. Out: Envoy's lists. The host is no header like others: what is set as
//! `host` or `:authority` is the [`Operations::authority`].

use proto::envoy::envoy::config::core::v3::{
    HeaderValue, HeaderValueOption, header_value_option::HeaderAppendAction,
};

use crate::manifests::{
    is_authority,
    networking::{HeaderOperations, Headers},
};

/// Operations as Envoy takes them: within one level, it removes before it adds.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Operations {
    pub(super) request_add: Vec<HeaderValueOption>,
    pub(super) request_remove: Vec<String>,
    pub(super) response_add: Vec<HeaderValueOption>,
    pub(super) response_remove: Vec<String>,
    /// The host the request shall have.
    pub(super) authority: Option<String>,
}

pub(super) fn operations(of: Option<&Headers>) -> Operations {
    let request = of.and_then(|headers| headers.request.as_ref());
    let response = of.and_then(|headers| headers.response.as_ref());
    Operations {
        request_add: additions(request),
        request_remove: removals(request),
        response_add: additions(response),
        response_remove: removals(response),
        authority: request.and_then(authority),
    }
}

/// Other pseudo-headers cannot be changed.
fn is_internal(name: &str) -> bool {
    name.starts_with(':') || is_authority(name)
}

fn additions(of: Option<&HeaderOperations>) -> Vec<HeaderValueOption> {
    let Some(of) = of else { return Vec::new() };
    let set = of.set.iter().map(|entry| (entry, HeaderAppendAction::OverwriteIfExistsOrAdd));
    let add = of.add.iter().map(|entry| (entry, HeaderAppendAction::AppendIfExistsOrAdd));
    set.chain(add)
        .filter(|((name, _), _)| !is_internal(name))
        .map(|((name, value), action)| HeaderValueOption {
            header: Some(HeaderValue {
                key: name.clone(),
                value: value.clone(),
                raw_value: Vec::new(),
            }),
            append_action: action.into(),
            ..HeaderValueOption::default()
        })
        .collect()
}

fn removals(of: Option<&HeaderOperations>) -> Vec<String> {
    let names = of.into_iter().flat_map(|of| &of.remove);
    names.filter(|name| !is_internal(name)).cloned().collect()
}

fn authority(of: &HeaderOperations) -> Option<String> {
    let mut all = of.set.iter().chain(&of.add);
    all.find(|(name, _)| is_authority(name)).map(|(_, value)| value.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_rewritten_and_other_pseudo_headers_are_left_alone() {
        let pairs = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        let request = HeaderOperations {
            set: pairs(&[(":path", "/x"), ("x-b", "2"), ("x-a", "1")]),
            add: pairs(&[("Host", "a.example.com"), ("x-c", "3")]),
            remove: vec![":method".into(), "x-d".into()],
        };
        let found = operations(Some(&Headers { request: Some(request), response: None }));
        let added: Vec<_> = found
            .request_add
            .iter()
            .map(|one| (one.header.as_ref().unwrap().key.as_str(), one.append_action))
            .collect();
        assert_eq!(added, [("x-a", 2), ("x-b", 2), ("x-c", 0)]);
        assert_eq!(found.request_remove, ["x-d"]);
        assert_eq!(found.authority.as_deref(), Some("a.example.com"));
    }
}
