//! Turns of the tasks of one thread, by the source of the traffic that they move.
//!
//! In: the address of the workload that opened a connection, what its tasks are about to move. Out: a wait until it is its turn. A
//! thread takes turns while [`take_turns`] runs on it; on others nobody waits. Reads and writes are cut to what the source
//! may move, so that a thread comes back to its sockets soon.

use std::{
    cell::RefCell,
    fmt,
    future::poll_fn,
    net::IpAddr,
    rc::{Rc, Weak},
    task::{Context, Poll, Waker},
};

use foldhash::HashMap;

use super::rounds::{Id, Place, Rounds};

/// What a new connection counts as: it takes a thread as long as some ten thousand bytes on their way, between deciding on
/// it, dialing and ending.
const CONNECTION_BYTES: usize = 30 * 1024;

thread_local! {
    static TURNS: RefCell<Turns> = RefCell::default();
}

#[derive(Default)]
struct Turns {
    rounds: Rounds<Task>,
    sources: HashMap<IpAddr, Weak<Known>>,
    keeper: Keeper,
}

/// Who begins the rounds.
#[derive(Default)]
enum Keeper {
    /// Nobody: everyone may move what he likes.
    #[default]
    None,
    Busy,
    /// Until somebody waits.
    Idle(Waker),
}

struct Task(Waker);

impl PartialEq for Task {
    fn eq(&self, other: &Self) -> bool {
        self.0.will_wake(&other.0)
    }
}

/// Where traffic comes from, as one thread knows it: its tasks move as much as those of another source, however many
/// they are. The default is nobody in particular, and never waits.
#[derive(Clone, Default)]
pub struct Source(Option<Rc<Known>>);

struct Known {
    address: IpAddr,
    id: Id,
}

impl Source {
    /// The workload at `address`. It is the same source for all its connections and tunnels of the thread.
    pub fn of(address: IpAddr) -> Self {
        let address = address.to_canonical();
        TURNS.with_borrow_mut(|turns| {
            if let Some(known) = turns.sources.get(&address).and_then(Weak::upgrade) {
                return Self(Some(known));
            }
            let known = Rc::new(Known { address, id: turns.rounds.add() });
            turns.sources.insert(address, Rc::downgrade(&known));
            Self(Some(known))
        })
    }

    /// Waits until it is the source's turn to have one more connection begun.
    pub async fn begin_connection(&self) {
        poll_fn(|cx| self.poll_turn(cx, Place::Last, CONNECTION_BYTES)).await;
        self.moved(CONNECTION_BYTES);
    }

    /// How many bytes may be moved at once, when it is the source's turn.
    pub(super) fn poll_turn(
        &self,
        cx: &mut Context<'_>,
        place: Place,
        expected: usize,
    ) -> Poll<usize> {
        let Some(known) = &self.0 else { return Poll::Ready(usize::MAX) };
        let keeper = TURNS.with_borrow_mut(|turns| {
            if matches!(turns.keeper, Keeper::None) {
                return Err(usize::MAX);
            }
            if let Some(bytes) = turns.rounds.allowance(known.id) {
                return Err(bytes);
            }
            turns.rounds.wait(known.id, Task(cx.waker().clone()), place, expected);
            Ok(match std::mem::replace(&mut turns.keeper, Keeper::Busy) {
                Keeper::Idle(keeper) => Some(keeper),
                Keeper::None | Keeper::Busy => None,
            })
        });
        match keeper {
            Err(bytes) => Poll::Ready(bytes),
            Ok(keeper) => {
                if let Some(keeper) = keeper {
                    keeper.wake();
                }
                Poll::Pending
            }
        }
    }

    /// So many bytes were moved by one operation.
    pub(super) fn moved(&self, bytes: usize) {
        if let Some(known) = &self.0 {
            TURNS.with_borrow_mut(|turns| turns.rounds.moved(known.id, bytes));
        }
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(known) => write!(f, "Source({})", known.address),
            None => f.write_str("Source"),
        }
    }
}

impl Drop for Known {
    fn drop(&mut self) {
        // A thread that is ending has no turns any more, and `try_with` says so.
        let _ = TURNS.try_with(|turns| {
            let mut turns = turns.borrow_mut();
            turns.sources.remove(&self.address);
            turns.rounds.remove(self.id);
        });
    }
}

