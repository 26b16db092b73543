//! Which tunnel a stream goes to, whatever happens in whatever order: against a model without connections.

use std::{
    num::NonZeroU32,
    task::{Context, Poll, Waker},
    time::Instant,
};

use proptest::prelude::*;

use super::{
    super::slots::{Choice, Dial, Dialing, Pooled, Proof, Slots},
    *,
};

const LIMIT: NonZeroU32 = NonZeroU32::new(3).unwrap();

struct Fake {
    key: PoolKey,
    streams: Cell<u32>,
    peer_allows: Cell<u32>,
    has_settled: Cell<bool>,
    said_goaway: Cell<bool>,
    was_retired: Cell<bool>,
    proof: Proof,
    dialing: Cell<Option<Dialing<Fake>>>,
}

impl Pooled for Fake {
    fn key(&self) -> &PoolKey {
        &self.key
    }

    fn is_open(&self) -> bool {
        !self.said_goaway.get()
    }

    fn has_room(&self, limit: NonZeroU32) -> bool {
        self.has_settled.get() && self.streams.get() < limit.get().min(self.peer_allows.get())
    }

    fn proof(&self) -> Proof {
        self.proof
    }
}

#[derive(Clone, Debug)]
enum Step {
    Open { key: u8 },
    DialConnects { which: usize, valid_seconds: u64 },
    DialFails { which: usize },
    DialIsGivenUp { which: usize },
    PeerAllows { which: usize, streams: u32 },
    StreamEnds { which: usize },
    PeerSaysGoaway { which: usize },
    CredentialIsRenewed,
    TimePasses { seconds: u64 },
    WorkloadGoes { key: u8 },
    PoolCloses,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let which = || 0..8usize;
    let step = prop_oneof![
        12 => (0..3u8).prop_map(|key| Step::Open { key }),
        4 => (which(), 1..90u64)
            .prop_map(|(which, valid_seconds)| Step::DialConnects { which, valid_seconds }),
        1 => which().prop_map(|which| Step::DialFails { which }),
        1 => which().prop_map(|which| Step::DialIsGivenUp { which }),
        5 => (which(), 0..5u32).prop_map(|(which, streams)| Step::PeerAllows { which, streams }),
        5 => which().prop_map(|which| Step::StreamEnds { which }),
        1 => which().prop_map(|which| Step::PeerSaysGoaway { which }),
        1 => Just(Step::CredentialIsRenewed),
        2 => (1..40u64).prop_map(|seconds| Step::TimePasses { seconds }),
        1 => (0..3u8).prop_map(|key| Step::WorkloadGoes { key }),
        1 => Just(Step::PoolCloses),
    ];
    prop::collection::vec(step, 1..120)
}

struct World {
    slots: Rc<Slots<Fake>>,
    now: Instant,
    credential_built_at: Instant,
    is_closed: bool,
    dials: Vec<Dialing<Fake>>,
    waiting: Vec<(PoolKey, Rc<Dial>)>,
    tunnels: Vec<Rc<Fake>>,
}

fn key(number: u8) -> PoolKey {
    PoolKey {
        source: spiffe("web"),
        expected: Arc::new([spiffe("cart")]),
        // The same address and identity: only the workload tells them apart.
        dial: SocketAddr::from(([10, 0, 0, 1], 15008)),
        workload: Some(number.to_string().into()),
    }
}

fn failure() -> OpenError {
    OpenError::Timeout { dial: key(0).dial, limit: Duration::ZERO }
}

