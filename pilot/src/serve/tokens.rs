//! The tokens by which nodes prove who they are.
//!
//! In: a node's name, or what a caller showed. Out: its token, or the node it belongs to. A token is
//! `<node>:<256 random bits in hexadecimal>` and lies in `nodes/<node>.token` of the data folder, whole or not at all;
//! whoever removes the file revokes the token.

use std::{
    fs, io,
    io::Write,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
};

use tonic::{Status, metadata::MetadataMap};

use crate::manifests::is_dns_name;

/// The tokens in a data folder.
#[derive(Clone, Debug)]
pub struct NodeTokens {
    folder: PathBuf,
}

/// What a caller showed, to be checked as often as it matters: its file may be removed at any time.
pub(crate) struct ShownToken {
    tokens: NodeTokens,
    token: String,
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
    /// What is in the file proves nothing.
    #[error("{path} holds no token of node {node}: remove it to have one made")]
    Damaged {
        /// Which.
        path: PathBuf,
        /// Whose token it should be.
        node: String,
    },
    /// There are no random numbers to be had.
    #[error("the system gives no random numbers")]
    Random,
}

/// Why a caller is not believed.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Refused {
    /// No `authorization` header.
    #[error(
        "no token: send `authorization: Bearer` and the node's token (pilot node-token), or a service account's"
    )]
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

    /// The token of a node, made if it has none. Of two who make one at once, both get the first's.
    ///
    /// # Errors
    /// [`TokenError`] if it cannot be kept.
    pub fn issue(&self, node: &str) -> Result<String, TokenError> {
        if !is_dns_name(node) {
            return Err(TokenError::Name { node: node.to_owned() });
        }
        let path = self.path(node);
        let failed = |source| TokenError::File { path: path.clone(), source };
        let kept = match fs::read_to_string(&path) {
            Ok(kept) => kept,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let token = format!("{node}:{}", secret()?);
                self.create(&path, &token).map_err(failed)?;
                // Not what was made: another may have been faster.
                fs::read_to_string(&path).map_err(failed)?
            }
            Err(error) => return Err(failed(error)),
        };
        match kept.trim().split_once(':') {
            Some((of, secret)) if of == node && !secret.is_empty() => Ok(kept.trim().to_owned()),
            Some(_) | None => Err(TokenError::Damaged { path, node: node.to_owned() }),
        }
    }

    /// Writes a file that is not there yet: whole, on disk, and under its name last. One that came first stays.
    fn create(&self, path: &Path, token: &str) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        let mut file = tempfile::Builder::new()
            .permissions(fs::Permissions::from_mode(0o600))
            .tempfile_in(&self.folder)?;
        file.write_all(token.as_bytes())?;
        file.as_file().sync_all()?;
        match file.persist_noclobber(path) {
            Ok(_) => {}
            Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error.error),
        }
        fs::File::open(&self.folder)?.sync_all()
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

    /// What a call shows, not yet believed.
    pub(crate) fn shown(&self, headers: &MetadataMap) -> Result<ShownToken, Refused> {
        let shown = headers.get("authorization").ok_or(Refused::Missing)?;
        let shown = shown.to_str().map_err(|_| Refused::Malformed)?;
        let scheme = shown.get(..7).filter(|scheme| scheme.eq_ignore_ascii_case("bearer "));
        let token = scheme.map(|_| shown[7..].trim()).ok_or(Refused::Malformed)?;
        Ok(ShownToken { tokens: self.clone(), token: token.to_owned() })
    }

    fn path(&self, node: &str) -> PathBuf {
        self.folder.join(format!("{node}.token"))
    }
}

impl ShownToken {
    /// Whether it has the form of a node's token. No other token has a colon (RFC 7519 §3).
    pub(crate) fn is_of_node(&self) -> bool {
        self.token.contains(':')
    }

    /// The token, for whoever can say whose it is.
    pub(crate) fn text(&self) -> &str {
        &self.token
    }

    /// The node whose token it is at this moment.
    pub(crate) fn node(&self) -> Result<String, Status> {
        Ok(self.tokens.node_of(&self.token)?)
    }
}

impl From<Refused> for Status {
    fn from(refused: Refused) -> Self {
        metrics::counter!("citadel_server_authentication_failure_count").increment(1);
        Self::unauthenticated(refused.to_string())
    }
}

/// 256 random bits in hexadecimal.
fn secret() -> Result<String, TokenError> {
    let mut random = [0; 32];
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.secure_random.fill(&mut random).map_err(|_| TokenError::Random)?;
    Ok(random.iter().map(|byte| format!("{byte:02x}")).collect())
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
    fn all_who_ask_at_once_get_one_token() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = NodeTokens::new(dir.path());
        let given: Vec<String> = std::thread::scope(|scope| {
            let calls: Vec<_> =
                (0..8).map(|_| scope.spawn(|| tokens.issue("a").unwrap())).collect();
            calls.into_iter().map(|call| call.join().unwrap()).collect()
        });
        assert!(given.iter().all(|token| *token == given[0]), "{given:?}");
        assert_eq!(fs::read_dir(dir.path().join("nodes")).unwrap().count(), 1);
    }

    #[test]
    fn a_file_that_holds_no_token_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = NodeTokens::new(dir.path());
        tokens.issue("a").unwrap();
        let path = dir.path().join("nodes/a.token");
        for content in ["", "\n", "a", "a:", "b:00"] {
            fs::write(&path, content).unwrap();
            let expected =
                format!("{} holds no token of node a: remove it to have one made", path.display());
            assert_eq!(tokens.issue("a").unwrap_err().to_string(), expected, "{content}");
        }
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
            let shown = tokens.shown(&headers).map_err(|refused| refused.to_string())?;
            shown.node().map_err(|status| status.message().to_owned())
        };
        assert_eq!(call(Some(format!("Bearer {token}"))), Ok("a".to_owned()));
        assert_eq!(call(Some(format!("bearer {token}"))), Ok("a".to_owned()));
        assert_eq!(call(None), Err(Refused::Missing.to_string()));
        assert_eq!(call(Some(format!("Basic {token}"))), Err(Refused::Malformed.to_string()));
    }
}
