//! A certificate, its key and its roots in three files: the identity of a host that no authority serves.
//!
//! In: three PEM files. Out: one identity's chain after the same checks as for an authority's, or the [`FilesError`] that
//! says which file is wrong. When they are read is the owner's business. The key stays in this module.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use rustls::sign::SigningKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use super::{ChainError, PeerError, Spiffe, chain::IssuedChain, peer::Leaf, tls};

/// What ends a certificate in PEM (RFC 7468 §2).
const END: &str = "-----END CERTIFICATE-----";

/// Where an identity is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct IdentityFiles {
    /// The leaf, then the intermediates.
    pub certificate: PathBuf,
    /// The leaf's private key: PKCS#8, SEC1 or PKCS#1.
    pub key: PathBuf,
    /// What peers' chains must end in.
    pub roots: PathBuf,
}

/// Why the files are no identity.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// A file cannot be read.
    #[error("reading {}", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// The key cannot be used.
    #[error("{} holds no private key that TLS can use: {reason}", .path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// What the library found. It does not tell the key.
        reason: String,
    },
    /// The leaf says no name.
    #[error("the certificate in {} cannot be used", .path.display())]
    Leaf {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: PeerError,
    },
    /// The three do not stand together.
    #[error("the certificate in {} does not stand with its key and the roots in {}", .certificate.display(), .roots.display())]
    Chain {
        /// The certificate's file.
        certificate: PathBuf,
        /// The roots' file.
        roots: PathBuf,
        /// What is wrong.
        source: Box<ChainError>,
    },
    /// TLS did not take the material.
    #[error("building the TLS configuration of {who}")]
    Tls {
        /// Whose.
        who: Spiffe,
        /// What is wrong.
        source: Box<super::IssueError>,
    },
}

impl IdentityFiles {
    /// Reads the three files. The leaf's first name is whose identity it is.
    pub(super) fn read(&self, now: SystemTime) -> Result<(Spiffe, IssuedChain), FilesError> {
        let mut chain = blocks(&text(&self.certificate)?);
        let leaf = chain.first().cloned().unwrap_or_default();
        chain.push(text(&self.roots)?);
        let who = self.name_of(&leaf)?;
        let issued =
            IssuedChain::check(&chain, self.signing_key()?, &who, now).map_err(|source| {
                let (certificate, roots) = (self.certificate.clone(), self.roots.clone());
                FilesError::Chain { certificate, roots, source: Box::new(source) }
            })?;
        Ok((who, issued))
    }

    fn name_of(&self, leaf_pem: &str) -> Result<Spiffe, FilesError> {
        let unusable = |source| FilesError::Leaf { path: self.certificate.clone(), source };
        let der = CertificateDer::from_pem_slice(leaf_pem.as_bytes())
            .map_err(|error| unusable(PeerError::Malformed { reason: error.to_string() }))?;
        Leaf::parse(&der).map(|leaf| leaf.names.first).map_err(unusable)
    }

    fn signing_key(&self) -> Result<Arc<dyn SigningKey>, FilesError> {
        let unusable = |reason: String| FilesError::Key { path: self.key.clone(), reason };
        let der = PrivateKeyDer::from_pem_slice(text(&self.key)?.as_bytes())
            .map_err(|error| unusable(error.to_string()))?;
        let key = tls::provider().key_provider.load_private_key(der);
        key.map_err(|error| unusable(error.to_string()))
    }
}

fn text(path: &Path) -> Result<String, FilesError> {
    fs::read_to_string(path).map_err(|source| FilesError::Read { path: path.into(), source })
}

