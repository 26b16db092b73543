//! How sources of traffic share one thread: by what they move, in rounds.
//!
//! In: what each source moves, and who of it waits for its turn. Out: how much a source may move at once, and whom to
//! wake in the next round. Knows no tasks, sockets or clocks: its owner calls [`Rounds::next`] after each look at the
//! sockets, so that those who got something to do by then come first.
//!
//! It is deficit round robin, with the difference that a source which has not used up what it may move does not wait
//! for its turn: who moves little never waits for those who move much, and only these wait for one another.

use std::collections::VecDeque;

/// What a source may move between two turns while others move something, too: what the others wait for.
const SHARED_BYTES: usize = 64 * 1024;
/// While it is alone it has no turns: to cut what it moves makes each byte cost half as much again (measured), and nobody
/// waits for it.
const ALONE_BYTES: usize = usize::MAX;
/// Each operation counts as this many bytes more: a system call takes the time of some thousand bytes.
const OPERATION_BYTES: usize = 2 * 1024;
/// Less than this is not worth an operation: the source waits for its turn.
const LEAST_BYTES: usize = 4 * 1024;
/// So many rounds after its last operation a source does not count as one that the others share with. A round without
/// anybody else takes some 100 µs, so this is longer than the pauses of one that asks and waits for answers.
const ACTIVE_ROUNDS: u64 = 256;

/// The sources of one thread. `W` is one who waits.
#[derive(Debug)]
pub(super) struct Rounds<W> {
    accounts: Vec<Account<W>>,
    free: Vec<Id>,
    /// The sources that somebody of waits, in the order of their turns.
    ring: VecDeque<Id>,
    round: u64,
    /// The two sources that moved something last, and when.
    latest: Option<(Id, u64)>,
    before: Option<(Id, u64)>,
}

/// A source.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Id(usize);

/// Where one who waits stands among those of the same source.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Place {
    /// What was read before is sent first: it is still in the core's cache, and takes memory.
    First,
    Last,
}

#[derive(Debug)]
struct Account<W> {
    used: usize,
    /// With what each is expected to move.
    waiting: VecDeque<(W, usize)>,
}

impl<W> Default for Rounds<W> {
    fn default() -> Self {
        Self {
            accounts: Vec::new(),
            free: Vec::new(),
            ring: VecDeque::new(),
            round: 0,
            latest: None,
            before: None,
        }
    }
}

impl<W: PartialEq> Rounds<W> {
    /// One more source.
    pub(super) fn add(&mut self) -> Id {
        let account = Account { used: 0, waiting: VecDeque::new() };
        match self.free.pop() {
            Some(id) => {
                self.accounts[id.0] = account;
                id
            }
            None => {
                self.accounts.push(account);
                Id(self.accounts.len() - 1)
            }
        }
    }

    /// The source is gone, and nobody of it waits.
    pub(super) fn remove(&mut self, id: Id) {
        self.accounts[id.0].waiting.clear();
        self.ring.retain(|other| *other != id);
        self.latest = self.latest.filter(|(other, _)| *other != id);
        self.before = self.before.filter(|(other, _)| *other != id);
        self.free.push(id);
    }

    /// How much may be moved at once; nothing: it is the turn of others.
    pub(super) fn allowance(&self, id: Id) -> Option<usize> {
        let quantum = self.quantum(id);
        if quantum == ALONE_BYTES {
            return Some(quantum);
        }
        let left = quantum.saturating_sub(self.accounts[id.0].used);
        (left >= LEAST_BYTES).then_some(left)
    }

    /// The source has moved this much in one operation.
    pub(super) fn moved(&mut self, id: Id, bytes: usize) {
        let used = &mut self.accounts[id.0].used;
        *used = used.saturating_add(bytes + OPERATION_BYTES);
        match &mut self.latest {
            Some((latest, round)) if *latest == id => *round = self.round,
            latest => self.before = latest.replace((id, self.round)),
        }
    }

    /// Waits for the source's turn. Who waits already does not wait twice.
    pub(super) fn wait(&mut self, id: Id, waiter: W, place: Place, expected: usize) {
        let waiting = &mut self.accounts[id.0].waiting;
        if waiting.is_empty() {
            self.ring.push_back(id);
        }
        let known = waiting.iter().position(|(other, _)| *other == waiter);
        match (place, known) {
            (Place::First, known) => {
                known.map(|at| waiting.remove(at));
                waiting.push_front((waiter, expected));
            }
            (Place::Last, None) => waiting.push_back((waiter, expected)),
            (Place::Last, Some(_)) => {}
        }
    }

    /// Whether anybody waits.
    pub(super) fn is_waiting(&self) -> bool {
        !self.ring.is_empty()
    }

    /// Gives the next source its turn: as many of those who wait are to be woken as will use it up.
    pub(super) fn next(&mut self, woken: &mut Vec<W>) {
        self.round += 1;
        let Some(id) = self.ring.pop_front() else { return };
        let quantum = self.quantum(id);
        let account = &mut self.accounts[id.0];
        account.used = 0;
        let mut expected = 0;
        while expected < quantum
            && let Some((waiter, bytes)) = account.waiting.pop_front()
        {
            expected = expected.saturating_add(bytes + OPERATION_BYTES);
            woken.push(waiter);
        }
        if !account.waiting.is_empty() {
            self.ring.push_back(id);
        }
    }

