//! A pod of the testbed: where it is, and what can be run in it.
//!
//! In: a specification and the place the cluster gave it. Out: addresses, and programs that run as if they were the pod's own.
//! Pods know nothing of the mesh; the daemon is told about them by `cluster`.

use std::ffi::OsString;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::process::Output;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::binaries;
use crate::command::text;
use crate::description::PodSpec;
use crate::gate::make_folder;
use crate::load::Report;
use crate::place::Place;
use crate::plan::Plan;
use crate::process::Process;

/// A pod that exists.
#[derive(Clone, Debug)]
pub struct Pod {
    spec: PodSpec,
    plan: Plan,
    node: u8,
    host: u8,
    serial: u32,
    place: Place,
}

impl Pod {
    /// A pod at host `host` of node `node`; `serial` tells apart pods that have had the same name.
    pub(crate) fn new(
        spec: PodSpec,
        plan: Plan,
        (node, host): (u8, u8),
        serial: u32,
        place: Place,
    ) -> Pod {
        Pod { spec, plan, node, host, serial, place }
    }

    /// What was asked for.
    pub fn spec(&self) -> &PodSpec {
        &self.spec
    }

    /// Its IPv4 address.
    pub fn ip4(&self) -> Ipv4Addr {
        self.plan.pod_ip4(self.node, self.host)
    }

    /// Its IPv6 address.
    pub fn ip6(&self) -> Ipv6Addr {
        self.plan.pod_ip6(self.node, self.host)
    }

    /// Both addresses.
    pub fn ips(&self) -> [IpAddr; 2] {
        [self.ip4().into(), self.ip6().into()]
    }

    /// Its node's address on the fabric.
    pub fn host_ip(&self) -> Ipv4Addr {
        self.plan.node_ip4(self.node)
    }

    /// Its node's name in Kubernetes.
    pub fn node_name(&self) -> String {
        format!("node-{}", self.spec.node)
    }

    /// Which host it is among its node's.
    pub(crate) fn host(&self) -> u8 {
        self.host
    }

    /// Its Kubernetes uid.
    pub fn uid(&self) -> String {
        format!("00000000-0000-4000-8000-{:04x}{:08x}", self.plan.number(), self.serial)
    }

    /// The name of its network namespace.
    pub fn netns(&self) -> String {
        self.plan.netns(&format!("{}-{}", self.spec.namespace, self.spec.name))
    }

    /// Its place, to run programs with settings of their own.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// What the daemon is told about it.
    pub fn registration(&self) -> Value {
        json!({
            "uid": self.uid(),
            "namespace": self.spec.namespace,
            "name": self.spec.name,
            "serviceAccount": self.spec.service_account,
            "netns": self.place.netns,
            "ips": self.ips(),
            "capture": match self.resolv_conf() {
                Some(path) => json!({ "resolvConf": path }),
                None => json!({}),
            },
        })
    }

    /// The file of its own resolver configuration, if it has one.
    pub fn resolv_conf(&self) -> Option<PathBuf> {
        Some(self.resolv_conf_path()).filter(|path| path.exists())
    }

    fn resolv_conf_path(&self) -> PathBuf {
        self.plan.dir().join("pods").join(self.netns()).join("resolv.conf")
    }

    /// Gives it the resolver configuration that a kubelet would write, with `server` as its DNS server.
    pub(crate) fn resolve_by(&self, server: IpAddr) -> Result<()> {
        let namespace = &self.spec.namespace;
        let text = format!(
            "search {namespace}.svc.cluster.local svc.cluster.local cluster.local\n\
             nameserver {server}\noptions ndots:5\n"
        );
        self.set_resolv_conf(&text)?;
        self.place.resolve_by(&self.resolv_conf_path())
    }

