//! Follows the control plane: what the daemon knows of the mesh.
//!
//! In: settings. Out: the store as the xDS server and local configuration describe it, and the state of the subscription.

use std::sync::Arc;

use anyhow::Context;
use mesh::xds::{
    self, Local, LocalSource, Roots, ServerConfig, Token, TypeStatus, XdsConfig, XdsStatus,
};
use serde_json::json;
use tokio::{sync::watch, task::spawn_local};

use crate::{
    admin::Readiness,
    config::{Config, ControlPlaneConfig},
    proxy::Node,
};

/// Where certificates come from.
pub(crate) fn certificate_service(config: &Config) -> ServerConfig {
    let plane = &config.control_plane;
    ServerConfig {
        address: plane.ca_address.clone(),
        roots: Roots::from_setting(&plane.ca_root.to_string_lossy()),
        further_name: plane.ca_alt_hostname.clone(),
        versions: config.identity.versions,
        token: token(plane),
        cluster_id: config.node.cluster.clone(),
        headers: plane.ca_headers.clone(),
    }
}

/// Follows the xDS server and local configuration for as long as the daemon runs.
///
/// # Errors
/// If local configuration is wrong at the start.
pub(crate) fn follow(
    config: &Config,
    node: &Arc<Node>,
    readiness: &Readiness,
) -> anyhow::Result<watch::Receiver<XdsStatus>> {
    if let Some(source) = local_source(&config.control_plane) {
        let local = Local::start(source, node.store.clone());
        let local = local.context("taking the local configuration")?;
        spawn_local(async { match local.follow().await {} });
    }
    let followed = if config.control_plane.xds_address.is_empty() {
        tracing::info!("no xds server: only local configuration holds");
        without_server()
    } else {
        let (status, followed) = watch::channel(XdsStatus::default());
        spawn_local(xds::run(subscription(config, node), node.store.clone(), status));
        followed
    };
    let (task, mut synced) = (readiness.task("state manager"), followed.clone());
    let node = node.clone();
    spawn_local(async move {
        // The channel closes only with the daemon.
        if synced.wait_for(|status| status.authorization.accepted_once).await.is_ok() {
            node.policies_known.send_replace(true);
        }
        if synced.wait_for(XdsStatus::synced).await.is_ok() {
            task.ready();
        }
    });
    Ok(followed)
}

/// The state where there is no server to wait for.
fn without_server() -> watch::Receiver<XdsStatus> {
    let known = TypeStatus { accepted_once: true, ..TypeStatus::default() };
    let status = XdsStatus { authorization: known.clone(), address: known, ..Default::default() };
    let (sender, followed) = watch::channel(status);
    spawn_local(async move { sender.closed().await });
    followed
}

fn local_source(plane: &ControlPlaneConfig) -> Option<LocalSource> {
    let path = plane.local_xds_path.clone().map(LocalSource::File);
    path.or_else(|| plane.local_xds.clone().map(LocalSource::Inline))
}

fn subscription(config: &Config, node: &Node) -> XdsConfig {
    let (plane, own) = (&config.control_plane, &config.node);
    let namespace = &own.pod_namespace;
    let mut node_metadata = own.metadata.clone();
    node_metadata.extend([
        ("NAME".to_owned(), json!(own.pod_name)),
        ("NAMESPACE".to_owned(), json!(namespace)),
        ("INSTANCE_IPS".to_owned(), json!(own.instance_ip.to_string())),
        ("NODE_NAME".to_owned(), json!(own.name)),
        ("CLUSTER_ID".to_owned(), json!(own.cluster)),
    ]);
    XdsConfig {
        server: ServerConfig {
            address: plane.xds_address.clone(),
            roots: Roots::from_setting(&plane.xds_root.to_string_lossy()),
            further_name: plane.xds_alt_hostname.clone(),
            versions: config.identity.versions,
            token: token(plane),
            cluster_id: own.cluster.clone(),
            headers: plane.xds_headers.clone(),
        },
        node_id: format!(
            "ztunnel~{}~{}.{namespace}~{namespace}.svc.cluster.local",
            own.instance_ip, own.pod_name
        ),
        node_metadata,
        root_namespace: own.root_namespace.clone(),
        on_demand: node.on_demand.clone(),
    }
}

/// The token, if there is one: a file that is not there at the start is none, as for Istio's ztunnel.
fn token(plane: &ControlPlaneConfig) -> Option<Token> {
    match Token::from_setting(&plane.token_file.to_string_lossy()) {
        Token::File(path) if !path.exists() => None,
        token @ (Token::File(_) | Token::Literal(_)) => Some(token),
    }
}
