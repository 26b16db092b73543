//! A certificate authority that somebody else has signed, in the files that Istio calls `cacerts`.
//!
//! In: a folder with `ca-cert.pem`, `ca-key.pem`, `cert-chain.pem` and `root-cert.pem`. Out: a usable [`Authority`], or
//! an [`OpenError`] that says what is wrong with which. Nothing is written there: who made them replaces them.

use std::{
    path::{Path, PathBuf},
    time::SystemTime,
};

use mesh::identity::Authority;

use super::files::{self, CERTIFICATE_FILE, OpenError};

const KEY_FILE: &str = "ca-key.pem";
const OWN_FILE: &str = "ca-cert.pem";
const CHAIN_FILE: &str = "cert-chain.pem";

/// Where the authority's files are.
#[derive(Clone, Debug)]
pub(super) enum Place {
    /// A root of our own, in this folder.
    Own(PathBuf),
    /// One that others have made, in the data folder: the key there is as secret as ours.
    InData(PathBuf),
    /// One that others have made, elsewhere: who mounts a Secret decides who else reads it.
    Elsewhere(PathBuf),
}

impl Place {
    /// Where they are, given the data folder and the folder that the operator names.
    pub(super) fn of(data: &Path, cacerts: Option<&Path>) -> Self {
        match cacerts {
            Some(elsewhere) => Self::Elsewhere(elsewhere.into()),
            None if data.join(KEY_FILE).exists() || data.join(OWN_FILE).exists() => {
                Self::InData(data.into())
            }
            None => Self::Own(data.into()),
        }
    }

    pub(super) fn dir(&self) -> &Path {
        match self {
            Self::Own(dir) | Self::InData(dir) | Self::Elsewhere(dir) => dir,
        }
    }

    /// All files that the authority is made of.
    pub(super) fn files(&self) -> Vec<PathBuf> {
        let names: &[&str] = match self {
            Self::Own(_) => &[files::KEY_FILE, CERTIFICATE_FILE],
            Self::InData(_) | Self::Elsewhere(_) => {
                &[KEY_FILE, OWN_FILE, CHAIN_FILE, CERTIFICATE_FILE]
            }
        };
        names.iter().map(|name| self.dir().join(name)).collect()
    }

    /// Loads what is there.
    pub(super) fn load(&self, now: SystemTime) -> Result<Authority, OpenError> {
        let dir = match self {
            Self::Own(dir) => return files::load(dir, now),
            Self::InData(dir) | Self::Elsewhere(dir) => dir,
        };
        let key = dir.join(KEY_FILE);
        let key = match self {
            Self::Own(_) | Self::InData(_) => files::read_key(&key)?,
            Self::Elsewhere(_) => files::must_read(&key)?,
        };
        let [own, chain, roots] =
            [OWN_FILE, CHAIN_FILE, CERTIFICATE_FILE].map(|name| files::must_read(&dir.join(name)));
        Authority::plugged(&key, &own?, &chain?, &roots?, now)
            .map_err(|source| OpenError::Plugged { dir: dir.clone(), source })
    }

