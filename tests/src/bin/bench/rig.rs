//! The testbed of the bench: two nodes, and a way between client and server for each thing compared.
//!
//! In: which paths are wanted. Out: for each a client, a server's address, and the proxies between them. All stand side by
//! side for the whole run, so that the paths of a row are measured one after the other under the same weather.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use testbed::command::run;
use testbed::load::Report;
use testbed::network::Tcp;
use testbed::wait::{PATIENCE, wait_for};
use testbed::{Cluster, Pod, PodSpec, Process, binaries};

use crate::load_rows::{Load, Placement};
use crate::machine::{Moment, own_cpus};
use crate::sample::Sample;

/// The congestion control of a run.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Congestion {
    /// reno in every namespace: nothing paces.
    Reno,
    /// What the host has.
    Host,
}

/// Everything between a client and a server.
pub(crate) struct Lane {
    /// What it is called in the table.
    pub(crate) name: &'static str,
    client: Pod,
    /// A pod beside the client, on the same path, that takes what it can get.
    greedy: Option<Pod>,
    /// The server's address, and what is added to the ports of its servers.
    host: String,
    port_offset: u16,
    near_proxies: Vec<u32>,
    far_proxies: Vec<u32>,
    servers: u32,
}

/// The clusters, their programs and the lanes through them.
pub(crate) struct Rig {
    /// Every cluster, whose daemons the memory rows look at, with the name of its lane.
    pub(crate) clusters: Vec<(&'static str, Cluster)>,
    programs: Vec<Process>,
    /// What is compared.
    pub(crate) lanes: Vec<Lane>,
}

/// How the relays' ports differ from the servers'.
const NEAR_RELAY: u16 = 1000;
const FAR_RELAY: u16 = 2000;
/// The servers that a relay stands in front of.
const RELAYED: [u16; 3] = [7000, 7001, 7002];

impl Rig {
    /// Builds the lanes `direct`, `relay`, `mesh`, `mesh-same-node`, and `peer` if a binary is given.
    pub(crate) fn build(congestion: Congestion, peer: Option<&Path>) -> Result<Rig> {
        let mut rig = Rig { clusters: Vec::new(), programs: Vec::new(), lanes: Vec::new() };
        rig.add_ours(congestion)?;
        if let Some(peer) = peer {
            rig.add_peer(congestion, peer.to_owned())?;
        }
        Ok(rig)
    }

    /// What the load tool and iperf3 say of the same wire, in MB/s.
    pub(crate) fn check_against_iperf3(&mut self, seconds: f64) -> Result<(f64, f64)> {
        let (_, cluster) = self.clusters.first().context("the rig has no cluster")?;
        let (client, server) = (cluster.pod("plain/client")?, cluster.pod("plain/server")?);
        let _iperf3 = server.iperf3()?;
        let host = server.ip4().to_string();
        // iperf3 takes whole seconds, and 0 for ever.
        let seconds = seconds.ceil().max(1.0).to_string();
        let report = client.load(
            "bulk",
            &format!("{host}:7001"),
            &["--direction=up", "--seconds", &seconds],
        )?;
        let said = client.ask(&["iperf3", "--client", &host, "--time", &seconds, "--json"])?;
        let said: serde_json::Value =
            serde_json::from_str(&said).context("reading iperf3's report")?;
        let bits = said["end"]["sum_received"]["bits_per_second"]
            .as_f64()
            .context("iperf3 received nothing")?;
        Ok((report.value, bits / 8e6))
    }

