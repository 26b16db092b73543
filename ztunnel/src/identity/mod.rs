//! Certificates of the node's pods, as the settings say: where they come from, who needs one, and the files that are
//! followed.
//!
//! In: the settings. Out: [`Identities`], fed with what changes in the files of roots and of revocation lists; and their
//! metrics. Runs on the control thread.

pub(crate) mod metrics;
pub(crate) mod prefetch;
mod revocation_file;
mod watch;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use mesh::identity::{CertificateSource, Identities, IdentityConfig, IdentityFiles};
use tokio::task::spawn_local;

use self::{
    revocation_file::{Reload, RevocationFile},
    watch::{Taken, Watched},
};
use crate::config::IdentitySection;

/// How long a first connection of an identity waits for its certificate.
const CERTIFICATE_WAIT: Duration = Duration::from_secs(10);

/// Begins to keep certificates from `authority`, whose roots are in the file `ca_root`.
///
/// # Errors
/// The file of revocation lists is there and cannot be used: peers that are not to be let in would be.
pub(crate) fn start(
    settings: &IdentitySection,
    lifetime: Duration,
    authority: Arc<dyn CertificateSource>,
    ca_root: &Path,
) -> anyhow::Result<Identities> {
    let mut lists = RevocationFile::new(settings.revocation_lists.clone());
    let watched_lists = Watched::new(&[lists.path()]);
    let revocations = lists.begin().with_context(|| {
        format!("reading the revocation lists in {}", settings.revocation_lists.display())
    })?;
    let config = IdentityConfig {
        compliance: settings.compliance,
        versions: settings.versions,
        lifetime,
        wait: CERTIFICATE_WAIT,
        trust_domain_aliases: settings.trust_domain_aliases.clone(),
        revocations: Arc::new(revocations),
    };
    if let Some(files) = &settings.files {
        let identities = Identities::of_files(config);
        let watched = Watched::new(&[&files.certificate, &files.key, &files.roots]);
        let watched = watched.read_first(load(&identities, files));
        spawn_local(follow_lists(identities.clone(), lists, watched_lists));
        spawn_local(follow_files(identities.clone(), files.clone(), watched));
        return Ok(identities);
    }
    let watched_roots = Watched::new(&[ca_root]);
    let identities = Identities::start(authority, config);
    spawn_local(follow_lists(identities.clone(), lists, watched_lists));
    spawn_local(follow_roots(identities.clone(), ca_root.to_owned(), watched_roots));
    Ok(identities)
}

async fn follow_lists(identities: Identities, mut lists: RevocationFile, watched: Watched) {
    let reload = || match lists.reload() {
        Reload::Lists(revocations) => {
            identities.revoke(Arc::new(revocations));
            Taken::Done
        }
        Reload::Nothing => Taken::Done,
        Reload::Failed => Taken::Failed,
    };
    watched.follow(reload).await;
}

/// Files that cannot be used do not keep the daemon from starting, as an authority that does not answer does not: it has
/// no certificate until they are good.
fn load(identities: &Identities, files: &IdentityFiles) -> Taken {
    match identities.load(files) {
        Ok(identity) => {
            tracing::info!(%identity, "certificate read from its files");
            Taken::Done
        }
        Err(error) => {
            let error = &error as &dyn std::error::Error;
            tracing::error!(
                error,
                "the files hold no usable identity; what was in force of them stays"
            );
            Taken::Failed
        }
    }
}

async fn follow_files(identities: Identities, files: IdentityFiles, watched: Watched) {
    watched.follow(|| load(&identities, &files)).await;
}

/// The authority's roots change when the mesh's do. Certificates that come with the new ones are then worth asking for:
/// otherwise an identity learns of them at half of its certificate's lifetime.
async fn follow_roots(identities: Identities, file: PathBuf, watched: Watched) {
    let renew = || {
        tracing::info!(file = %file.display(), "the authority's roots have changed: asking for all certificates again");
        identities.renew_all();
        Taken::Done
    };
    watched.follow(renew).await;
}
