//! Builds a cluster, changes it, and takes it down.
//!
//! In: a [`Builder`]'s description. Out: a [`Cluster`]: its pods by name, a daemon for every node, the folder of manifests
//! that users would edit. Dropping it removes every trace, also after a failure half-way through the building.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::thread;

use anyhow::{Context as _, Result, ensure};

use crate::binaries;
use crate::builder::{Builder, Mesh};
use crate::claim::{self, Claim};
use crate::command::run;
use crate::control::Control;
use crate::daemon::{Daemon, DaemonConfig};
use crate::description::{Dataplane, PodSpec};
use crate::gate::make_folder;
use crate::manifests;
use crate::network;
use crate::place::Place;
use crate::plan::Plan;
use crate::pod::Pod;
use crate::tcpdump::{Mark, Tcpdump};
use crate::teardown;

/// The interface that every packet between two nodes passes.
pub const FABRIC: &str = "fabric0";

/// A cluster that runs.
#[derive(Debug)]
pub struct Cluster {
    plan: Plan,
    description: Builder,
    nodes: Vec<String>,
    pods: BTreeMap<String, Pod>,
    serial: u32,
    control: Option<Control>,
    daemons: BTreeMap<String, Daemon>,
    // The last to go: the number is free when nothing carries it any more.
    claim: Claim,
}

impl Cluster {
    /// An empty description.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Builds what `description` says; what was built before a failure is removed.
    pub(crate) fn start(description: Builder) -> Result<Cluster> {
        binaries::require(&["ip", "nsenter", "sysctl", "mount", "umount", "kill", "curl"])?;
        let claim = Claim::take()?;
        let plan = claim.plan();
        teardown::on_signal(plan)?;
        let mut cluster = Cluster {
            plan,
            description,
            nodes: Vec::new(),
            pods: BTreeMap::new(),
            serial: 0,
            control: None,
            daemons: BTreeMap::new(),
            claim,
        };
        cluster.build()?;
        Ok(cluster)
    }

    /// Its names and addresses.
    pub fn plan(&self) -> Plan {
        self.plan
    }

    /// Pod `namespace/name`.
    ///
    /// # Errors
    /// If there is none.
    pub fn pod(&self, path: &str) -> Result<&Pod> {
        self.pods.get(path).with_context(|| format!("the cluster has no pod {path}"))
    }