    fn add_ours(&mut self, congestion: Congestion) -> Result<()> {
        let cluster = description(congestion)
            .outside("plain")
            .pod(PodSpec::new("plain/client", "a"))
            .pod(PodSpec::new("plain/greedy", "a"))
            .pod(PodSpec::new("plain/server", "b"))
            .start()?;
        self.add_direct_and_relay(&cluster)?;
        let servers = self.serve(&cluster, "mesh/server")?;
        let near_servers = self.serve(&cluster, "mesh/near")?;
        let (a, b) = (cluster.daemon("a")?.process()?.pid(), cluster.daemon("b")?.process()?.pid());
        let (client, greedy) = (cluster.pod("mesh/client")?, cluster.pod("mesh/greedy")?);
        let host = |path| Ok::<String, anyhow::Error>(cluster.pod(path)?.ip4().to_string());
        let mesh = |name, path, far_proxies, servers| {
            let host = host(path)?;
            let near_proxies = vec![a];
            anyhow::Ok(Lane {
                name,
                client: client.clone(),
                greedy: Some(greedy.clone()),
                host,
                port_offset: 0,
                near_proxies,
                far_proxies,
                servers,
            })
        };
        self.lanes.push(mesh("mesh", "mesh/server", vec![b], servers)?);
        self.lanes.push(mesh("mesh-same-node", "mesh/near", Vec::new(), near_servers)?);
        self.clusters.push(("mesh", cluster));
        Ok(())
    }

    fn add_direct_and_relay(&mut self, cluster: &Cluster) -> Result<()> {
        let (client, server) =
            (cluster.pod("plain/client")?.clone(), cluster.pod("plain/server")?.clone());
        let servers = self.serve(cluster, "plain/server")?;
        let (near_ip, far_ip) = (client.ip4(), server.ip4());
        self.lanes.push(Lane {
            name: "direct",
            client: client.clone(),
            greedy: Some(cluster.pod("plain/greedy")?.clone()),
            host: far_ip.to_string(),
            port_offset: 0,
            near_proxies: Vec::new(),
            far_proxies: Vec::new(),
            servers,
        });
        let (mut near_proxies, mut far_proxies) = (Vec::new(), Vec::new());
        for port in RELAYED {
            far_proxies.push(self.relay(&server, port + FAR_RELAY, &format!("{far_ip}:{port}"))?);
            near_proxies.push(self.relay(
                &client,
                port + NEAR_RELAY,
                &format!("{far_ip}:{}", port + FAR_RELAY),
            )?);
        }
        let host = near_ip.to_string();
        let port_offset = NEAR_RELAY;
        self.lanes.push(Lane {
            name: "relay",
            client,
            greedy: None,
            host,
            port_offset,
            near_proxies,
            far_proxies,
            servers,
        });
        Ok(())
    }

    fn add_peer(&mut self, congestion: Congestion, binary: PathBuf) -> Result<()> {
        let cluster = description(congestion).daemon(binary).start()?;
        let servers = self.serve(&cluster, "mesh/server")?;
        self.lanes.push(Lane {
            name: "peer",
            client: cluster.pod("mesh/client")?.clone(),
            greedy: Some(cluster.pod("mesh/greedy")?.clone()),
            host: cluster.pod("mesh/server")?.ip4().to_string(),
            port_offset: 0,
            near_proxies: vec![cluster.daemon("a")?.process()?.pid()],
            far_proxies: vec![cluster.daemon("b")?.process()?.pid()],
            servers,
        });
        self.clusters.push(("peer", cluster));
        Ok(())
    }

    fn serve(&mut self, cluster: &Cluster, path: &str) -> Result<u32> {
        let servers = cluster.pod(path)?.load_servers()?;
        let pid = servers.pid();
        self.programs.push(servers);
        Ok(pid)
    }