    /// Whether others made it, so that nothing of it is ours to replace.
    pub(super) fn is_plugged(&self) -> bool {
        match self {
            Self::Own(_) => false,
            Self::InData(_) | Self::Elsewhere(_) => true,
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::{error::Error, fs, os::unix::fs::PermissionsExt, time::Duration};

    use mesh::identity::Spiffe;
    use rcgen::{
        BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    };

    use super::*;
    use crate::ca::{CertificateAuthority, RotationStep, revoke, rotate};

    /// Writes files as Istio's instructions have them made.
    pub(in crate::ca) fn plug(dir: &Path) {
        let params = |name: &str| {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, name);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            params
        };
        let (root_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let root = params("root").self_signed(&root_key).unwrap().pem();
        let issuer = Issuer::new(params("root"), root_key);
        let own = params("cluster-1").signed_by(&key, &issuer).unwrap().pem();
        fs::create_dir_all(dir).unwrap();
        for (name, text) in [
            (KEY_FILE, &key.serialize_pem()),
            (OWN_FILE, &own),
            (CHAIN_FILE, &format!("{own}{root}")),
            (CERTIFICATE_FILE, &root),
        ] {
            // Another file each time, as with a Secret.
            files::replace(&dir.join(name), text, 0o600).unwrap();
        }
    }

    fn csr() -> String {
        let key = KeyPair::generate().unwrap();
        CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap()
    }

    fn sign(ca: &CertificateAuthority) -> Vec<String> {
        let web = Spiffe::new("cluster.local", "shop", "web").unwrap();
        ca.sign(&csr(), &web, Duration::ZERO).unwrap()
    }

    #[test]
    fn what_lies_between_is_handed_out_and_new_files_are_in_force_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let (data, cacerts) = (dir.path().join("data"), dir.path().join("cacerts"));
        plug(&cacerts);
        fs::set_permissions(cacerts.join(KEY_FILE), fs::Permissions::from_mode(0o644)).unwrap();
        let ca = CertificateAuthority::open_at(&data, Some(&cacerts), "cluster.local").unwrap();
        let read = |name: &str| fs::read_to_string(cacerts.join(name)).unwrap();
        let same = |one: &str, other: &str| {
            let der = |text: &str| text.replace(['\r', '\n'], "");
            assert_eq!(der(one), der(other));
        };
        let handed = sign(&ca);
        assert_eq!(handed.len(), 3);
        same(&handed[1], &read(OWN_FILE));
        same(&handed[2], &read(CERTIFICATE_FILE));

        plug(&cacerts);
        same(&sign(&ca)[2], &read(CERTIFICATE_FILE));
        let before = read(OWN_FILE);
        fs::write(cacerts.join(OWN_FILE), "hello").unwrap();
        same(&sign(&ca)[1], &before);
    }

    #[test]
    fn files_in_the_data_folder_take_the_place_of_a_root_of_our_own() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        plug(dir);
        let ca = CertificateAuthority::open(dir, "cluster.local").unwrap();
        assert_eq!(sign(&ca).len(), 3);
        assert!(!dir.join(files::KEY_FILE).exists());
        let refusal = rotate(dir, RotationStep::Begin, "cluster.local", SystemTime::now());
        let expected = format!(
            "the authority in {} was made by others: put their new files in its place",
            dir.display()
        );
        assert_eq!(refusal.unwrap_err().to_string(), expected);
        // What it has issued is taken back by a list that it signs.
        let web = Spiffe::new("cluster.local", "shop", "web").unwrap();
        let done = revoke(dir, None, &[], &[web], SystemTime::now()).unwrap();
        assert_eq!(done.added, 1);
    }

    #[test]
    fn what_is_wrong_with_the_files_is_said_at_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let refusal = || {
            let error = CertificateAuthority::open(dir, "cluster.local").err().expect("refused");
            let reason = error.source().map_or(String::new(), |source| format!(": {source}"));
            format!("{error}{reason}").replace(&dir.display().to_string(), "DIR")
        };
        plug(dir);
        fs::remove_file(dir.join(CHAIN_FILE)).unwrap();
        assert!(refusal().starts_with("reading DIR/cert-chain.pem: "), "{}", refusal());
        plug(dir);
        let root = fs::read_to_string(dir.join(CERTIFICATE_FILE)).unwrap();
        fs::write(dir.join(OWN_FILE), root).unwrap();
        let reason = "the certificate is for another key than the private key";
        assert_eq!(refusal(), format!("the authority in DIR cannot be used: {reason}"));
        plug(dir);
        fs::set_permissions(dir.join(KEY_FILE), fs::Permissions::from_mode(0o644)).unwrap();
        assert!(refusal().starts_with("DIR/ca-key.pem can be used by others"), "{}", refusal());
    }
}
