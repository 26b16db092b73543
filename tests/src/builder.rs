//! Says what a cluster shall consist of.
//!
//! In: calls that read like a description. Out: a [`Cluster`], by [`Builder::start`]; how it is built is `cluster`'s.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::Result;

use crate::cluster::Cluster;
use crate::description::{Dataplane, NamespaceSpec, PodSpec, ServiceSpec};
use crate::network::Tcp;

/// What a cluster shall consist of.
#[derive(Clone, Debug, Default)]
pub struct Builder {
    pub(crate) nodes: Vec<String>,
    pub(crate) namespaces: Vec<NamespaceSpec>,
    pub(crate) pods: Vec<PodSpec>,
    pub(crate) services: Vec<ServiceSpec>,
    pub(crate) manifests: Vec<(String, String)>,
    pub(crate) tcp: Tcp,
    pub(crate) mesh: Mesh,
    pub(crate) variables: Vec<(String, OsString)>,
    pub(crate) dns_server: Option<String>,
}

/// Which mesh it gets.
#[derive(Clone, Debug, Default)]
pub(crate) enum Mesh {
    /// Pilot, and our daemon on every node.
    #[default]
    Ours,
    /// Pilot, and this binary in place of our daemon.
    Daemon(PathBuf),
    /// None: nodes and pods only.
    Absent,
}

impl Builder {
    /// Adds nodes, named `node-a` for `a`.
    #[must_use]
    pub fn nodes(mut self, names: &[&str]) -> Builder {
        self.nodes.extend(names.iter().map(|name| (*name).to_owned()));
        self
    }

    /// Adds a namespace whose pods are in the mesh.
    #[must_use]
    pub fn ambient(mut self, name: &str) -> Builder {
        self.namespaces
            .push(NamespaceSpec { name: name.to_owned(), dataplane: Dataplane::Ambient });
        self
    }

    /// Adds a namespace whose pods are not in the mesh.
    #[must_use]
    pub fn outside(mut self, name: &str) -> Builder {
        self.namespaces
            .push(NamespaceSpec { name: name.to_owned(), dataplane: Dataplane::Outside });
        self
    }

    /// Adds a pod.
    #[must_use]
    pub fn pod(mut self, spec: PodSpec) -> Builder {
        self.pods.push(spec);
        self
    }

    /// Adds a service.
    #[must_use]
    pub fn service(mut self, spec: ServiceSpec) -> Builder {
        self.services.push(spec);
        self
    }

    /// Adds a file of manifests.
    #[must_use]
    pub fn manifest(mut self, file: &str, yaml: &str) -> Builder {
        self.manifests.push((file.to_owned(), yaml.to_owned()));
        self
    }

    /// Sets TCP in every namespace.
    #[must_use]
    pub fn tcp(self, tcp: Tcp) -> Builder {
        Builder { tcp, ..self }
    }

    /// Has the resolvers of all pods ask pod `path`, with the search domains of their Kubernetes namespaces. Without, pods
    /// have the machine's own resolver configuration.
    #[must_use]
    pub fn dns_server(self, path: &str) -> Builder {
        Builder { dns_server: Some(path.to_owned()), ..self }
    }

    /// Builds nodes and pods only: no pilot, no daemons.
    #[must_use]
    pub fn without_mesh(self) -> Builder {
        Builder { mesh: Mesh::Absent, ..self }
    }

    /// Runs another binary in place of our daemon.
    #[must_use]
    pub fn daemon(self, binary: PathBuf) -> Builder {
        Builder { mesh: Mesh::Daemon(binary), ..self }
    }

    /// Gives the daemons another environment variable.
    #[must_use]
    pub fn variable(mut self, name: &str, value: &str) -> Builder {
        self.variables.push((name.to_owned(), value.into()));
        self
    }

    /// Builds it, starts everything and waits until all pods of the mesh are captured.
    ///
    /// # Errors
    /// At the first part that does not come up. What was built until then is removed.
    pub fn start(self) -> Result<Cluster> {
        Cluster::start(self)
    }
}
