//! Who used the machine's CPUs.
//!
//! In: processes of ours, at two moments. Out: what they used in between, and what others used, which spoils a measurement.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use testbed::process::usage;

/// Above this many cores of other people's work a measurement is dropped.
pub(crate) const FOREIGN_LIMIT: f64 = 0.2;

/// One moment.
pub(crate) struct Moment {
    at: Instant,
    busy: Duration,
    proxies: Duration,
    others_of_ours: Duration,
}

/// What happened between two moments.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Between {
    /// CPU time of the proxies.
    pub(crate) proxies: Duration,
    /// Cores that were busy with neither our processes nor the kernel's interrupts.
    pub(crate) foreign_cores: f64,
}

impl Moment {
    /// Takes the time and the use so far of `proxies` and of our `others`, this process among them.
    pub(crate) fn now(proxies: &[u32], others: &[u32]) -> Result<Moment> {
        let sum =
            |pids: &[u32]| pids.iter().map(|pid| Ok(usage(*pid)?.cpu)).sum::<Result<Duration>>();
        let stat = fs::read_to_string("/proc/stat").context("reading /proc/stat")?;
        let busy = busy(&stat).context("/proc/stat has no line for all CPUs")?;
        let this = usage(std::process::id())?.cpu;
        Ok(Moment {
            at: Instant::now(),
            busy,
            proxies: sum(proxies)?,
            others_of_ours: sum(others)? + this,
        })
    }

    /// What was used since; `client` is the use of a process that began and ended in between.
    pub(crate) fn until(&self, later: &Moment, client: Duration) -> Between {
        let proxies = later.proxies.saturating_sub(self.proxies);
        let ours = proxies + later.others_of_ours.saturating_sub(self.others_of_ours) + client;
        let foreign = later.busy.saturating_sub(self.busy).saturating_sub(ours);
        Between {
            proxies,
            foreign_cores: foreign.as_secs_f64() / (later.at - self.at).as_secs_f64(),
        }
    }
}

/// The CPUs this process may use, as `taskset -c` takes them: `0-3,6`.
pub(crate) fn own_cpus() -> Result<String> {
    let status =
        fs::read_to_string("/proc/self/status").context("reading this process's status")?;
    Ok(allowed(&status).context("the status has no list of CPUs")?.to_owned())
}

fn allowed(status: &str) -> Option<&str> {
    status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).map(str::trim)
}

/// The time all CPUs spent in processes: user, nice and system, in hundredths of a second. Interrupts belong to nobody.
fn busy(stat: &str) -> Option<Duration> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks =
        line.split_whitespace().take(3).map(str::parse::<u64>).sum::<Result<u64, _>>().ok()?;
    Some(Duration::from_millis(ticks * 10))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_time_is_counted_and_interrupts_are_not() {
        let stat = "cpu  100 20 30 4000 5 600 700 8 0 0\ncpu0 1 2 3 4 5 6 7 8 0 0\n";
        assert_eq!(busy(stat), Some(Duration::from_millis(1500)));
    }

    #[test]
    fn the_list_of_cpus_is_as_the_kernel_writes_it() {
        let status = "Name:\tbench\nCpus_allowed:\t4f\nCpus_allowed_list:\t0-3,6\n";
        assert_eq!(allowed(status), Some("0-3,6"));
    }

    #[test]
    fn what_no_process_of_ours_used_is_foreign() {
        let at = Instant::now();
        let moment = |seconds, busy, proxies, others| Moment {
            at: at + Duration::from_secs(seconds),
            busy: Duration::from_secs(busy),
            proxies: Duration::from_secs(proxies),
            others_of_ours: Duration::from_secs(others),
        };
        let between = moment(0, 10, 2, 1).until(&moment(2, 14, 3, 2), Duration::from_secs(1));
        assert_eq!(between.proxies, Duration::from_secs(1));
        assert!((between.foreign_cores - 0.5).abs() < 1e-9);
    }
}
