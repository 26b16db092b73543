//! Runs pilot for a cluster.
//!
//! In: the cluster's manifest folder. Out: a pilot that serves it in a namespace of its own on the fabric, its root
//! certificate and join tokens for nodes.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::binaries;
use crate::command::run;
use crate::gate::make_folder;
use crate::place::Place;
use crate::plan::Plan;
use crate::process::Process;

/// The port of xDS and of the certificate service, under TLS.
pub const TLS_PORT: u16 = 15012;
/// The port of pilot's own state.
pub const DEBUG_PORT: u16 = 15014;

/// A running control plane.
#[derive(Debug)]
pub struct Control {
    plan: Plan,
    place: Place,
    process: Process,
    root_certificate: PathBuf,
}

impl Control {
    /// Starts pilot on the manifests in `folder` and waits until it serves.
    ///
    /// # Errors
    /// If it does not come up; its log is in the error.
    pub fn start(plan: Plan, place: Place, folder: PathBuf) -> Result<Control> {
        let process = spawn(plan, &place, &folder)?;
        let pem = run(&pilot()?, ["root-cert", "--data", &data(plan).display().to_string()])?;
        let root_certificate = plan.dir().join("root-cert.pem");
        fs::write(&root_certificate, pem).context("writing the root certificate")?;
        Ok(Control { plan, place, process, root_certificate })
    }

    /// Writes a join token for node `name` and gives its file.
    ///
    /// # Errors
    /// If pilot refuses.
    pub fn node_token(&self, name: &str) -> Result<PathBuf> {
        let data = data(self.plan).display().to_string();
        let token = run(&pilot()?, ["node-token", name, "--data", &data])?;
        let path = self.plan.dir().join(format!("{name}.token"));
        fs::write(&path, token.trim()).context("writing a node's token")?;
        Ok(path)
    }

    /// The file with pilot's root certificate.
    pub fn root_certificate(&self) -> PathBuf {
        self.root_certificate.clone()
    }

    /// Takes a step of the root's rotation, and puts the roots that are trusted since into the nodes' file.
    ///
    /// # Errors
    /// If pilot refuses.
    pub fn rotate_root(&self, step: &str) -> Result<()> {
        let data = data(self.plan).display().to_string();
        run(&pilot()?, ["rotate-root", step, "--data", &data])?;
        let pem = run(&pilot()?, ["root-cert", "--data", &data])?;
        let fresh = self.root_certificate.with_extension("new");
        fs::write(&fresh, pem).context("writing the root certificates")?;
        fs::rename(&fresh, &self.root_certificate).context("replacing the root certificates")
    }

    /// Has pilot revoke all certificates of an identity; the list is in its folder.
    ///
    /// # Errors
    /// If pilot refuses.
    pub fn revoke(&self, identity: &str) -> Result<()> {
        let data = data(self.plan).display().to_string();
        run(&pilot()?, ["revoke", "--identity", identity, "--data", &data]).map(drop)
    }

    /// Where pilot is, seen from the nodes.
    pub fn url(&self) -> String {
        format!("https://{}:{TLS_PORT}", self.plan.control_ip4())
    }

    /// Pilot's folder of keys and tokens.
    pub fn data(&self) -> PathBuf {
        data(self.plan)
    }

    /// The place pilot runs in.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Pilot's process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Kills pilot (-9).
    ///
    /// # Errors
    /// If it cannot be waited for.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// Starts pilot again, on the same data and manifests.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn restart(&mut self) -> Result<()> {
        self.process.kill()?;
        self.process = spawn(self.plan, &self.place, &self.plan.dir().join("manifests"))?;
        Ok(())
    }
}

fn spawn(plan: Plan, place: &Place, folder: &Path) -> Result<Process> {
    let (folder, data) = (folder.display().to_string(), data(plan).display().to_string());
    make_folder(Path::new(&data))?;
    let listen_tls = format!("{}:{TLS_PORT}", plan.control_ip4());
    let listen_debug = format!("127.0.0.1:{DEBUG_PORT}");
    let san = plan.control_ip4().to_string();
    let pilot = pilot()?;
    let words = [
        [&pilot, "serve", "--folder", &folder, "--data", &data].as_slice(),
        &["--listen-tls", &listen_tls, "--listen-plain", "127.0.0.1:15010"],
        &["--listen-debug", &listen_debug, "--san", &san],
    ]
    .concat();
    let mut process = place.spawn("pilot", &words, &[("RUST_LOG", OsString::from("info"))])?;
    process.wait_listening(TLS_PORT)?;
    Ok(process)
}

fn pilot() -> Result<String> {
    Ok(binaries::ours("pilot")?.display().to_string())
}

fn data(plan: Plan) -> PathBuf {
    plan.dir().join("pilot")
}
