//! Runs a node's daemon.
//!
//! In: a node's place and where its control plane is. Out: a running `ztunnel` (ours, or any binary in its place), which
//! pods can be registered with, which can be killed and started again on the same pins, and which can be asked what its
//! admin ports tell.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::command::text;
use crate::gate::make_folder;
use crate::place::Place;
use crate::pod::Pod;
use crate::process::Process;
use crate::wait::PATIENCE;

/// What a daemon needs to know to start.
#[derive(Clone, Debug)]
pub struct DaemonConfig {
    /// The binary.
    pub binary: PathBuf,
    /// The node's name in Kubernetes.
    pub node_name: String,
    /// The control plane.
    pub control_url: String,
    /// The control plane's root certificate.
    pub root_certificate: PathBuf,
    /// The node's join token.
    pub token: PathBuf,
    /// Where its kernel objects are pinned.
    pub pin_dir: PathBuf,
    /// The folder of its registered pods and its socket.
    pub state_dir: PathBuf,
    /// More environment.
    pub variables: Vec<(String, OsString)>,
}

/// The daemon of one node.
#[derive(Debug)]
pub struct Daemon {
    config: DaemonConfig,
    place: Place,
    process: Option<Process>,
}

impl Daemon {
    /// Starts the daemon and waits until it is ready.
    ///
    /// # Errors
    /// If it does not come up; its log is in the error.
    pub fn start(config: DaemonConfig, place: Place) -> Result<Daemon> {
        make_folder(&config.state_dir.join("pods"))?;
        let mut daemon = Daemon { config, place, process: None };
        daemon.restart()?;
        Ok(daemon)
    }

    /// Starts the daemon again if it does not run, and waits until it is ready.
    ///
    /// # Errors
    /// If it does not come up; its log is in the error.
    pub fn restart(&mut self) -> Result<()> {
        self.kill()?;
        let binary = self.config.binary.display().to_string();
        let variables = self.variables();
        let variables: Vec<(&str, OsString)> =
            variables.iter().map(|(key, value)| (key.as_str(), value.clone())).collect();
        let mut process = self.place.spawn(&self.config.node_name, &[&binary], &variables)?;
        let ready =
            process.wait_running("readiness", || self.get("http://127.0.0.1:15021/healthz/ready"));
        self.process = Some(process);
        ready.map(drop)
    }

