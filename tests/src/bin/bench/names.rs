//! How long a pod waits for the addresses of a name.
//!
//! In: how often and how long to ask. Out: rows like those of the loads: a service's name answered by the mesh, a name
//! passed on by it, and the same name asked of dnsmasq directly, one after the other in each round.

use anyhow::{Context as _, Result};
use testbed::{Cluster, PodSpec, ServiceSpec};

use crate::load_rows::{Load, Per, Placement};
use crate::machine::Moment;
use crate::sample::{Row, Sample};

/// What is asked, by whom.
const QUESTIONS: [(&str, &str, &str); 3] = [
    ("direct", "plain/client", "www.outside.test"),
    ("mesh, forwarded", "mesh/client", "www.outside.test"),
    ("mesh", "mesh/client", "server.mesh.svc.cluster.local"),
];

const LOAD: Load = Load {
    name: "dns",
    job: "names",
    port: 53,
    options: &[],
    placement: Placement::Free,
    per: Per::Operation,
};

/// Builds a cluster with a DNS server beside the client, and asks.
pub(crate) fn measure(rounds: usize, seconds: f64) -> Result<Vec<Row>> {
    let cluster = Cluster::builder()
        .nodes(&["a"])
        .ambient("mesh")
        .outside("plain")
        .pod(PodSpec::new("mesh/client", "a"))
        .pod(PodSpec::new("mesh/server", "a"))
        .pod(PodSpec::new("plain/client", "a"))
        .pod(PodSpec::new("plain/dns", "a"))
        .service(ServiceSpec::new("mesh/server").port(80, 80))
        .dns_server("plain/dns")
        .start()?;
    let server = cluster.pod("plain/dns")?;
    let mut dnsmasq = server.dnsmasq(&["--host-record=www.outside.test,192.0.2.7"])?;
    let daemon = cluster.daemon("a")?.process()?.pid();
    let to = format!("{}:53", server.ip4());
    let seconds = format!("--seconds={seconds}");
    let mut samples = QUESTIONS.map(|_| Vec::new());
    for _ in 0..rounds {
        for ((path, client, name), samples) in QUESTIONS.iter().zip(&mut samples) {
            let proxies: &[u32] = if *path == "direct" { &[] } else { &[daemon] };
            let servers = [dnsmasq.pid()];
            let before = Moment::now(proxies, &servers)?;
            let report = cluster.pod(client)?.load(LOAD.job, &to, &["--name", name, &seconds])?;
            let after = Moment::now(proxies, &servers)?;
            let client = std::time::Duration::from_secs_f64(report.cpu_s);
            samples.push(Sample::new(&LOAD, report, before.until(&after, client)));
        }
    }
    dnsmasq.kill().context("ending dnsmasq")?;
    let rows = QUESTIONS.iter().zip(&samples);
    Ok(rows.map(|((path, ..), samples)| Row::of(path, &LOAD, "", samples)).collect())
}
