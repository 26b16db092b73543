//! A pilot that runs, and when it is ready.

use std::{
    collections::HashMap,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{
    folder::{self, A_HUNDRED_THOUSAND, Size, TEN_THOUSAND},
    row::{Row, milliseconds},
};

const PILOT: &str = env!("CARGO_BIN_EXE_pilot");
/// Far more than anything here takes.
const LONG: Duration = Duration::from_secs(120);

/// Ended when dropped.
pub(crate) struct Pilot {
    process: Child,
    dir: tempfile::TempDir,
    /// By what is served there: `tls`, `plain`, `debug`.
    pub(crate) addresses: HashMap<String, String>,
}

impl Drop for Pilot {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

impl Pilot {
    /// One that has such a mesh, and how long it took to be ready.
    pub(crate) fn start(size: Size) -> Result<(Self, Duration)> {
        let dir = tempfile::tempdir()?;
        fs::create_dir(dir.path().join("mesh"))?;
        folder::write(size, &dir.path().join("mesh"))?;
        let begun = Instant::now();
        let mut process = Command::new(PILOT)
            .args(["serve", "--listen-tls", "127.0.0.1:0", "--listen-plain", "127.0.0.1:0"])
            .args(["--listen-debug", "127.0.0.1:0", "--log", "info"])
            .arg("--folder")
            .arg(dir.path().join("mesh"))
            .arg("--data")
            .arg(dir.path().join("data"))
            .stdout(Stdio::piped())
            .spawn()?;
        let mut lines = BufReader::new(process.stdout.take().context("no output")?).lines();
        let mut addresses = HashMap::new();
        while addresses.len() < 3 {
            let line = lines.next().context("pilot ended")??;
            let value = |key: &str| {
                let (_, rest) = line.split_once(key)?;
                Some(rest.split(['"', '\t', ' ']).find(|word| !word.is_empty())?.to_owned())
            };
            if let (Some(what), Some(address)) = (value("what="), value("address=")) {
                addresses.insert(what, address);
            }
        }
        // A pipe that nobody empties would stop pilot.
        thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        let pilot = Self { process, dir, addresses };
        while !pilot.ask("/ready")?.starts_with("HTTP/1.1 200") {
            if begun.elapsed() > LONG {
                bail!("not ready: {}", pilot.ask("/debug/config")?);
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok((pilot, begun.elapsed()))
    }

    /// Where its manifests are.
    pub(crate) fn folder(&self) -> PathBuf {
        self.dir.path().join("mesh")
    }

    /// Where its keys are.
    pub(crate) fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// What another command of the same program says.
    pub(crate) fn said(&self, arguments: &[&str]) -> Result<String> {
        let output = Command::new(PILOT).args(arguments).arg("--data").arg(self.data()).output()?;
        anyhow::ensure!(output.status.success(), "{output:?}");
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    /// Processor time used so far.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.process.id()))?;
        let (_, after_name) = stat.rsplit_once(')').context("no name")?;
        // proc_pid_stat(5): utime and stime are fields 14 and 15, in hundredths of a second; the name is field 2.
        let ticks = after_name.split_whitespace().skip(11).take(2).map(str::parse::<u64>);
        Ok(Duration::from_millis(ticks.sum::<Result<u64, _>>()? * 10))
    }

    /// Resident memory: what it is now, and the most it was.
    fn memory(&self) -> Result<(u64, u64)> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let megabytes = |key: &str| -> Result<u64> {
            let line = status.lines().find(|line| line.starts_with(key)).context("no memory")?;
            let kilobytes = line.split_whitespace().nth(1).context("no number")?;
            Ok(kilobytes.parse::<u64>()? * 1024 / 1_000_000)
        };
        Ok((megabytes("VmRSS:")?, megabytes("VmHWM:")?))
    }

    fn ask(&self, path: &str) -> Result<String> {
        let mut tcp = TcpStream::connect(&self.addresses["debug"])?;
        write!(tcp, "GET {path} HTTP/1.1\r\nhost: pilot\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        tcp.read_to_string(&mut answer)?;
        Ok(answer)
    }
}

/// Replaces a file as careful programs do.
pub(crate) fn replace(path: &Path, text: &str) -> Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, text)?;
    fs::rename(new, path)?;
    Ok(())
}

/// 1,000 services, 10,000 pods, 500 policies, 300 routes.
pub(crate) fn ready_of_ten_thousand() -> Result<Vec<Row>> {
    ready("10,000 pods", TEN_THOUSAND, ["3 s", "200 MB"])
}

/// Ten times the pods.
pub(crate) fn ready_of_a_hundred_thousand() -> Result<Vec<Row>> {
    ready("100,000 pods", A_HUNDRED_THOUSAND, ["20 s", "1 GB"])
}

fn ready(what: &str, size: Size, goals: [&'static str; 2]) -> Result<Vec<Row>> {
    let (pilot, time) = Pilot::start(size)?;
    let (now, most) = pilot.memory()?;
    Ok(vec![
        Row::once(format!("{what}: ready"), milliseconds(time), goals[0]),
        Row::once(
            format!("{what}: memory, and the most of it"),
            format!("{now}, {most} MB"),
            goals[1],
        ),
    ])
}
