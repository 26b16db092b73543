//! Watches a program that runs, and ends it.
//!
//! In: what [`Place::spawn`](crate::place::Place::spawn) started. Out: its log, its use of CPU and memory, and its end. A process
//! that is dropped is killed with its children. What it says is in a file, so that nobody must read a pipe.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use crate::command::run;
use crate::wait::{PATIENCE, wait_for};

/// A program that runs until it is told to end.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

/// What a process has used so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// User and system time of all its threads.
    pub cpu: Duration,
    /// Memory that is resident.
    pub resident_bytes: u64,
}

impl Process {
    pub(crate) fn new(name: &str, child: Child, log: PathBuf) -> Process {
        Process { name: name.to_owned(), child, log }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where its log is.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// What it has said so far.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn log(&self) -> Result<String> {
        let bytes =
            fs::read(&self.log).with_context(|| format!("reading {}", self.log.display()))?;
        Ok(crate::command::text(&bytes))
    }

    /// Fails if it has ended, with the end of its log.
    ///
    /// # Errors
    /// As said.
    pub fn check_running(&mut self) -> Result<()> {
        let Some(status) = self.child.try_wait()? else { return Ok(()) };
        let log = self.log()?;
        let last: Vec<&str> = log.lines().rev().take(12).collect();
        let last: Vec<&str> = last.into_iter().rev().collect();
        bail!("{} ended with {status}; its log ends:\n  {}", self.name, last.join("\n  "))
    }

    /// Waits until something listens on TCP port `port` in its namespace.
    ///
    /// # Errors
    /// If it ends, or does not listen in time.
    pub fn wait_listening(&mut self, port: u16) -> Result<()> {
        let pid = self.pid();
        self.wait_running(&format!("port {port} to be listened on"), || {
            ensure!(listens(pid, port)?, "nothing listens there");
            Ok(())
        })
    }

    /// Waits for `check`, but not longer than the process lives.
    ///
    /// # Errors
    /// If it ends, or `check` does not succeed in time.
    pub fn wait_running<T>(
        &mut self,
        what: &str,
        mut check: impl FnMut() -> Result<T>,
    ) -> Result<T> {
        let what = format!("{what} ({})", self.name);
        // The outer result ends an attempt, the inner one the wait.
        wait_for(&what, PATIENCE, || match check() {
            Ok(value) => Ok(Ok(value)),
            Err(missed) => match self.check_running() {
                Ok(()) => Err(missed),
                Err(ended) => Ok(Err(ended)),
            },
        })?
    }

    /// Kills it with its children (-9) and waits for its end.
    ///
    /// # Errors
    /// If it cannot be waited for.
    pub fn kill(&mut self) -> Result<()> {
        if self.child.try_wait()?.is_none() {
            signal("KILL", self.pid())?;
            self.child.wait()?;
        }
        Ok(())
    }

    /// Asks it to end (SIGTERM) and waits until it has.
    ///
    /// # Errors
    /// If it does not end in time.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        signal("TERM", self.pid())?;
        let what = format!("{} to end after SIGTERM", self.name);
        wait_for(&what, PATIENCE, || self.child.try_wait()?.context("it still runs"))
    }

    /// What it has used so far.
    ///
    /// # Errors
    /// If it has ended.
    pub fn usage(&self) -> Result<Usage> {
        usage(self.pid())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The cluster's cgroup is the second net under this one.
        let _ = self.kill();
    }
}

/// What process `pid` has used so far.
///
/// # Errors
/// If there is none.
pub fn usage(pid: u32) -> Result<Usage> {
    let read = |file: &str| {
        fs::read_to_string(format!("/proc/{pid}/{file}")).with_context(|| format!("process {pid}"))
    };
    let resident_kib: u64 = field(&read("status")?, "VmRSS:").unwrap_or(0);
    Ok(Usage { cpu: cpu_time(&read("stat")?)?, resident_bytes: resident_kib * 1024 })
}

/// Sends a signal to a process and its children, which share its group.
fn signal(name: &str, pid: u32) -> Result<()> {
    run("kill", [format!("-{name}"), "--".to_owned(), format!("-{pid}")]).map(drop)
}

/// User and system time of a line of `/proc/PID/stat`: its 14th and 15th field, in hundredths of a second.
fn cpu_time(stat: &str) -> Result<Duration> {
    // The second field, the program's name, is in parentheses and may hold spaces.
    let (_, fields) = stat.rsplit_once(") ").context("a stat line without a name")?;
    let ticks: Vec<u64> =
        fields.split(' ').skip(11).take(2).map(str::parse).collect::<Result<_, _>>()?;
    Ok(Duration::from_millis(ticks.iter().sum::<u64>() * 10))
}

fn field(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Whether a TCP socket listens on `port` in the network namespace of `pid`.
fn listens(pid: u32, port: u16) -> Result<bool> {
    for table in ["tcp", "tcp6"] {
        let text = fs::read_to_string(format!("/proc/{pid}/net/{table}"))?;
        if text.lines().skip(1).any(|line| listening_port(line) == Some(port)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The port of a line of `/proc/net/tcp` if its state is LISTEN.
fn listening_port(line: &str) -> Option<u16> {
    let mut fields = line.split_whitespace().skip(1);
    let (_, port) = fields.next()?.rsplit_once(':')?;
    let is_listening = fields.nth(1)? == "0A";
    u16::from_str_radix(port, 16).ok().filter(|_| is_listening)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_read_past_a_name_with_spaces_and_parentheses() {
        let stat = "42 (a (b) c) S 1 42 42 0 -1 4194560 1 2 3 4 150 50 0 0 20 0 3 0 1 2 3";
        assert_eq!(cpu_time(stat).unwrap(), Duration::from_secs(2));
    }

    #[test]
    fn only_listening_sockets_count() {
        let row = |state| {
            format!("   0: 00000000:1F90 00000000:0000 {state} 00000000:00000000 00:00000000 0 0")
        };
        assert_eq!(listening_port(&row("0A")), Some(8080));
        assert_eq!(listening_port(&row("01")), None);
    }

    #[test]
    fn resident_memory_is_read_in_kibibytes() {
        assert_eq!(field("VmPeak:\t 9 kB\nVmRSS:\t  1234 kB\n", "VmRSS:"), Some(1234));
    }
}