    /// All pods.
    pub fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.pods.values()
    }

    /// The addresses of service `namespace/name`.
    ///
    /// # Errors
    /// If there is none.
    pub fn service(&self, path: &str) -> Result<(Ipv4Addr, Ipv6Addr)> {
        let index = self.description.services.iter().position(|service| service.path() == path);
        let index = index.with_context(|| format!("the cluster has no service {path}"))?;
        Ok(self.service_ips(index))
    }

    /// The daemon of node `name`.
    ///
    /// # Errors
    /// If there is none.
    pub fn daemon(&self, name: &str) -> Result<&Daemon> {
        self.daemons.get(name).with_context(|| format!("node {name} has no daemon"))
    }

    /// The daemon of node `name`, to kill or start it.
    ///
    /// # Errors
    /// If there is none.
    pub fn daemon_mut(&mut self, name: &str) -> Result<&mut Daemon> {
        self.daemons.get_mut(name).with_context(|| format!("node {name} has no daemon"))
    }

    /// The control plane.
    ///
    /// # Errors
    /// If the cluster was built without a mesh.
    pub fn control(&self) -> Result<&Control> {
        self.control.as_ref().context("the cluster has no control plane")
    }

    /// The control plane, to kill or start it.
    ///
    /// # Errors
    /// If the cluster was built without a mesh.
    pub fn control_mut(&mut self) -> Result<&mut Control> {
        self.control.as_mut().context("the cluster has no control plane")
    }

    /// Records what crosses the fabric between nodes.
    ///
    /// # Errors
    /// If tcpdump does not come up.
    pub fn tcpdump(&self, name: &str, filter: &str) -> Result<Tcpdump> {
        let from = Place::new(self.plan, "control", "control")?;
        let mark = Mark { from, to: self.plan.node_ip4(1).into() };
        Tcpdump::start(&self.fabric()?, FABRIC, name, filter, mark)
    }

    /// Where the wire between the nodes is; its interface is [`FABRIC`].
    ///
    /// # Errors
    /// If the script that leads there cannot be made.
    pub fn fabric(&self) -> Result<Place> {
        Place::new(self.plan, "fabric", "control")
    }

    /// The folder of manifests that pilot watches.
    pub fn manifest_dir(&self) -> PathBuf {
        self.plan.dir().join("manifests")
    }

    /// Writes a file of manifests, in one step as editors do.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn apply(&self, file: &str, yaml: &str) -> Result<()> {
        let path = self.manifest_dir().join(file);
        let fresh = self.plan.dir().join(format!("{file}.new"));
        fs::write(&fresh, yaml).with_context(|| format!("writing {}", fresh.display()))?;
        fs::rename(&fresh, &path).with_context(|| format!("writing {}", path.display()))
    }

    /// Removes a file of manifests.
    ///
    /// # Errors
    /// If there is none.
    pub fn delete(&self, file: &str) -> Result<()> {
        fs::remove_file(self.manifest_dir().join(file)).with_context(|| format!("removing {file}"))
    }

    /// Adds a pod at the lowest free address of its node, and enrols it if its namespace is in the mesh.
    ///
    /// # Errors
    /// If its node is unknown or its daemon refuses it.
    pub fn add_pod(&mut self, spec: PodSpec) -> Result<Pod> {
        let pod = self.place_pod(spec)?;
        self.set_resolver(&pod)?;
        self.write_pods(&pod.spec().namespace)?;
        self.enrol(&pod)?;
        Ok(pod)
    }

    /// Removes a pod as a cluster would: its processes, its registration, its manifest and its namespace.
    ///
    /// # Errors
    /// If a part of it stays.
    pub fn remove_pod(&mut self, path: &str) -> Result<()> {
        let pod =
            self.pods.remove(path).with_context(|| format!("the cluster has no pod {path}"))?;
        if self.is_ambient(&pod)
            && let Ok(daemon) = self.daemon(&pod.spec().node)
        {
            daemon.unregister(&pod)?;
        }
        self.write_pods(&pod.spec().namespace)?;
        teardown::kill_cgroup(&pod.place().cgroup)?;
        network::remove_pod(self.plan, &pod.netns(), &pod.node_name(), pod.host())
    }

    /// Leaves the cluster up when this process ends.
    ///
    /// # Errors
    /// If it cannot be marked as kept.
    pub fn keep(self) -> Result<()> {
        claim::keep(self.plan)?;
        teardown::forget(self.plan);
        std::mem::forget(self);
        Ok(())
    }

    fn build(&mut self) -> Result<()> {
        let plan = self.plan;
        for folder in ["bpffs", "in", "manifests", "logs"] {
            make_folder(&plan.dir().join(folder))?;
        }
        run("mount", ["-t", "bpf", "bpffs", &plan.dir().join("bpffs").display().to_string()])?;
        network::add_fabric(plan, &self.description.tcp)?;
        for name in self.description.nodes.clone() {
            self.add_node(name)?;
        }
        for spec in self.description.pods.clone() {
            self.place_pod(spec)?;
        }
        self.pods.values().try_for_each(|pod| self.set_resolver(pod))?;
        self.write_manifests()?;
        let binary = match &self.description.mesh {
            Mesh::Absent => return Ok(()),
            Mesh::Ours => binaries::ours("ztunnel")?,
            Mesh::Daemon(path) => path.clone(),
        };
        let place = Place::new(plan, "control", "control")?;
        self.control = Some(Control::start(plan, place, self.manifest_dir())?);
        self.start_daemons(&binary)?;
        self.pods.values().try_for_each(|pod| self.enrol(pod))
    }

    fn add_node(&mut self, name: String) -> Result<()> {
        let numbered =
            |(at, name): (usize, &String)| Ok((u8::try_from(at + 1)?, format!("node-{name}")));
        let others: Vec<(u8, String)> =
            self.nodes.iter().enumerate().map(numbered).collect::<Result<_>>()?;
        let index = u8::try_from(others.len() + 1).context("too many nodes")?;
        ensure!(index < 100, "a cluster has at most 99 nodes");
        network::add_node(
            self.plan,
            index,
            &format!("node-{name}"),
            &others,
            &self.description.tcp,
        )?;
        self.nodes.push(name);
        Ok(())
    }

    fn place_pod(&mut self, spec: PodSpec) -> Result<Pod> {
        let node = self.nodes.iter().position(|name| *name == spec.node);
        let node = u8::try_from(
            node.with_context(|| format!("{} is on an unknown node", spec.path()))? + 1,
        )?;
        let taken: Vec<u8> =
            self.pods.values().filter(|pod| pod.spec().node == spec.node).map(Pod::host).collect();
        let host =
            (2..=250).find(|host| !taken.contains(host)).context("the node is full of pods")?;
        self.serial += 1;
        let part = format!("{}-{}", spec.namespace, spec.name);
        let node_name = format!("node-{}", spec.node);
        network::add_pod(
            self.plan,
            &self.plan.netns(&part),
            (node, &node_name),
            host,
            &self.description.tcp,
        )?;
        let place = Place::new(self.plan, &part, &format!("{node_name}/{part}"))?;
        let pod = Pod::new(spec, self.plan, (node, host), self.serial, place);
        self.pods.insert(pod.spec().path(), pod.clone());
        Ok(pod)
    }

    /// The daemons do not depend on each other, and each loads kernel programs, which takes a while.
    fn start_daemons(&mut self, binary: &std::path::Path) -> Result<()> {
        let mut starts = Vec::new();
        for name in &self.nodes {
            let node_name = format!("node-{name}");
            let control = self.control()?;
            let config = DaemonConfig {
                binary: binary.to_owned(),
                token: control.node_token(&node_name)?,
                control_url: control.url(),
                root_certificate: control.root_certificate(),
                pin_dir: self.plan.dir().join("bpffs").join(&node_name),
                state_dir: self.plan.dir().join(&node_name),
                variables: self.description.variables.clone(),
                node_name: node_name.clone(),
            };
            let place = Place::new(self.plan, &node_name, &node_name)?;
            starts.push((name.clone(), thread::spawn(move || Daemon::start(config, place))));
        }
        for (name, start) in starts {
            let daemon = start
                .join()
                .map_err(|_| anyhow::anyhow!("starting the daemon of {name} panicked"))?;
            self.daemons.insert(name, daemon?);
        }
        Ok(())
    }

    fn enrol(&self, pod: &Pod) -> Result<()> {
        match self.daemons.get(&pod.spec().node) {
            Some(daemon) if self.is_ambient(pod) => daemon.register(pod),
            Some(_) | None => Ok(()),
        }
    }

    fn set_resolver(&self, pod: &Pod) -> Result<()> {
        let Some(server) = &self.description.dns_server else { return Ok(()) };
        pod.resolve_by(self.pod(server)?.ip4().into())
    }

    /// What a pod says of itself counts before what its namespace says.
    fn is_ambient(&self, pod: &Pod) -> bool {
        let own =
            |(key, value): &(String, String)| key == "istio.io/dataplane-mode" && value == "none";
        if pod.spec().labels.iter().any(own) {
            return false;
        }
        let namespaces = &self.description.namespaces;
        let of_pod = namespaces.iter().find(|namespace| namespace.name == pod.spec().namespace);
        of_pod.is_some_and(|namespace| namespace.dataplane == Dataplane::Ambient)
    }

    fn write_manifests(&self) -> Result<()> {
        let mut nodes = String::new();
        for (name, index) in self.nodes.iter().zip(1..) {
            nodes +=
                &manifests::node(&format!("node-{name}"), IpAddr::V4(self.plan.node_ip4(index)));
        }
        self.apply("nodes.yaml", &nodes)?;
        for namespace in &self.description.namespaces {
            self.apply(&format!("{}.yaml", namespace.name), &manifests::namespace(namespace))?;
            self.write_pods(&namespace.name)?;
        }
        let mut services = String::new();
        for (at, service) in self.description.services.iter().enumerate() {
            let (ip4, ip6) = self.service_ips(at);
            services += &manifests::service(service, ip4, ip6);
        }
        // A file without a document is an error: it may be one that is just being written.
        if !services.is_empty() {
            self.apply("services.yaml", &services)?;
        }
        self.description.manifests.iter().try_for_each(|(file, yaml)| self.apply(file, yaml))
    }

    /// Writes the pods of a namespace and their service accounts.
    fn write_pods(&self, namespace: &str) -> Result<()> {
        let pods = || self.pods.values().filter(|pod| pod.spec().namespace == namespace);
        let mut accounts: Vec<&str> =
            pods().map(|pod| pod.spec().service_account.as_str()).collect();
        accounts.sort_unstable();
        accounts.dedup();
        let accounts: String =
            accounts.iter().map(|name| manifests::service_account(namespace, name)).collect();
        let pods: String = pods().map(manifests::pod).collect();
        let (file, yaml) = (format!("{namespace}-pods.yaml"), accounts + &pods);
        match yaml.is_empty() {
            true if self.manifest_dir().join(&file).exists() => self.delete(&file),
            true => Ok(()),
            false => self.apply(&file, &yaml),
        }
    }

    fn service_ips(&self, at: usize) -> (Ipv4Addr, Ipv6Addr) {
        let index = u8::try_from(at + 1).expect("a test has fewer than 255 services");
        (self.plan.service_ip4(index), self.plan.service_ip6(index))
    }

    /// What a failed test needs to be understood, before the files go away.
    fn print_logs(&self) {
        let Ok(logs) = fs::read_dir(self.plan.dir().join("logs")) else { return };
        for log in
            logs.flatten().filter(|log| log.path().extension().is_some_and(|kind| kind == "log"))
        {
            let text = crate::command::text(&fs::read(log.path()).unwrap_or_default());
            let lines: Vec<&str> = text.lines().collect();
            let last = &lines[lines.len().saturating_sub(40)..];
            eprintln!("==> {}\n{}", log.path().display(), last.join("\n"));
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if thread::panicking() {
            self.print_logs();
        }
        self.daemons.clear();
        self.control = None;
        if let Err(error) = teardown::remove(self.claim.plan()) {
            eprintln!("cluster {} was not removed: {error:#}", self.plan.number());
        }
    }
}