    fn relay(&mut self, pod: &Pod, port: u16, to: &str) -> Result<u32> {
        let relay = binaries::ours("relay")?.display().to_string();
        let listen = format!("[::]:{port}");
        let mut process =
            pod.spawn(&format!("relay-{port}"), &[&relay, "--listen", &listen, "--to", to])?;
        process.wait_listening(port)?;
        let pid = process.pid();
        self.programs.push(process);
        Ok(pid)
    }
}

fn description(congestion: Congestion) -> testbed::Builder {
    let congestion_control = match congestion {
        Congestion::Reno => Some("reno".to_owned()),
        Congestion::Host => None,
    };
    // Without the limit on remembered ends, connections of earlier rows take the ports of later ones.
    let tcp = Tcp { congestion_control, remembered_ends: Some(64), ..Tcp::default() };
    Cluster::builder()
        .nodes(&["a", "b"])
        .ambient("mesh")
        .pod(PodSpec::new("mesh/client", "a"))
        .pod(PodSpec::new("mesh/greedy", "a"))
        .pod(PodSpec::new("mesh/near", "a"))
        .pod(PodSpec::new("mesh/server", "b"))
        .tcp(tcp)
}

impl Lane {
    /// Runs `load` once through this lane.
    pub(crate) fn measure(&self, load: &Load, seconds: f64) -> Result<Sample> {
        self.measure_beside(load, seconds, &[])
    }

    /// Runs `load` once while another pod floods this lane with bulk streams and new connections; nothing where there is
    /// no other pod.
    pub(crate) fn measure_flooded(&self, load: &Load, seconds: f64) -> Result<Option<Sample>> {
        let Some(greedy) = &self.greedy else { return Ok(None) };
        let tool = binaries::ours("load")?.display().to_string();
        let flood = |name: &str, job: &str, port: u16, option: &str| {
            let (to, option) = (format!("{}:{port}", self.host), option.to_owned());
            let words = [tool.as_str(), job, "--to", &to, "--seconds=60", &option];
            let direction: &[&str] = if job == "bulk" { &["--direction=up"] } else { &[] };
            greedy.spawn(name, &[&words, direction].concat())
        };
        let floods = [
            flood("flood-bulk", "bulk", 7001, "--streams=8")?,
            flood("flood-new", "crr", 7000, "--parallel=32")?,
        ];
        // Until it has used the CPU for a while, the flood has not begun.
        for flood in &floods {
            wait_for("the flood", PATIENCE, || {
                ensure!(flood.usage()?.cpu.as_millis() >= 50, "it has not begun");
                Ok(())
            })?;
        }
        let pids = floods.each_ref().map(Process::pid);
        self.measure_beside(load, seconds, &pids).map(Some)
    }

    fn measure_beside(&self, load: &Load, seconds: f64, others: &[u32]) -> Result<Sample> {
        self.place(load.placement)?;
        let proxies = [self.near_proxies.as_slice(), &self.far_proxies].concat();
        let tool = binaries::ours("load")?.display().to_string();
        let to = format!("{}:{}", self.host, load.port + self.port_offset);
        let seconds = format!("--seconds={seconds}");
        let words = [[&tool, load.job, "--to", &to, &seconds].as_slice(), load.options].concat();
        let others = [&[self.servers], others].concat();
        let before = Moment::now(&proxies, &others)?;
        let output = self.client.place().on_cpu(cpu_of_client(load.placement)).run(&words)?;
        let after = Moment::now(&proxies, &others)?;
        let said = testbed::command::text(&output.stdout);
        ensure!(output.status.success(), "{}", testbed::command::text(&output.stderr).trim());
        let report: Report =
            serde_json::from_str(&said).with_context(|| format!("reading the report {said:?}"))?;
        let client = std::time::Duration::from_secs_f64(report.cpu_s);
        Ok(Sample::new(load, report, before.until(&after, client)))
    }

    /// Moves the server and the proxies where the load wants them.
    fn place(&self, placement: Placement) -> Result<()> {
        let far = self.far_proxies.iter().chain([&self.servers]);
        let all = own_cpus()?;
        for (pids, pinned) in
            [(self.near_proxies.iter().collect::<Vec<_>>(), "0"), (far.collect(), "1")]
        {
            let cpus = match placement {
                Placement::Free => &all,
                Placement::Pinned => pinned,
            };
            for pid in pids {
                run("taskset", ["-a", "-c", "-p", cpus, &pid.to_string()])?;
            }
        }
        Ok(())
    }
}

fn cpu_of_client(placement: Placement) -> Option<u8> {
    match placement {
        Placement::Free => None,
        Placement::Pinned => Some(0),
    }
}