/// One text for each certificate, as an authority sends them.
fn blocks(pem: &str) -> Vec<String> {
    let blocks = pem.split_inclusive(END).filter(|block| block.contains(END));
    blocks.map(|block| block.trim().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::KeyPair;

    use super::*;
    use crate::identity::{Authority, Identities, IdentityConfig, Unavailable, Validity};

    const HOUR: Duration = Duration::from_secs(3600);

    fn web() -> Spiffe {
        Spiffe::new("cluster.local", "shop", "web").unwrap()
    }

    fn validity(begins: SystemTime) -> Validity {
        Validity::starting(begins, HOUR, 2 * HOUR)
    }

    /// A folder with an identity, signed by `authority`.
    fn write(dir: &Path, authority: &Authority, who: &Spiffe, begins: SystemTime) -> IdentityFiles {
        let key = KeyPair::generate().unwrap();
        let csr = rcgen::CertificateParams::default().serialize_request(&key).unwrap();
        let chain = authority.sign(&csr.pem().unwrap(), who, validity(begins)).unwrap();
        let at = |name: &str| dir.join(name);
        let files = IdentityFiles {
            certificate: at("cert.pem"),
            key: at("key.pem"),
            roots: at("roots.pem"),
        };
        fs::write(&files.certificate, &chain[0]).unwrap();
        fs::write(&files.key, key.serialize_pem()).unwrap();
        fs::write(&files.roots, &chain[1]).unwrap();
        files
    }

    fn authority() -> Authority {
        let long = Validity::starting(SystemTime::now(), 100 * HOUR, 100 * HOUR);
        Authority::create("cluster.local", long).unwrap()
    }

    fn refusal(files: &IdentityFiles, dir: &Path) -> String {
        let Err(error) = files.read(SystemTime::now()) else { return "accepted".into() };
        let source = std::error::Error::source(&error).map_or(String::new(), |s| format!(": {s}"));
        format!("{error}{source}").replace(&dir.display().to_string(), "DIR")
    }

    #[test]
    fn the_leaf_says_whose_identity_the_files_are() {
        let dir = tempfile::tempdir().unwrap();
        let files = write(dir.path(), &authority(), &web(), SystemTime::now());
        let (who, issued) = files.read(SystemTime::now()).unwrap();
        assert_eq!(who, web());
        assert_eq!((issued.certified.cert.len(), issued.roots.len()), (1, 1));
    }

    #[test]
    fn files_that_do_not_stand_together_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let (dir, now, ca) = (dir.path(), SystemTime::now(), authority());
        let does_not = "the certificate in DIR/cert.pem does not stand with its key and the roots in DIR/roots.pem: ";
        let files = write(dir, &ca, &web(), now);
        fs::write(&files.key, KeyPair::generate().unwrap().serialize_pem()).unwrap();
        let other_key = "the issued certificate is for another key than the one requested";
        assert_eq!(refusal(&files, dir), format!("{does_not}{other_key}"));
        let files = write(dir, &ca, &web(), now);
        fs::write(&files.roots, authority().roots_pem()).unwrap();
        assert!(refusal(&files, dir).starts_with(does_not));
        let files = write(dir, &ca, &web(), now - 50 * HOUR);
        assert!(refusal(&files, dir).contains("expired"), "{}", refusal(&files, dir));
        fs::write(&files.key, "hello").unwrap();
        assert!(refusal(&files, dir).starts_with("DIR/key.pem holds no private key"));
        fs::write(&files.certificate, "hello").unwrap();
        assert!(refusal(&files, dir).starts_with("the certificate in DIR/cert.pem cannot be used"));
        fs::remove_file(&files.roots).unwrap();
        assert!(refusal(&files, dir).starts_with("reading DIR/roots.pem"));
    }

    #[tokio::test]
    async fn the_last_good_identity_stays_and_no_other_is_served() {
        let dir = tempfile::tempdir().unwrap();
        let (dir, ca) = (dir.path(), authority());
        let identities = Identities::of_files(IdentityConfig::default());
        let nothing = identities.credential(&web()).await.unwrap_err();
        assert!(matches!(nothing, Unavailable::NotInFiles { held: None, .. }), "{nothing:?}");
        let files = write(dir, &ca, &web(), SystemTime::now());
        assert_eq!(identities.load(&files).unwrap(), web());
        let first = identities.credential(&web()).await.unwrap();
        fs::write(&files.key, "hello").unwrap();
        assert!(identities.load(&files).is_err());
        assert!(Arc::ptr_eq(&first, &identities.credential(&web()).await.unwrap()));
        let cart = Spiffe::new("cluster.local", "shop", "cart").unwrap();
        let other = identities.credential(&cart).await.unwrap_err().to_string();
        assert_eq!(
            other,
            "the identity of this host is spiffe://cluster.local/ns/shop/sa/web, by its files, and not \
             spiffe://cluster.local/ns/shop/sa/cart"
        );
        write(dir, &ca, &web(), SystemTime::now());
        identities.load(&files).unwrap();
        assert_ne!(identities.current(&web()).unwrap().chain(), first.chain());
        assert_eq!(identities.states().len(), 1);
        write(dir, &ca, &cart, SystemTime::now());
        assert_eq!(identities.load(&files).unwrap(), cart);
        assert!(identities.current(&web()).is_none());
    }
}
