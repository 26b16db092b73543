//! Runs programs in a namespace and a cgroup.
//!
//! In: a [`Place`] and a command line. Out: what the program said at its end, or a [`Process`] to watch. The way in is a
//! script, which a person can use as well: `/run/aquifer-1/in/shop-web curl http://10.1.2.2/`.

use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result};

use crate::command::{command_line, output};
use crate::gate::{make_folder, step};
use crate::plan::Plan;
use crate::process::Process;
use crate::teardown::cgroup_root;

/// Where a program runs.
#[derive(Clone, Debug)]
pub struct Place {
    /// The path of its network namespace.
    pub netns: PathBuf,
    /// The cgroup v2 folder it is put into.
    pub cgroup: PathBuf,
    /// The folder its log goes to.
    pub logs: PathBuf,
    /// The script that runs a command here.
    pub enter: PathBuf,
    /// The one CPU it runs on, or any.
    pub cpu: Option<u8>,
}

impl Place {
    /// The namespace of `part`, with programs in cgroup `group` of the cluster's.
    ///
    /// # Errors
    /// If the cgroup or the script cannot be made.
    pub fn new(plan: Plan, part: &str, group: &str) -> Result<Place> {
        let netns = PathBuf::from(format!("/run/netns/{}", plan.netns(part)));
        let cgroup = cgroup_root()?.join(plan.cgroup_name()).join(group);
        make_folder(&cgroup)?;
        let enter = plan.dir().join("in").join(part);
        // `nsenter` and not `ip netns exec`, which would hide the cgroup and BPF file systems behind a fresh `/sys`.
        // Each step becomes the next, so the program has the id of the process that was started.
        let script = format!(
            "#!/bin/sh\n\
             # Runs a command in the namespace of {part}, in the cgroup that a daemon captures.\n\
             echo $$ > {cgroup}/cgroup.procs && ulimit -n \"$(ulimit -H -n)\" && exec nsenter --net={netns} \"$@\"\n",
            cgroup = cgroup.display(),
            netns = netns.display()
        );
        fs::write(&enter, script).with_context(|| format!("writing {}", enter.display()))?;
        fs::set_permissions(&enter, Permissions::from_mode(0o755))?;
        Ok(Place { netns, cgroup, logs: plan.dir().join("logs"), enter, cpu: None })
    }

    /// Has the programs see `resolv_conf` as theirs.
    ///
    /// # Errors
    /// If the script cannot be written.
    pub fn resolve_by(&self, resolv_conf: &Path) -> Result<()> {
        let script = fs::read_to_string(&self.enter)?;
        // What is unmounted elsewhere goes here too: else a program would keep the namespaces of other pods alive.
        let own_mounts = format!(
            "exec unshare --mount --propagation slave sh -c \
             'mount --bind {} /etc/resolv.conf && exec \"$@\"' sh nsenter",
            resolv_conf.display()
        );
        let script = script.replacen("exec nsenter", &own_mounts, 1);
        fs::write(&self.enter, script).with_context(|| format!("writing {}", self.enter.display()))
    }

    /// The same place, on one CPU or on any.
    #[must_use]
    pub fn on_cpu(&self, cpu: Option<u8>) -> Place {
        Place { cpu, ..self.clone() }
    }

    /// Runs `words` to their end; an unsuccessful end is not an error.
    ///
    /// # Errors
    /// If the program cannot be started.
    pub fn run(&self, words: &[&str]) -> Result<Output> {
        self.feed(words, "")
    }

    /// Runs `words` to their end with `input` on standard input.
    ///
    /// # Errors
    /// If the program cannot be started.
    pub fn feed(&self, words: &[&str], input: &str) -> Result<Output> {
        output(self.command(words), input)
    }

    /// Starts `words` with environment `variables`; its log is `name`.log.
    ///
    /// # Errors
    /// If the program cannot be started.
    pub fn spawn(
        &self,
        name: &str,
        words: &[&str],
        variables: &[(&str, OsString)],
    ) -> Result<Process> {
        let log = self.logs.join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log);
        let file = file.with_context(|| format!("opening {}", log.display()))?;
        let _step = step();
        let mut command = self.command(words);
        command.envs(variables.iter().map(|(key, value)| (key, value)));
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let child =
            command.spawn().with_context(|| format!("starting `{}`", command_line(&command)))?;
        Ok(Process::new(name, child, log))
    }

    /// The command that becomes `words` here.
    pub fn command(&self, words: &[&str]) -> Command {
        // The shell reads the script: executing it fails while another thread's child still has it open from its writing.
        let mut command = Command::new("sh");
        command.arg(&self.enter);
        if let Some(cpu) = self.cpu {
            command.args(["taskset", "-c", &cpu.to_string()]);
        }
        command.args(words);
        // ^C on the terminal is for the testbed alone: it ends its processes in its own order.
        command.process_group(0);
        command
    }

    /// What a person would type to run `words` here.
    pub fn shown(&self, words: &[&str]) -> String {
        let quoted = words.iter().map(|word| {
            let is_plain = word
                .chars()
                .all(|sign| sign.is_ascii_alphanumeric() || "-_./:=@%+,".contains(sign));
            if is_plain && !word.is_empty() { (*word).to_owned() } else { format!("'{word}'") }
        });
        format!("{} {}", self.enter.display(), quoted.collect::<Vec<_>>().join(" "))
    }
}
