//! How the peer of one tunnel behaves, as its frames tell before `h2` takes them.
//!
//! In: heads of frames, and requests that were taken back. Out: which streams the peer has ended, which `h2` forgets when
//! a reset follows, and whether the peer has become a nuisance. The tunnel is closed by its owner.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::{Duration, Instant},
};

use foldhash::HashSet;

use super::{
    frames::{Frame, Kind},
    patience::{Nuisance, Patience},
    source::Source,
    transport::Witness,
};

/// Streams that have ended and that nobody holds: they were refused, or dropped before their end came. What is remembered
/// of them is thrown away when it is this much.
const ENDED: usize = 4096;

/// How a peer behaves.
pub(super) struct Conduct {
    ended: RefCell<HashSet<u32>>,
    patience: RefCell<Patience>,
    nuisance: Cell<Option<Nuisance>>,
}

/// The conduct of the peer in one stream, as long as somebody holds it.
pub(super) struct StreamConduct {
    witness: Rc<Witness>,
    stream: u32,
}

impl Conduct {
    /// Takes note of a frame.
    pub(super) fn saw(&self, frame: Frame) {
        match frame.kind {
            Kind::Data | Kind::Headers if frame.ends_stream => {
                let mut ended = self.ended.borrow_mut();
                if ended.len() >= ENDED {
                    ended.clear();
                }
                ended.insert(frame.stream);
            }
            // Data is paid for by windows; the rest of these is bounded by the number of streams or with them, or, as
            // updates of windows, by what we send.
            Kind::Data
            | Kind::Headers
            | Kind::ResetStream
            | Kind::WindowUpdate
            | Kind::Continuation => {}
            Kind::Settings => self.bear(Nuisance::Settings),
            Kind::Ping => self.bear(Nuisance::Pings),
            Kind::Other => self.bear(Nuisance::OtherFrames),
        }
    }

    /// What the peer does too much of.
    pub(super) fn nuisance(&self) -> Option<Nuisance> {
        self.nuisance.get()
    }

    /// Whether the peer may make another request.
    pub(super) fn takes_requests(&self) -> bool {
        self.patience.borrow_mut().takes_requests(Instant::now())
    }

    fn bear(&self, nuisance: Nuisance) {
        if !self.patience.borrow_mut().bears(nuisance, Instant::now()) {
            self.nuisance.set(Some(nuisance));
        }
    }
}

impl Default for Conduct {
    fn default() -> Self {
        let patience = RefCell::new(Patience::new(Instant::now()));
        Self { ended: RefCell::default(), patience, nuisance: Cell::new(None) }
    }
}

impl StreamConduct {
    pub(super) fn new(witness: &Rc<Witness>, stream: h2::StreamId) -> Self {
        Self { witness: Rc::clone(witness), stream: stream.as_u32() }
    }

    /// Whose turn it must be for the stream to move something.
    pub(super) fn source(&self) -> &Source {
        &self.witness.source
    }

    /// Whether the peer has ended its way of the stream.
    pub(super) fn has_ended(&self) -> bool {
        self.witness.conduct.ended.borrow().contains(&self.stream)
    }

    /// The peer has taken its request back before it was answered, `after` this time.
    pub(super) fn abandoned(&self, after: Duration) {
        let conduct = &self.witness.conduct;
        if !conduct.patience.borrow_mut().bears_abandoned(after, Instant::now()) {
            conduct.nuisance.set(Some(Nuisance::AbandonedRequests));
        }
    }
}

impl Drop for StreamConduct {
    fn drop(&mut self) {
        self.witness.conduct.ended.borrow_mut().remove(&self.stream);
    }
}