/// Has the tunnels and connections of this thread take turns, by their sources, as long as this is polled.
///
/// A round begins after a look at the sockets and after the tasks that it found something for: who moves little is among
/// these, and waits for one turn of one who moves much.
pub async fn take_turns() {
    struct Keeping;
    impl Drop for Keeping {
        fn drop(&mut self) {
            let _ = TURNS.try_with(|turns| turns.borrow_mut().keeper = Keeper::None);
            while begin_round() {}
        }
    }
    TURNS.with_borrow_mut(|turns| turns.keeper = Keeper::Busy);
    let _keeping = Keeping;
    loop {
        poll_fn(|cx| {
            TURNS.with_borrow_mut(|turns| {
                if turns.rounds.is_waiting() {
                    turns.keeper = Keeper::Busy;
                    return Poll::Ready(());
                }
                turns.keeper = Keeper::Idle(cx.waker().clone());
                Poll::Pending
            })
        })
        .await;
        // The runtime wakes this task after its next look at the sockets.
        tokio::task::yield_now().await;
        begin_round();
    }
}

/// Whether anybody was woken.
fn begin_round() -> bool {
    let mut woken = Vec::new();
    let _ = TURNS.try_with(|turns| turns.borrow_mut().rounds.next(&mut woken));
    let any = !woken.is_empty();
    woken.into_iter().for_each(|task| task.0.wake());
    any
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use tokio::task::{LocalSet, spawn_local};

    use super::*;

    fn source(last: u8) -> Source {
        Source::of(IpAddr::from([10, 0, 0, last]))
    }

    /// Moves what it may, over and over, and counts it.
    async fn take_all(source: Source, moved: Rc<Cell<usize>>) {
        loop {
            let bytes = poll_fn(|cx| source.poll_turn(cx, Place::Last, 1 << 20)).await;
            let bytes = bytes.min(256 * 1024);
            source.moved(bytes);
            moved.set(moved.get() + bytes);
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_source_with_many_tasks_moves_no_more_than_one_with_a_single_task() {
        let set = LocalSet::new();
        let [many, single] = [const { Cell::new(0) }; 2].map(Rc::new);
        set.spawn_local(take_turns());
        let counted = [many.clone(), single.clone()];
        set.run_until(async move {
            tokio::task::yield_now().await;
            // Neither is alone.
            let sources = [source(1), source(2)];
            sources.iter().for_each(|source| source.moved(1));
            (0..20).for_each(|_| drop(spawn_local(take_all(source(1), many.clone()))));
            spawn_local(take_all(source(2), single.clone()));
            for _ in 0..1000 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        let [many, single] = counted.map(|count| count.get());
        assert!(many > 8 << 20 && many.abs_diff(single) < 1 << 20, "{many} {single}");
    }

    #[tokio::test]
    async fn one_who_moves_little_goes_at_once_while_others_wait() {
        let set = LocalSet::new();
        set.spawn_local(take_turns());
        set.run_until(async {
            tokio::task::yield_now().await;
            let greedy = source(3);
            let modest = source(4);
            modest.moved(100);
            let may_move = |source: &Source| {
                let mut cx = Context::from_waker(Waker::noop());
                source.poll_turn(&mut cx, Place::Last, 1)
            };
            assert!(may_move(&greedy).is_ready());
            greedy.moved(1 << 20);
            assert!(may_move(&greedy).is_pending());
            assert!(may_move(&modest).is_ready());
        })
        .await;
    }

    #[tokio::test]
    async fn new_connections_wait_for_their_turn_like_bytes() {
        let set = LocalSet::new();
        set.spawn_local(take_turns());
        set.run_until(async {
            tokio::task::yield_now().await;
            let (greedy, modest) = (source(8), source(9));
            modest.moved(100);
            let begins = |source: &Source| {
                let mut cx = Context::from_waker(Waker::noop());
                std::pin::pin!(source.begin_connection()).poll(&mut cx).is_ready()
            };
            let began = (0..10).filter(|_| begins(&greedy)).count();
            assert_eq!(began, 2, "as many as a turn holds");
            assert!(begins(&modest), "who begins few does not wait for those who begin many");
        })
        .await;
    }

    #[tokio::test]
    async fn where_no_turns_are_taken_nobody_waits() {
        let source = source(5);
        source.moved(1 << 30);
        let bytes = poll_fn(|cx| source.poll_turn(cx, Place::Last, 1)).await;
        assert_eq!(bytes, usize::MAX);
    }

    #[tokio::test]
    async fn who_waits_when_turns_end_is_let_go() {
        let set = LocalSet::new();
        let turns = set.spawn_local(take_turns());
        set.run_until(async move {
            tokio::task::yield_now().await;
            let source = source(6);
            let other = Source::of(IpAddr::from([10, 0, 0, 7]));
            other.moved(1);
            source.moved(1 << 30);
            let waiting =
                spawn_local(
                    async move { poll_fn(|cx| source.poll_turn(cx, Place::Last, 1)).await },
                );
            turns.abort();
            assert_eq!(waiting.await.unwrap(), usize::MAX);
        })
        .await;
    }
}
