//! Addresses of workloads that have only a name, as the node's own resolver tells them.
//!
//! In: a name. Out: all its addresses, those of the dialed family first. What was told is remembered for a short time, and
//! used for longer where the resolver fails: the system's interface tells no lifetimes.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use mesh::telemetry::{self, Failure, Party, Reason};
use tokio::time::timeout;

/// An answer is used this long without asking again.
const FRESH: Duration = Duration::from_secs(10);
/// And this long where asking again fails.
const USABLE: Duration = Duration::from_secs(300);
/// A resolver that is silent for longer has failed.
const LIMIT: Duration = Duration::from_secs(5);
/// Names that are remembered; past it all that are not fresh are forgotten, or all.
const NAMES: usize = 4096;
/// Addresses of one name that are tried.
const ADDRESSES: usize = 8;

/// Names that were resolved. Shared by data threads.
#[derive(Debug, Default)]
pub struct Names {
    answers: Mutex<Answers>,
}

#[derive(Debug, Default)]
struct Answers {
    by_name: HashMap<Arc<str>, Answer>,
}

#[derive(Clone, Debug)]
struct Answer {
    told_at: Instant,
    addresses: Arc<[IpAddr]>,
}

impl Names {
    /// The addresses of a name, of which there is at least one; those of the family of `like` first.
    pub(super) async fn resolve(
        &self,
        host: &Arc<str>,
        like: IpAddr,
        source: &Party,
    ) -> Result<Vec<IpAddr>, Failure> {
        let known = self.lock(|answers| answers.known(Instant::now(), host));
        if let Some(answer) = &known
            && answer.told_at.elapsed() < FRESH
        {
            return Ok(ordered(&answer.addresses, like));
        }
        telemetry::resolved_on_demand(source, host);
        match ask(host).await {
            Ok(addresses) => {
                let found = ordered(&addresses, like);
                let answer = Answer { told_at: Instant::now(), addresses };
                self.lock(|answers| answers.put(host, answer));
                Ok(found)
            }
            Err(error) => match known {
                Some(answer) => {
                    tracing::debug!(%host, %error, "a name is used as it was told before");
                    Ok(ordered(&answer.addresses, like))
                }
                None => {
                    let error = format!("resolving {host}: {error}");
                    Err(Failure { reason: Reason::DialFailed, error })
                }
            },
        }
    }

    fn lock<T>(&self, act: impl FnOnce(&mut Answers) -> T) -> T {
        act(&mut self.answers.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Answers {
    fn known(&self, now: Instant, host: &str) -> Option<Answer> {
        let answer = self.by_name.get(host)?;
        (now.duration_since(answer.told_at) < USABLE).then(|| answer.clone())
    }

    fn put(&mut self, host: &Arc<str>, answer: Answer) {
        let now = answer.told_at;
        if self.by_name.len() >= NAMES && !self.by_name.contains_key(host) {
            self.by_name.retain(|_, held| now.duration_since(held.told_at) < FRESH);
        }
        if self.by_name.len() >= NAMES {
            self.by_name.clear();
        }
        self.by_name.insert(host.clone(), answer);
    }
}

async fn ask(host: &str) -> Result<Arc<[IpAddr]>, String> {
    let answer = timeout(LIMIT, tokio::net::lookup_host((host, 0))).await;
    let found = answer
        .map_err(|_| format!("no answer within {LIMIT:?}"))?
        .map_err(|error| error.to_string())?;
    let mut addresses: Vec<IpAddr> = Vec::new();
    for ip in found.map(|found| found.ip().to_canonical()) {
        if !addresses.contains(&ip) {
            addresses.push(ip);
        }
    }
    if addresses.is_empty() {
        Err("the name has no address".to_owned())
    } else {
        Ok(addresses.into())
    }
}

/// Those of the family of `like` first. Each family begins somewhere else each time, so that all get their share.
fn ordered(addresses: &[IpAddr], like: IpAddr) -> Vec<IpAddr> {
    let from = rand::random_range(0..addresses.len().max(1));
    let (before, after) = addresses.split_at(from);
    let turned = || after.iter().chain(before).copied();
    let alike = |ip: &IpAddr| ip.is_ipv4() == like.is_ipv4();
    turned().filter(alike).chain(turned().filter(|ip| !alike(ip))).take(ADDRESSES).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ips(list: &[&str]) -> Vec<IpAddr> {
        list.iter().map(|ip| ip.parse().unwrap()).collect()
    }

    #[test]
    fn addresses_of_the_dialed_family_come_first_and_all_come() {
        let told = ips(&["10.0.0.1", "fd00::1", "10.0.0.2", "fd00::2"]);
        for _ in 0..20 {
            let found = ordered(&told, "192.0.2.1".parse().unwrap());
            assert!(found[..2].iter().all(IpAddr::is_ipv4), "{found:?}");
            let mut sorted = found.clone();
            sorted.sort();
            assert_eq!(sorted, ips(&["10.0.0.1", "10.0.0.2", "fd00::1", "fd00::2"]));
        }
    }

    #[test]
    fn an_answer_is_remembered_for_a_while_and_the_table_is_bounded() {
        let (mut answers, now) = (Answers::default(), Instant::now());
        let answer = |told_at| Answer { told_at, addresses: ips(&["10.0.0.1"]).into() };
        answers.put(&"a".into(), answer(now));
        assert!(answers.known(now + USABLE - FRESH, "a").is_some());
        assert!(answers.known(now + USABLE, "a").is_none());
        for n in 0..NAMES {
            answers.put(&n.to_string().into(), answer(now + FRESH));
        }
        assert!(answers.by_name.len() <= NAMES);
        assert!(answers.known(now + FRESH, "a").is_none());
        assert!(answers.known(now + FRESH, "4095").is_some());
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_name_that_is_not_there_is_a_failure_with_its_name() {
        let names = Names::default();
        let host = Arc::from("nowhere.invalid");
        let like = "10.0.0.1".parse().unwrap();
        let failure = names.resolve(&host, like, &Party::default()).await.unwrap_err();
        assert_eq!(failure.reason, Reason::DialFailed);
        assert!(failure.error.starts_with("resolving nowhere.invalid: "), "{}", failure.error);
        let host = Arc::from("localhost");
        let found = names.resolve(&host, like, &Party::default()).await.unwrap();
        assert_eq!(found[0], "127.0.0.1".parse::<IpAddr>().unwrap());
    }
}