    /// Starts one more process of it on the same pins and pods, with these settings over its own; as an upgrade does.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn beside(&self, settings: &[(&str, &str)]) -> Result<Process> {
        let variables = self.variables();
        let own = variables.iter().map(|(key, value)| (key.as_str(), value.clone()));
        let settings = settings.iter().map(|(key, value)| (*key, OsString::from(value)));
        let variables: Vec<(&str, OsString)> = own.chain(settings).collect();
        let name = format!("{}-newer", self.config.node_name);
        self.place.spawn(&name, &[&self.config.binary.display().to_string()], &variables)
    }

    /// Kills it (-9).
    ///
    /// # Errors
    /// If it cannot be waited for.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().map_or(Ok(()), |mut process| process.kill())
    }

    /// Asks it to end (SIGTERM) and waits until it has.
    ///
    /// # Errors
    /// If it does not end in time.
    pub fn stop(&mut self) -> Result<()> {
        let Some(mut process) = self.process.take() else { return Ok(()) };
        process.terminate().map(drop)
    }

    /// Runs [`Daemon::uninstallation`]: nothing of it may stay in the kernel.
    ///
    /// # Errors
    /// If it fails.
    pub fn uninstall(&self) -> Result<String> {
        let words = self.uninstallation();
        self.ask(&words.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// The command that uninstalls it, to be run on its node. Without its own folder it would act on the host's pins.
    pub fn uninstallation(&self) -> [String; 4] {
        let pins = format!("AQUIFER_PIN_DIR={}", self.config.pin_dir.display());
        ["env".to_owned(), pins, self.config.binary.display().to_string(), "uninstall".to_owned()]
    }

    /// Registers a pod; returns once its traffic is captured.
    ///
    /// # Errors
    /// If the daemon refuses.
    pub fn register(&self, pod: &Pod) -> Result<()> {
        self.request(&json!({ "add": pod.registration() }))
    }

    /// The socket that pods are registered at.
    pub fn socket(&self) -> PathBuf {
        self.config.state_dir.join("pods.sock")
    }

    /// The file of revocation lists it follows. It is not there at first.
    pub fn revocation_list(&self) -> PathBuf {
        self.config.state_dir.join("ca-crl.pem")
    }

    /// Takes a pod out of the mesh.
    ///
    /// # Errors
    /// If the daemon refuses.
    pub fn unregister(&self, pod: &Pod) -> Result<()> {
        self.request(&json!({ "remove": { "uid": pod.uid() } }))
    }

    /// The running process.
    ///
    /// # Errors
    /// If it has been killed or stopped.
    pub fn process(&self) -> Result<&Process> {
        self.process
            .as_ref()
            .with_context(|| format!("the daemon of {} does not run", self.config.node_name))
    }

    /// Everything the daemon has logged, over all its starts.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn log(&self) -> Result<String> {
        let path = self.place.logs.join(format!("{}.log", self.config.node_name));
        Ok(text(&fs::read(&path).with_context(|| format!("reading {}", path.display()))?))
    }

    /// Its metrics in text.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn metrics(&self) -> Result<String> {
        self.get("http://127.0.0.1:15020/metrics")
    }

    /// The sum of a metric over the series that carry all of `labels`, each written `name="value"`.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn metric(&self, name: &str, labels: &[&str]) -> Result<f64> {
        Ok(metric(&self.metrics()?, name, labels))
    }

    /// Its state.
    ///
    /// # Errors
    /// If it does not answer with JSON.
    pub fn config_dump(&self) -> Result<Value> {
        let text = self.get("http://127.0.0.1:15000/config_dump")?;
        serde_json::from_str(&text).context("reading the daemon's /config_dump")
    }

    /// A page of one of its ports.
    ///
    /// # Errors
    /// If it does not answer with success.
    pub fn get(&self, url: &str) -> Result<String> {
        self.ask(&["curl", "-sS", "--globoff", "--fail-with-body", "--max-time", "5", url])
    }

    /// Runs `words` on the node and gives what they said.
    ///
    /// # Errors
    /// If they do not succeed.
    pub fn ask(&self, words: &[&str]) -> Result<String> {
        let output = self.place.run(words)?;
        let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
        ensure!(
            output.status.success(),
            "`{}` on {}: {}",
            words.join(" "),
            self.config.node_name,
            said.trim()
        );
        Ok(text(&output.stdout))
    }

    /// Where its kernel objects are pinned.
    pub fn pin_dir(&self) -> &std::path::Path {
        &self.config.pin_dir
    }

    /// Where it runs.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Gives the next start another environment variable, in the place of one of that name.
    pub fn set_variable(&mut self, name: &str, value: &str) {
        self.config.variables.push((name.to_owned(), value.into()));
    }

    /// Has the next start run on one CPU, or on any.
    pub fn pin_to_cpu(&mut self, cpu: Option<u8>) {
        self.place.cpu = cpu;
    }

    fn request(&self, request: &Value) -> Result<()> {
        let path = self.socket();
        let mut stream = UnixStream::connect(&path)
            .with_context(|| format!("connecting to {}", path.display()))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(format!("{request}\n").as_bytes())?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).context("waiting for the daemon's answer")?;
        let answer: Value =
            serde_json::from_str(&line).with_context(|| format!("the daemon answered {line:?}"))?;
        ensure!(answer["ok"] == json!(true), "the daemon refused {request}: {}", answer["error"]);
        Ok(())
    }

    fn variables(&self) -> Vec<(String, OsString)> {
        let config = &self.config;
        let state = &config.state_dir;
        let own: [(&str, OsString); 14] = [
            ("XDS_ADDRESS", (&config.control_url).into()),
            ("CA_ADDRESS", (&config.control_url).into()),
            ("XDS_ROOT_CA", (&config.root_certificate).into()),
            ("CA_ROOT_CA", (&config.root_certificate).into()),
            ("AUTH_TOKEN", (&config.token).into()),
            ("NODE_NAME", (&config.node_name).into()),
            ("CLUSTER_ID", "Kubernetes".into()),
            ("AQUIFER_CGROUP", (&self.place.cgroup).into()),
            ("AQUIFER_PIN_DIR", (&config.pin_dir).into()),
            ("AQUIFER_POD_DIR", state.join("pods").into()),
            ("AQUIFER_POD_SOCKET", self.socket().into()),
            ("CRL_PATH", self.revocation_list().into()),
            ("CONNECTION_TERMINATION_DEADLINE", "2s".into()),
            ("RUST_LOG", "info".into()),
        ];
        let own = own.into_iter().map(|(key, value)| (key.to_owned(), value));
        own.chain(config.variables.iter().cloned()).collect()
    }
}

/// The sum of metric `name` over the series of `page` that carry all of `labels`.
fn metric(page: &str, name: &str, labels: &[&str]) -> f64 {
    let series = page.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let (set, value) = rest.rsplit_once(' ')?;
        let is_whole_name = set.is_empty() || set.starts_with('{');
        (is_whole_name && labels.iter().all(|label| set.contains(label))).then_some(value)
    });
    series.filter_map(|value| value.parse::<f64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_summed_over_the_series_with_the_labels() {
        let page = "# TYPE a counter\na_total{x=\"1\",y=\"2\"} 3\na_total{x=\"1\",y=\"3\"} 4\na_total_more{x=\"1\"} 9\nb 5\n";
        assert!((metric(page, "a_total", &["x=\"1\""]) - 7.0).abs() < f64::EPSILON);
        assert!((metric(page, "a_total", &["x=\"1\"", "y=\"3\""]) - 4.0).abs() < f64::EPSILON);
        assert!((metric(page, "b", &[]) - 5.0).abs() < f64::EPSILON);
        assert!(metric(page, "c", &[]).abs() < f64::EPSILON);
    }
}
