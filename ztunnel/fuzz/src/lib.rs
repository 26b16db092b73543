//! What must hold for every input of what the daemon reads.
//!
//! In: arbitrary bytes. Out: nothing, or a panic that says which property broke. The fuzz targets and the corpus test
//! (`ztunnel/tests/corpus.rs`) run these same functions.

use std::{cell::RefCell, collections::BTreeSet, fs::File, num::NonZeroUsize, str};

use ztunnel::{
    config::Config,
    dns::{self, Known, Malformed, Request, ResolvConf, Transport},
    pods::{
        AddError, Announced, PodRecord, PodTable, PodUid,
        zds::{Handled, Session, Snapshot, Violation},
    },
    proxy_config::{Environment, MESH_FILE, layered},
};

/// A connection of a node agent: packets of a length (one byte), a number of descriptors (one byte) and a message.
/// Each is answered; a breach of the protocol ends it; after a whole snapshot nothing is served that it did not name.
pub fn zds(mut bytes: &[u8]) {
    let (table, mut session, mut snapshots) = (Table::default(), Session::new(), 0);
    while let [length, descriptors, rest @ ..] = bytes {
        let (message, after) = rest.split_at(usize::from(*length).min(rest.len()));
        let netns = || File::open("/dev/null").expect("/dev/null can be opened").into();
        let descriptors = (0..descriptors % 3).map(|_| netns()).collect();
        match session.handle(message, descriptors, &table) {
            Ok(Handled::Answer(_)) => {}
            Ok(Handled::SnapshotSent(snapshot)) => {
                snapshots += 1;
                assert!(snapshots == 1 && snapshot != Snapshot::Pending);
                let (named, served) = (table.named.borrow(), table.served.borrow());
                assert!(served.is_subset(&named), "{served:?} of {named:?}");
            }
            Err(violation) => {
                assert!(!violation.to_string().is_empty());
                assert!(!matches!(violation, Violation::SecondSnapshot) || snapshots == 1);
                return;
            }
        }
        bytes = after;
    }
}

/// A query (its length in one byte) and what a server says to it. Every answer is for the one who asked and fits.
pub fn dns(bytes: &[u8]) {
    let [length, rest @ ..] = bytes else { return };
    let (query, answer) = rest.split_at(usize::from(*length).min(rest.len()));
    for transport in [Transport::Udp, Transport::Tcp] {
        let request = match Request::read(query, transport) {
            Ok(request) => request,
            Err(Malformed::Answered(answer)) => return assert_eq!(answer[..2], query[..2]),
            Err(Malformed::NoHeader) => return assert!(query.len() < 12),
        };
        let addresses = (0..200).map(|last| [10, 0, 0, last].into()).collect();
        let alias_of = request.addresses_of().map(|(name, _)| name);
        let known = Known { alias_of, addresses };
        let seconds = std::time::Duration::from_secs(30);
        let mut answers = vec![request.answer(&known, seconds)];
        if dns::matches(query, answer) {
            answers.push(dns::finish_answer(&request, answer.to_vec()));
        }
        for answer in answers {
            assert_eq!(answer[..2], query[..2]);
            assert!(answer.len() <= usize::from(u16::MAX) && answer[2] & 0x80 != 0);
        }
    }
}

/// A proxyConfig, alone and as a whole file of the mesh: what it says is below the environment, or it is refused with
/// where it came from. Read a second time, it says the same.
pub fn proxy_config(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let said = Environment::from([
        ("PROXY_CONFIG".to_owned(), text.to_owned()),
        ("XDS_ADDRESS".to_owned(), "https://pilot:15012".to_owned()),
    ]);
    for (mesh, environment) in [(None, said), (Some(text), Environment::new())] {
        match layered(environment.clone(), mesh) {
            Err(error) if mesh.is_some() => assert_eq!(error.origin, MESH_FILE),
            Err(error) => assert_eq!(error.origin, "PROXY_CONFIG"),
            Ok(layered_once) => {
                for (name, value) in environment.iter().filter(|(_, value)| !value.is_empty()) {
                    assert_eq!(layered_once.get(name), Some(value), "{name}");
                }
                assert_eq!(layered(layered_once.clone(), mesh), Ok(layered_once.clone()));
                check_settings(&layered_once);
            }
        }
    }
}

/// Settings, one `NAME=value` in a line: they are taken, or each one that cannot be is named with a reason.
pub fn settings(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    check_settings(&pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect());
}

fn check_settings(environment: &Environment) {
    let cpus = NonZeroUsize::new(4).expect("four is not zero");
    match Config::read(environment, "node", cpus) {
        Ok(config) => drop(serde_json::to_string(&config).expect("/config_dump shows settings")),
        Err(errors) => {
            assert!(!errors.is_empty());
            for error in errors {
                assert!(!error.name.is_empty() && !error.reason.is_empty(), "{error:?}");
            }
        }
    }
}

/// A pod's resolver configuration: whatever it says, as much is taken as the C library would take.
pub fn resolv_conf(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let conf = ResolvConf::parse(text);
    assert!(conf.nameservers.len() <= 3 && conf.search.len() <= 32);
    assert!(conf.ndots <= 15 && (1..=5).contains(&conf.attempts));
    assert!(conf.timeout.is_none_or(|timeout| (1..=30).contains(&timeout.as_secs())));
    for domain in &conf.search {
        let is_plain = !domain.starts_with('.') && !domain.ends_with('.');
        assert!(is_plain && (1..=253).contains(&domain.len()), "{domain:?}");
    }
}

/// A pod's record is refused, or is the same when it is written and read again.
pub fn pod_record(bytes: &[u8]) {
    let Ok(record) = serde_json::from_slice::<PodRecord>(bytes) else { return };
    assert!(PodUid::parse(record.uid.as_str()).is_ok());
    let text = serde_json::to_vec(&record).expect("a record can be written");
    assert_eq!(serde_json::from_slice::<PodRecord>(&text).expect("it was written"), record);
}

/// Knows which pods are served, and which were announced.
#[derive(Default)]
struct Table {
    served: RefCell<BTreeSet<PodUid>>,
    named: RefCell<BTreeSet<PodUid>>,
}

impl PodTable for Table {
    fn add(&self, pod: Announced) -> Result<(), AddError> {
        self.named.borrow_mut().insert(pod.uid.clone());
        self.served.borrow_mut().insert(pod.uid);
        Ok(())
    }

    fn remove(&self, uid: &PodUid) {
        self.served.borrow_mut().remove(uid);
    }

    fn uids(&self) -> Vec<PodUid> {
        self.served.borrow().iter().cloned().collect()
    }

    fn waiting(&self) -> Vec<PodUid> {
        Vec::new()
    }
}