    /// Changes its resolver configuration, in place: programs that run have the file mounted.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn set_resolv_conf(&self, text: &str) -> Result<()> {
        let path = self.resolv_conf_path();
        make_folder(&self.plan.dir().join("pods").join(self.netns()))?;
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    }

    /// Runs `words` to their end; an unsuccessful end is not an error.
    ///
    /// # Errors
    /// If the program cannot be started.
    pub fn run(&self, words: &[&str]) -> Result<Output> {
        self.place.run(words)
    }

    /// Runs `words` and gives what they said on standard output.
    ///
    /// # Errors
    /// If they cannot be started or do not succeed.
    pub fn ask(&self, words: &[&str]) -> Result<String> {
        let output = self.run(words)?;
        let said = text(&output.stderr);
        ensure!(
            output.status.success(),
            "in pod {}: `{}`: {}: {}",
            self.spec.path(),
            words.join(" "),
            output.status,
            said.trim()
        );
        Ok(text(&output.stdout))
    }

    /// Starts `words`; the log is named after the pod and `name`.
    ///
    /// # Errors
    /// If the program cannot be started.
    pub fn spawn(&self, name: &str, words: &[&str]) -> Result<Process> {
        self.spawn_with(name, words, &[])
    }

    /// Starts `words` with environment `variables`.
    ///
    /// # Errors
    /// If the program cannot be started.
    pub fn spawn_with(
        &self,
        name: &str,
        words: &[&str],
        variables: &[(&str, OsString)],
    ) -> Result<Process> {
        self.place.spawn(&format!("{}-{name}", self.netns()), words, variables)
    }

    /// Starts nginx on port 80, with `page` as its front page and the client's address in header `X-Client`.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn nginx(&self, page: &str) -> Result<Process> {
        let folder = self.folder("nginx")?;
        fs::write(folder.join("index.html"), page)?;
        let config = format!(
            "worker_processes 1; daemon off; user root; pid {dir}/pid; error_log stderr notice;\n\
             events {{ worker_connections 4096; }}\n\
             http {{ access_log {dir}/access.log; client_body_temp_path {dir}/b; proxy_temp_path {dir}/p;\n\
             fastcgi_temp_path {dir}/f; uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s;\n\
             server {{ listen 80; listen [::]:80; root {dir}; add_header X-Client $remote_addr; }} }}\n",
            dir = folder.display()
        );
        let path = folder.join("nginx.conf");
        fs::write(&path, config)?;
        let words =
            ["nginx", "-c", &path.display().to_string(), "-p", &folder.display().to_string()];
        let mut nginx = self.spawn("nginx", &words)?;
        nginx.wait_listening(80)?;
        Ok(nginx)
    }

    /// Starts redis on port 6379, keeping nothing on disk.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn redis(&self) -> Result<Process> {
        let words = [
            "redis-server",
            "--port",
            "6379",
            "--bind",
            "0.0.0.0",
            "::",
            "--protected-mode",
            "no",
            "--save",
            "",
        ];
        let mut redis = self.spawn("redis", &words)?;
        redis.wait_listening(6379)?;
        Ok(redis)
    }

    /// Starts iperf3's server on port 5201.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn iperf3(&self) -> Result<Process> {
        let mut iperf3 = self.spawn("iperf3", &["iperf3", "--server"])?;
        iperf3.wait_listening(5201)?;
        Ok(iperf3)
    }

    /// Starts dnsmasq on port 53 with `options`; it asks nobody else, so that what is not among its records is refused.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn dnsmasq(&self, options: &[&str]) -> Result<Process> {
        let fixed = [
            "dnsmasq",
            "--conf-file=/dev/null",
            "--no-resolv",
            "--no-hosts",
            "--no-daemon",
            "--user=root",
            "--pid-file=",
            "--log-queries",
            "--log-facility=-",
        ];
        let mut dnsmasq = self.spawn("dnsmasq", &[&fixed, options].concat())?;
        dnsmasq.wait_listening(53)?;
        Ok(dnsmasq)
    }

    /// Starts socat as an echo server on port 7.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn echo(&self) -> Result<Process> {
        // An IPv6 socket, which takes IPv4 as well.
        let mut echo =
            self.spawn("echo", &["socat", "TCP6-LISTEN:7,fork,reuseaddr", "EXEC:cat"])?;
        echo.wait_listening(7)?;
        Ok(echo)
    }

    /// Starts our load tool's servers: echo on 7000, sink on 7001, source on 7002, checksum on 7003, parting on
    /// 7004, reset on 7005, on every address.
    ///
    /// # Errors
    /// If they do not come up.
    pub fn load_servers(&self) -> Result<Process> {
        self.load_servers_on(None)
    }

    /// As [`Pod::load_servers`], on one CPU.
    ///
    /// # Errors
    /// If they do not come up.
    pub fn load_servers_on(&self, cpu: Option<u8>) -> Result<Process> {
        let load = binaries::ours("load")?.display().to_string();
        let roles = ["echo", "sink", "source", "checksum", "parting", "reset"];
        let numbered = roles.iter().zip(7000..);
        let options: Vec<String> =
            numbered.map(|(role, port)| format!("--{role}=[::]:{port}")).collect();
        let options = options.iter().map(String::as_str);
        let words: Vec<&str> = [load.as_str(), "serve"].into_iter().chain(options).collect();
        let name = format!("{}-load", self.netns());
        let mut servers = self.place.on_cpu(cpu).spawn(&name, &words, &[])?;
        for port in 7000..=7005 {
            servers.wait_listening(port)?;
        }
        Ok(servers)
    }

    /// Runs a client of our load tool for as long as its own default says.
    ///
    /// # Errors
    /// If it does not end with a report.
    pub fn load(&self, job: &str, to: &str, options: &[&str]) -> Result<Report> {
        let load = binaries::ours("load")?.display().to_string();
        let said = self.ask(&[&[&load, job, "--to", to], options].concat())?;
        serde_json::from_str(&said).with_context(|| format!("reading the report {said:?}"))
    }

    /// Checks the ways connections to `host`'s load servers end.
    ///
    /// # Errors
    /// The end that did not arrive.
    pub fn endings(&self, host: &str) -> Result<()> {
        let load = binaries::ours("load")?.display().to_string();
        let (parting, reset) = (format!("{host}:7004"), format!("{host}:7005"));
        self.ask(&[&load, "endings", "--parting", &parting, "--reset", &reset]).map(drop)
    }

    /// As [`Pod::endings`], but without the connection that the server cuts off.
    ///
    /// # Errors
    /// The end that did not arrive.
    pub fn endings_of_clients(&self, host: &str) -> Result<()> {
        let load = binaries::ours("load")?.display().to_string();
        self.ask(&[&load, "endings", "--parting", &format!("{host}:7004")]).map(drop)
    }

    /// A folder for the files of a program of this pod.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn folder(&self, name: &str) -> Result<PathBuf> {
        let folder = self.plan.dir().join("pods").join(self.netns()).join(name);
        make_folder(&folder)?;
        Ok(folder)
    }
}
