//! The cluster that most tests use, and how they ask who gets through.
//!
//! `shop/web` and `shop/near` are on node a, `shop/cart` is on node b, `data/batch` is another namespace's, and
//! `street/stranger` is not in the mesh. The load tool's servers run in `near` and `cart`.

use std::time::Duration;

use anyhow::{Result, ensure};
use testbed::{Builder, Cluster, Pod, PodSpec, Process, ServiceSpec, wait_for};

use crate::privilege;

/// A change of configuration must be in force after this long, beside a compiler and other tests.
pub(crate) const IN_FORCE: Duration = Duration::from_secs(10);

/// The cluster and what runs in it.
pub(crate) struct Shop {
    pub(crate) cluster: Cluster,
    servers: Vec<Process>,
}

/// Whether a connection got to the application.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Answer {
    Served,
    Refused,
}

/// The shop, before it is built.
pub(crate) fn description() -> Builder {
    Cluster::builder()
        .nodes(&["a", "b"])
        .ambient("shop")
        .ambient("data")
        .outside("street")
        .pod(PodSpec::new("shop/web", "a"))
        .pod(PodSpec::new("shop/near", "a"))
        .pod(PodSpec::new("shop/cart", "b"))
        .pod(PodSpec::new("data/batch", "a"))
        .pod(PodSpec::new("street/stranger", "a"))
        .service(ServiceSpec::new("shop/cart").port(7000, 7000).port(80, 7000))
        .service(ServiceSpec::new("shop/near").port(7000, 7000))
}

impl Shop {
    /// The shop, or nothing where end-to-end tests cannot run.
    pub(crate) fn open() -> Option<Shop> {
        Shop::of(description())
    }

    /// As [`Shop::open`], with a description that builds on [`description`].
    pub(crate) fn of(description: Builder) -> Option<Shop> {
        if !privilege::granted() {
            return None;
        }
        let cluster = description.start().unwrap();
        let servers = ["shop/near", "shop/cart"]
            .map(|path| cluster.pod(path).unwrap().load_servers().unwrap());
        Some(Shop { cluster, servers: servers.into() })
    }

    /// Pod `namespace/name`.
    pub(crate) fn pod(&self, path: &str) -> &Pod {
        self.cluster.pod(path).unwrap()
    }

    /// Starts the servers in one more pod.
    pub(crate) fn serve(&mut self, path: &str) {
        let servers = self.pod(path).load_servers().unwrap();
        self.servers.push(servers);
    }

    /// Tries one connection with one exchange from pod `from` to `to`.
    pub(crate) fn attempt(&self, from: &str, to: &str) -> Result<()> {
        let report = self.pod(from).load("rr", to, &["--seconds", "0"])?;
        ensure!(report.errors == 0, "{}", report.first_error.unwrap_or_default());
        Ok(())
    }

    /// Makes requests from pod `from` for an hour; the process ends when the connection is cut.
    pub(crate) fn hold(&self, from: &str, to: &str) -> Process {
        let load = testbed::binaries::ours("load").unwrap().display().to_string();
        let words = [&load, "rr", "--seconds", "3600", "--to", to];
        self.pod(from).spawn("held", &words).unwrap()
    }

    /// Waits until each of `expected` is so; all at once, since one change may not pass for another.
    pub(crate) fn expect(&self, to: &str, expected: &[(&str, Answer)]) {
        let answers = || {
            let answer = |from| {
                if self.attempt(from, to).is_ok() { Answer::Served } else { Answer::Refused }
            };
            expected.iter().map(|(from, _)| (*from, answer(from))).collect::<Vec<_>>()
        };
        wait_for(&format!("{expected:?}"), IN_FORCE, || {
            let found = answers();
            ensure!(found == expected, "found {found:?}");
            Ok(())
        })
        .unwrap();
    }
}
