//! Who plays in the demo: two nodes, ten pods, six services, and the programs in them.
//!
//! In: nothing. Out: a [`Cast`]: the cluster and its programs, and how a command of a pod is shown and run.

use anyhow::{Context as _, Result, bail};
use testbed::cluster::FABRIC;
use testbed::command::text;
use testbed::{Cluster, Pod, PodSpec, Process, ServiceSpec};

/// The text that must not be seen on the wire.
pub(crate) const SECRET: &str = "the-price-of-the-cart-is-42";

/// The cluster, and what runs in it.
pub(crate) struct Cast {
    /// The cluster.
    pub(crate) cluster: Cluster,
    programs: Vec<Process>,
}

impl Cast {
    /// Builds the cluster and starts every program.
    ///
    /// # Errors
    /// If a part does not come up.
    pub(crate) fn assemble() -> Result<Cast> {
        let cluster = Cluster::builder()
            .nodes(&["a", "b"])
            .ambient("shop")
            .ambient("data")
            .outside("street")
            .pod(PodSpec::new("shop/web", "a"))
            .pod(PodSpec::new("shop/pricing", "a"))
            .pod(PodSpec::new("shop/cart", "b"))
            .pod(PodSpec::new("data/batch", "a"))
            .pod(PodSpec::new("data/redis", "b"))
            .pod(PodSpec::new("data/meter", "b"))
            .pod(PodSpec::new("data/echo", "b"))
            .pod(PodSpec::new("street/stranger", "a"))
            .pod(PodSpec::new("street/dns", "b"))
            .pod(PodSpec::new("shop/waypoint", "b").waypoint("waypoint"))
            .service(ServiceSpec::new("shop/cart").http_port(80, 80))
            // There is no such waypoint at first, and it is reached without one.
            .service(ServiceSpec::new("shop/pricing").http_port(80, 80).guarded_by("waypoint"))
            .service(ServiceSpec::new("shop/waypoint").port(15008, 15008))
            .service(ServiceSpec::new("data/redis").port(6379, 6379))
            .service(ServiceSpec::new("data/meter").port(5201, 5201))
            .service(ServiceSpec::new("data/echo").port(7, 7))
            .dns_server("street/dns")
            .start()?;
        let programs = vec![
            // It knows nothing of the cluster: names of services are the mesh's.
            cluster.pod("street/dns")?.dnsmasq(&[
                "--local=/cluster.local/",
                "--host-record=www.outside.test,192.0.2.7",
            ])?,
            cluster.pod("shop/cart")?.nginx(SECRET)?,
            cluster.pod("shop/pricing")?.nginx("the-prices-of-today")?,
            cluster.pod("street/stranger")?.nginx("a-page-of-the-street")?,
            cluster.pod("data/redis")?.redis()?,
            cluster.pod("data/meter")?.iperf3()?,
            cluster.pod("data/meter")?.load_servers()?,
            cluster.pod("data/echo")?.echo()?,
        ];
        Ok(Cast { cluster, programs })
    }

    /// A pod of the cast.
    ///
    /// # Errors
    /// If it has gone.
    pub(crate) fn pod(&self, path: &str) -> Result<&Pod> {
        self.cluster.pod(path)
    }

    /// What a person would type to run `words` in pod `path`.
    pub(crate) fn shown(&self, path: &str, words: &[&str]) -> String {
        self.pod(path).map_or_else(|error| error.to_string(), |pod| pod.place().shown(words))
    }

    /// What a person would type to see, from then on, the packets between the nodes that match `filter`.
    ///
    /// # Errors
    /// If there is no way to the fabric.
    pub(crate) fn watch(&self, filter: &str) -> Result<String> {
        let words = ["tcpdump", "-l", "-n", "-A", "-i", FABRIC, filter];
        Ok(format!("{} &", self.cluster.fabric()?.shown(&words)))
    }

    /// Runs `words` in pod `path`; they must succeed.
    ///
    /// # Errors
    /// If they do not.
    pub(crate) fn ask(&self, path: &str, words: &[&str]) -> Result<String> {
        self.pod(path)?.ask(words)
    }

    /// Runs `words` in pod `path`; they must fail, and what they say is given.
    ///
    /// # Errors
    /// If they succeed.
    pub(crate) fn refused(&self, path: &str, words: &[&str]) -> Result<String> {
        let output = self.pod(path)?.run(words)?;
        if output.status.success() {
            bail!("it went through: {}", text(&output.stdout).trim());
        }
        text(&output.stderr).lines().last().map(str::to_owned).context("it failed without a word")
    }

    /// Leaves everything up when the demo ends.
    ///
    /// # Errors
    /// If the cluster cannot be marked as kept.
    pub(crate) fn keep(self) -> Result<()> {
        std::mem::forget(self.programs);
        self.cluster.keep()
    }
}