impl World {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            slots: Slots::new(LIMIT),
            now,
            credential_built_at: now,
            is_closed: false,
            dials: Vec::new(),
            waiting: Vec::new(),
            tunnels: Vec::new(),
        }
    }

    /// The tunnels that the next stream of a key could use.
    fn usable(&self, key: &PoolKey) -> Vec<&Rc<Fake>> {
        let is_usable = |tunnel: &&Rc<Fake>| {
            tunnel.key == *key
                && !tunnel.said_goaway.get()
                && !tunnel.was_retired.get()
                && tunnel.has_settled.get()
                && tunnel.streams.get() < tunnel.peer_allows.get().min(LIMIT.get())
                && tunnel.proof.credential_built_at >= self.credential_built_at
                && self.now < tunnel.proof.valid_until
        };
        self.tunnels.iter().filter(is_usable).collect()
    }

    /// Dials that have neither failed nor led to a tunnel whose peer has said what it allows.
    fn under_way(&self, key: &PoolKey) -> usize {
        let dialing = |tunnel: &&Rc<Fake>| {
            let dialing = tunnel.dialing.take();
            let is_dialing = dialing.is_some();
            tunnel.dialing.set(dialing);
            is_dialing && tunnel.key == *key
        };
        self.dials.iter().filter(|dial| dial.key() == key).count()
            + self.tunnels.iter().filter(dialing).count()
    }

    fn open(&mut self, key: &PoolKey) {
        let usable = self.usable(key).len();
        match self.slots.choose(key, self.credential_built_at, self.now) {
            Choice::Use(tunnel) => {
                let usable = self.usable(key);
                assert!(usable.iter().any(|other| Rc::ptr_eq(other, &tunnel)));
                tunnel.streams.set(tunnel.streams.get() + 1);
            }
            Choice::Wait(dial) => {
                assert_eq!((usable, self.under_way(key)), (0, 1));
                self.waiting.push((key.clone(), dial));
            }
            Choice::Dial(dialing) => {
                assert_eq!((usable, self.under_way(key)), (0, 0));
                self.dials.push(dialing);
            }
            Choice::Closed => assert!(self.is_closed),
        }
    }

    /// All who wait for the dial of `key` are told its end, and others are not.
    fn told(&mut self, key: &PoolKey, failed: bool) {
        let mut context = Context::from_waker(Waker::noop());
        self.waiting.retain(|(other, dial)| match std::pin::pin!(dial.wait()).poll(&mut context) {
            Poll::Pending => {
                assert_ne!(other, key);
                true
            }
            Poll::Ready(end) => {
                assert_eq!(other, key);
                assert_eq!(end.is_err(), failed);
                false
            }
        });
    }

    fn take(&mut self, step: Step) {
        let which = |which: usize, of: usize| which.checked_rem(of);
        match step {
            Step::Open { key: number } => self.open(&key(number)),
            Step::DialConnects { which: dial, valid_seconds } => {
                let Some(at) = which(dial, self.dials.len()) else { return };
                let dialing = self.dials.swap_remove(at);
                let tunnel = Rc::new(Fake {
                    key: dialing.key().clone(),
                    // The one that it was dialed for.
                    streams: Cell::new(1),
                    peer_allows: Cell::new(1),
                    has_settled: Cell::new(false),
                    said_goaway: Cell::new(false),
                    was_retired: Cell::new(self.is_closed),
                    proof: Proof {
                        credential_built_at: self.credential_built_at,
                        valid_until: self.now + Duration::from_secs(valid_seconds),
                    },
                    dialing: Cell::new(None),
                });
                dialing.add(&tunnel);
                tunnel.dialing.set(Some(dialing));
                self.tunnels.push(tunnel);
            }
            Step::DialFails { which: dial } => {
                let Some(at) = which(dial, self.dials.len()) else { return };
                let dialing = self.dials.swap_remove(at);
                let key = dialing.key().clone();
                dialing.fail(failure());
                self.told(&key, true);
            }
            Step::DialIsGivenUp { which: dial } => {
                let Some(at) = which(dial, self.dials.len()) else { return };
                let key = self.dials.swap_remove(at).key().clone();
                self.told(&key, false);
            }
            Step::PeerAllows { which: tunnel, streams } => {
                let Some(at) = which(tunnel, self.tunnels.len()) else { return };
                let tunnel = Rc::clone(&self.tunnels[at]);
                tunnel.peer_allows.set(streams);
                tunnel.has_settled.set(true);
                if let Some(dialing) = tunnel.dialing.take() {
                    drop(dialing);
                    self.told(&tunnel.key, false);
                }
            }
            Step::StreamEnds { which: tunnel } => {
                let Some(at) = which(tunnel, self.tunnels.len()) else { return };
                let streams = &self.tunnels[at].streams;
                streams.set(streams.get().saturating_sub(1));
            }
            Step::PeerSaysGoaway { which: tunnel } => {
                let Some(at) = which(tunnel, self.tunnels.len()) else { return };
                self.tunnels[at].said_goaway.set(true);
            }
            Step::CredentialIsRenewed => {
                self.now += Duration::from_secs(1);
                self.credential_built_at = self.now;
            }
            Step::TimePasses { seconds } => self.now += Duration::from_secs(seconds),
            Step::WorkloadGoes { key: number } => {
                let gone = key(number);
                self.slots.retire_where(|tunnel| *tunnel.key() == gone);
                let retired = self.tunnels.iter().filter(|tunnel| tunnel.key == gone);
                retired.for_each(|tunnel| tunnel.was_retired.set(true));
            }
            Step::PoolCloses => {
                self.slots.close();
                self.is_closed = true;
                self.tunnels.iter().for_each(|tunnel| tunnel.was_retired.set(true));
            }
        }
    }

    /// Everything ends: nothing is remembered, and nobody waits.
    fn end(mut self) {
        self.dials.clear();
        for tunnel in std::mem::take(&mut self.tunnels) {
            tunnel.dialing.take();
            self.slots.retire(&tunnel);
            assert_eq!(Rc::strong_count(&tunnel), 1, "a tunnel that nobody uses is kept");
        }
        assert_eq!((self.slots.tunnels(), self.slots.keys()), (0, 0));
        let mut context = Context::from_waker(Waker::noop());
        for (_, dial) in self.waiting {
            assert!(std::pin::pin!(dial.wait()).poll(&mut context).is_ready());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn a_stream_goes_to_a_tunnel_with_room_or_to_one_dial_in_any_order_of_events(steps in steps()) {
        let mut world = World::new();
        for step in steps {
            world.take(step);
        }
        world.end();
    }
}
