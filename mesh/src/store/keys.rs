//! Names made of a namespace and something in it, as xDS writes them.

use std::sync::Arc;

/// `<namespace>/<name>`: no namespace contains a slash, so no two pairs have one key.
pub(super) fn namespaced(namespace: &str, name: &str) -> Arc<str> {
    let mut key = String::with_capacity(namespace.len() + 1 + name.len());
    key.push_str(namespace);
    key.push('/');
    key.push_str(name);
    key.into()
}
