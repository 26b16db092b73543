//! The tokens by which nodes prove who they are.
//!
//! In: a node's name, or what a caller showed. Out: its token, or the node it belongs to. A token is
//! `<node>:<256 random bits in hexadecimal>` and lies in `nodes/<node>.token` of the data folder; whoever removes the
//! file revokes the token.

use std::{
    fs, io,
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use tonic::{Status, metadata::MetadataMap};

use crate::manifests::is_dns_name;

/// The tokens in a data folder.
#[derive(Clone, Debug)]
pub struct NodeTokens {
    folder: PathBuf,
}

/// Why a node has no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// It would become a file's name.
    #[error("`{node}` is no node name")]
    Name {
        /// As given.
        node: String,
    },
    /// The file cannot be read or written.
    #[error("keeping the token in {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// There are no random numbers to be had.
    #[error("the system gives no random numbers")]
    Random,
}

/// Why a caller is not believed.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Refused {
    /// No `authorization` header.
    #[error("no token: send `authorization: Bearer` and the node's token (pilot node-token)")]
    Missing,
    /// Something that is no token of ours.
    #[error("what stands in `authorization` is no node token")]
    Malformed,
    /// The node has no token, or another one.
    #[error("the token shown for node {node} is not valid")]
    Wrong {
        /// The node it was shown for.
        node: String,
    },
}

impl NodeTokens {
    /// The tokens below pilot's data folder.
    pub fn new(data: &Path) -> Self {
        Self { folder: data.join("nodes") }
    }

    /// The token of a node, made if it has none.
    ///
    /// # Errors
    /// [`TokenError`] if it cannot be kept.
    pub fn issue(&self, node: &str) -> Result<String, TokenError> {
        if !is_dns_name(node) {
            return Err(TokenError::Name { node: node.to_owned() });
        }
        let path = self.path(node);
        let failed = |source| TokenError::File { path: path.clone(), source };
        match fs::read_to_string(&path) {
            Ok(token) => return Ok(token.trim().to_owned()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        let mut random = [0; 32];
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        provider.secure_random.fill(&mut random).map_err(|_| TokenError::Random)?;
        let hex: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        let token = format!("{node}:{hex}");
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder).map_err(failed)?;
        // Of two who make one at once, the second must not replace what the first has handed out.
        let written = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let written = written.and_then(|mut file| {
            file.write_all(token.as_bytes())?;
            file.sync_all()
        });
        written.map_err(failed)?;
        Ok(token)
    }

    /// The node whose token this is.
    ///
    /// # Errors
    /// [`Refused`] if it is nobody's.
    pub fn node_of(&self, token: &str) -> Result<String, Refused> {
        let (node, secret) = token.split_once(':').ok_or(Refused::Malformed)?;
        // The name becomes part of a path: nothing else may get there.
        if !is_dns_name(node) || secret.is_empty() {
            return Err(Refused::Malformed);
        }
        let kept = fs::read_to_string(self.path(node)).unwrap_or_default();
        if equal(kept.trim().as_bytes(), token.as_bytes()) {
            Ok(node.to_owned())
        } else {
            Err(Refused::Wrong { node: node.to_owned() })
        }
    }

    /// The node that makes a call.
    pub(crate) fn authenticate(&self, headers: &MetadataMap) -> Result<String, Status> {
        let shown = headers.get("authorization").ok_or(Refused::Missing)?;
        let shown = shown.to_str().map_err(|_| Refused::Malformed)?;
        let scheme = shown.get(..7).filter(|scheme| scheme.eq_ignore_ascii_case("bearer "));
        let token = scheme.map(|_| shown[7..].trim()).ok_or(Refused::Malformed)?;
        Ok(self.node_of(token)?)
    }

    fn path(&self, node: &str) -> PathBuf {
        self.folder.join(format!("{node}.token"))
    }
}

impl From<Refused> for Status {
    fn from(refused: Refused) -> Self {
        metrics::counter!("citadel_server_authentication_failure_count").increment(1);
        Self::unauthenticated(refused.to_string())
    }
}

/// Takes as long for a wrong last byte as for a wrong first one.
fn equal(one: &[u8], other: &[u8]) -> bool {
    let differing = one.iter().zip(other).fold(0, |all, (a, b)| all | (a ^ b));
    one.len() == other.len() && differing == 0
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_token_proves_its_node_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = NodeTokens::new(dir.path());
        let (a, b) = (tokens.issue("node-a").unwrap(), tokens.issue("node-b.example").unwrap());
        assert_eq!(tokens.issue("node-a").unwrap(), a);
        assert_eq!(tokens.node_of(&a).as_deref(), Ok("node-a"));
        assert_eq!(tokens.node_of(&b).as_deref(), Ok("node-b.example"));
        let secret = a.split_once(':').unwrap().1;
        let wrong = |node: &str| Err(Refused::Wrong { node: node.into() });
        for (shown, expected) in [
            (format!("node-b.example:{secret}"), wrong("node-b.example")),
            (format!("node-c:{secret}"), wrong("node-c")),
            (a[..a.len() - 1].to_owned(), wrong("node-a")),
            (format!("{a}0"), wrong("node-a")),
            (format!("../nodes/node-a:{secret}"), Err(Refused::Malformed)),
            ("node-a:".to_owned(), Err(Refused::Malformed)),
            (secret.to_owned(), Err(Refused::Malformed)),
        ] {
            assert_eq!(tokens.node_of(&shown), expected, "{shown}");
        }
        fs::remove_file(dir.path().join("nodes/node-a.token")).unwrap();
        assert_eq!(tokens.node_of(&a), wrong("node-a"));
    }

    #[test]
    fn a_token_is_for_nobody_elses_eyes() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = NodeTokens::new(dir.path());
        tokens.issue("a").unwrap();
        let mode =
            |path: &str| fs::metadata(dir.path().join(path)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("nodes"), mode("nodes/a.token")), (0o700, 0o600));
        assert!(matches!(tokens.issue("../a"), Err(TokenError::Name { .. })));
    }

    #[test]
    fn a_call_without_a_bearer_token_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = NodeTokens::new(dir.path());
        let token = tokens.issue("a").unwrap();
        let call = |value: Option<String>| {
            let mut headers = MetadataMap::new();
            if let Some(value) = value {
                headers.insert("authorization", value.parse().unwrap());
            }
            tokens.authenticate(&headers).map_err(|status| status.message().to_owned())
        };
        assert_eq!(call(Some(format!("Bearer {token}"))), Ok("a".to_owned()));
        assert_eq!(call(Some(format!("bearer {token}"))), Ok("a".to_owned()));
        assert_eq!(call(None), Err(Refused::Missing.to_string()));
        assert_eq!(call(Some(format!("Basic {token}"))), Err(Refused::Malformed.to_string()));
    }
}
