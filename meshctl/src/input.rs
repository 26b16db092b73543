//! The user's resources, read once.
//!
//! In: a folder, or an API server. Out: an [`Input`]: what is there, the mesh's settings, and what is wrong.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
};

use anyhow::Context;
use pilot::{
    compile::MeshConfig,
    kubernetes,
    manifests::{Folder, Manifests, Problem},
};

/// Everything that is compiled or looked at.
pub(crate) struct Input {
    pub(crate) manifests: Manifests,
    pub(crate) config: MeshConfig,
    pub(crate) problems: Vec<Problem>,
}

impl Input {
    /// Of a folder.
    pub(crate) fn of_folder(folder: &Path, base: &MeshConfig) -> anyhow::Result<Self> {
        let mut folder = Folder::new(folder);
        folder.refresh(&HashSet::new())?;
        Ok(Self::with(folder.load(&base.root_namespace), base))
    }

    /// Of the API server that a kubeconfig names, or else the surroundings.
    pub(crate) async fn of_cluster(
        kubeconfig: Option<&PathBuf>,
        base: &MeshConfig,
    ) -> anyhow::Result<Self> {
        let loaded = kubernetes::once(kubeconfig.map(PathBuf::as_path), &base.root_namespace).await;
        Ok(Self::with(loaded.context("reading from the API server")?, base))
    }

    fn with((manifests, mut problems): (Manifests, Vec<Problem>), base: &MeshConfig) -> Self {
        let (config, of_config) = base.with_settings_of(&manifests);
        problems.extend(of_config);
        Self { manifests, config, problems }
    }
}