    fn quantum(&self, id: Id) -> usize {
        let other = if self.latest.is_some_and(|(latest, _)| latest == id) {
            self.before
        } else {
            self.latest
        };
        let is_shared = other.is_some_and(|(_, round)| self.round - round < ACTIVE_ROUNDS);
        if is_shared { SHARED_BYTES } else { ALONE_BYTES }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: usize = 256 * 1024;

    /// Moves all that may be moved at once, at most a full read.
    fn move_all(rounds: &mut Rounds<&str>, id: Id) -> usize {
        let bytes = rounds.allowance(id).unwrap_or(0).min(READ);
        if bytes > 0 {
            rounds.moved(id, bytes);
        }
        bytes
    }

    /// Moves all that may be moved at once, and waits for more.
    fn take(rounds: &mut Rounds<&'static str>, id: Id, name: &'static str) -> usize {
        let bytes = move_all(rounds, id);
        rounds.wait(id, name, Place::Last, READ);
        bytes
    }

    fn next(rounds: &mut Rounds<&'static str>) -> Vec<&'static str> {
        let mut woken = Vec::new();
        rounds.next(&mut woken);
        woken
    }

    #[test]
    fn who_has_used_up_its_turn_waits_and_who_has_not_does_not() {
        let mut rounds = Rounds::default();
        let (greedy, modest) = (rounds.add(), rounds.add());
        rounds.moved(modest, 100);
        assert_eq!(move_all(&mut rounds, greedy), SHARED_BYTES);
        assert_eq!(rounds.allowance(greedy), None);
        rounds.wait(greedy, "greedy", Place::Last, READ);
        let left = SHARED_BYTES - 100 - OPERATION_BYTES;
        assert_eq!(rounds.allowance(modest), Some(left));
        assert_eq!(next(&mut rounds), ["greedy"]);
        assert_eq!(rounds.allowance(greedy), Some(SHARED_BYTES));
    }

    #[test]
    fn one_who_is_alone_has_no_turns_until_others_move_something() {
        let mut rounds = Rounds::<&str>::default();
        let (one, other) = (rounds.add(), rounds.add());
        rounds.moved(one, READ);
        assert_eq!(rounds.allowance(one), Some(ALONE_BYTES));
        rounds.moved(other, 100);
        assert_eq!(rounds.allowance(one), None);
        (0..ACTIVE_ROUNDS - 1).for_each(|_| drop(next(&mut rounds)));
        assert_eq!(rounds.allowance(one), None);
        next(&mut rounds);
        assert!(rounds.allowance(one).is_some());
    }

    #[test]
    fn sources_take_turns_however_many_of_each_wait() {
        let mut rounds = Rounds::default();
        let (many, few) = (rounds.add(), rounds.add());
        let (mut of_many, mut of_few) = (0, 0);
        rounds.moved(few, 1);
        rounds.moved(many, 1);
        for _ in 0..100 {
            for name in ["a", "b", "c", "d"] {
                of_many += take(&mut rounds, many, name);
            }
            of_few += take(&mut rounds, few, "z");
            next(&mut rounds);
        }
        assert!(of_many.abs_diff(of_few) <= 4 * SHARED_BYTES, "{of_many} {of_few}");
        assert!(of_few >= 48 * SHARED_BYTES, "{of_few}");
    }

    #[test]
    fn a_turn_wakes_as_many_as_will_use_it_up_and_the_rest_have_another() {
        let mut rounds = Rounds::default();
        let (one, other) = (rounds.add(), rounds.add());
        rounds.moved(other, 1);
        for (name, expected) in [("a", 1), ("b", SHARED_BYTES), ("c", 1)] {
            rounds.wait(one, name, Place::Last, expected);
        }
        assert_eq!(next(&mut rounds), ["a", "b"]);
        assert!(rounds.is_waiting());
        assert_eq!(next(&mut rounds), ["c"]);
        assert!(!rounds.is_waiting());
        assert!(next(&mut rounds).is_empty());
    }

    #[test]
    fn what_was_read_is_sent_before_more_is_read_and_nobody_waits_twice() {
        let mut rounds = Rounds::default();
        let one = rounds.add();
        rounds.wait(one, "reader", Place::Last, 1);
        rounds.wait(one, "tunnel", Place::Last, 1);
        rounds.wait(one, "tunnel", Place::First, 1);
        rounds.wait(one, "reader", Place::Last, 1);
        assert_eq!(next(&mut rounds), ["tunnel", "reader"]);
    }

    #[test]
    fn a_source_that_is_gone_has_no_turn_and_counts_as_nobody() {
        let mut rounds = Rounds::default();
        let (gone, stays) = (rounds.add(), rounds.add());
        rounds.moved(gone, READ);
        rounds.wait(gone, "gone", Place::Last, 1);
        rounds.moved(stays, 1);
        rounds.wait(stays, "stays", Place::Last, 1);
        rounds.remove(gone);
        assert_eq!(next(&mut rounds), ["stays"]);
        assert_eq!(rounds.allowance(stays), Some(ALONE_BYTES));
        let again = rounds.add();
        assert_eq!(rounds.allowance(again), Some(SHARED_BYTES));
    }
}
