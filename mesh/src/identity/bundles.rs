//! Which roots the identities of a node trust, and who is to ask again when they change.
//!
//! In: the roots that came with each certificate, and when. Out: all of them together, which every identity of the node
//! trusts from that moment on, and the identities that were given others. Pure, as [`Renewal`](super::Renewal) is.
//!
//! A root is added for all identities as soon as one of them was given it. It is dropped when the last of them that was
//! given it has been given other roots, which is why all others ask again, and is not given it again within [`GRACE`]:
//! what rests on it ends, and replicas of an authority that disagree would end it again and again.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use rustls_pki_types::CertificateDer;

use super::Spiffe;

/// A set of roots that was seen this recently is no news. Replicas of an authority that have different ones, and answer
/// in turn, would otherwise have everybody ask again without end.
const NEWS: Duration = Duration::from_secs(600);

/// How long a root is trusted that nobody holds any more. Whoever gave it up asks again in this time.
pub(super) const GRACE: Duration = Duration::from_secs(30);

/// In the order of their bytes: the order in which an authority lists them does not matter.
type Bundle = Arc<BTreeSet<Vec<u8>>>;

/// The roots of all identities.
#[derive(Default)]
pub(super) struct Bundles {
    held: HashMap<Spiffe, Bundle>,
    /// Sets of roots, and when each last came.
    seen: Vec<(Bundle, Instant)>,
    /// Roots that nobody holds any more, and until when they are trusted.
    parting: BTreeMap<Vec<u8>, Instant>,
}

/// Who is to ask again.
#[derive(Debug, Default, Eq, PartialEq)]
pub(super) struct AskAgain {
    /// Those who hold other roots than the new ones.
    pub(super) others: Vec<Spiffe>,
    /// Whether the one that gave up a root is to make sure of it, within [`GRACE`].
    pub(super) confirm: bool,
}

impl Bundles {
    /// `who` was given a certificate with `roots`. Out: who asks again, if these are news.
    pub(super) fn handle_delivered(
        &mut self,
        who: &Spiffe,
        roots: &[CertificateDer<'_>],
        now: Instant,
    ) -> AskAgain {
        let bundle: Bundle = Arc::new(roots.iter().map(|root| root.to_vec()).collect());
        self.seen.retain(|(_, at)| now.saturating_duration_since(*at) < NEWS);
        let is_news = !self.seen.iter().any(|(seen, _)| *seen == bundle);
        self.see(&bundle, now);
        self.parting.retain(|root, _| !bundle.contains(root));
        let former = self.held.insert(who.clone(), bundle.clone());
        let has_parted = former.is_some_and(|former| {
            // In use until this moment: if it comes back, that is no news either.
            self.see(&former, now);
            self.part(&former, now)
        });
        if !is_news {
            return AskAgain::default();
        }
        let others = self.held.iter().filter(|(_, held)| **held != bundle);
        AskAgain { others: others.map(|(who, _)| who.clone()).collect(), confirm: has_parted }
    }

    /// `who` has no certificate any more.
    pub(super) fn handle_dropped(&mut self, who: &Spiffe, now: Instant) {
        if let Some(former) = self.held.remove(who) {
            self.part(&former, now);
        }
    }

    /// Gives up the roots of which the time has come.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        self.parting.retain(|_, until| *until > now);
    }

    /// When the next root is given up.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.parting.values().min().copied()
    }

    /// All roots, each once, in the order of their bytes.
    pub(super) fn union(&self) -> Vec<CertificateDer<'static>> {
        let held = self.held.values().flat_map(|bundle| bundle.iter());
        let all: BTreeSet<&Vec<u8>> = held.chain(self.parting.keys()).collect();
        all.into_iter().map(|root| CertificateDer::from(root.clone())).collect()
    }

    fn see(&mut self, bundle: &Bundle, now: Instant) {
        match self.seen.iter_mut().find(|(seen, _)| seen == bundle) {
            Some((_, at)) => *at = now,
            None => self.seen.push((bundle.clone(), now)),
        }
    }

    /// Begins the end of those of `former` that nobody holds any more. Out: whether there are any.
    fn part(&mut self, former: &Bundle, now: Instant) -> bool {
        let is_held = |root: &Vec<u8>| self.held.values().any(|bundle| bundle.contains(root));
        let parting: Vec<_> = former.iter().filter(|root| !is_held(root)).cloned().collect();
        let any = !parting.is_empty();
        self.parting.extend(parting.into_iter().map(|root| (root, now + GRACE)));
        any
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plays a script: `SECOND WHO ROOTS`, a root being a letter, `SECOND WHO gone`, or `SECOND passes`. Each row of `expected`
    /// is who asks again, with `again` for the one who was given the roots, and what is trusted.
    fn check(script: &[(&str, &str)]) {
        let start = Instant::now();
        let mut bundles = Bundles::default();
        for (event, expected) in script {
            let words: Vec<&str> = event.split(' ').collect();
            let who = |account: &str| Spiffe::new("cluster.local", "shop", account).unwrap();
            let now = start + Duration::from_secs(words[0].parse().unwrap());
            bundles.handle_timeout(now);
            let AskAgain { others, confirm } = match words[1..] {
                ["passes"] => AskAgain::default(),
                [account, "gone"] => {
                    bundles.handle_dropped(&who(account), now);
                    AskAgain::default()
                }
                [account, roots] => {
                    let roots: Vec<_> =
                        roots.bytes().map(|root| CertificateDer::from(vec![root])).collect();
                    bundles.handle_delivered(&who(account), &roots, now)
                }
                _ => panic!("not understood: {event}"),
            };
            let mut asking: Vec<_> = others.iter().map(Spiffe::service_account).collect();
            asking.extend(confirm.then_some("again"));
            asking.sort_unstable();
            let trusted: String = bundles.union().iter().map(|root| char::from(root[0])).collect();
            assert_eq!(format!("{}: {trusted}", asking.join(",")), *expected, "{event}");
        }
    }

    #[test]
    fn a_new_root_is_trusted_at_once_and_has_the_others_ask_again() {
        check(&[
            ("0 web o", ": o"),
            ("0 cart o", ": o"),
            ("0 pay o", ": o"),
            ("1000 web on", "cart,pay: no"),
            ("1010 pay no", ": no"),
            ("1020 cart on", ": no"),
        ]);
    }

    #[test]
    fn an_old_root_is_trusted_until_shortly_after_the_last_certificate_that_came_with_it_is_replaced()
     {
        check(&[
            ("0 web on", ": no"),
            ("0 cart on", ": no"),
            ("1000 web n", "cart: no"),
            ("1010 cart n", ": no"),
            ("1039 passes", ": no"),
            ("1040 passes", ": n"),
        ]);
    }

    #[test]
    fn who_gives_up_a_root_asks_again_and_keeps_it_if_it_comes_again() {
        check(&[
            ("0 web a", ": a"),
            ("1000 web b", "again: ab"),
            ("1020 web a", ": ab"),
            ("1050 passes", ": a"),
            ("2000 web b", "again: ab"),
            ("2020 web b", ": ab"),
            ("2030 passes", ": b"),
        ]);
    }

    #[test]
    fn who_leaves_takes_its_roots_along_after_a_while() {
        check(&[
            ("0 web o", ": o"),
            ("1 cart n", "web: no"),
            ("2 web gone", ": no"),
            ("32 passes", ": n"),
        ]);
    }

    #[test]
    fn authorities_that_disagree_do_not_keep_everybody_asking() {
        check(&[
            ("0 web a", ": a"),
            ("0 cart b", "web: ab"),
            ("30 web b", ": ab"),
            ("50 cart a", ": ab"),
            ("70 cart b", ": ab"),
            ("90 web a", ": ab"),
        ]);
    }

    #[test]
    fn roots_that_come_back_later_are_news_again() {
        check(&[
            ("0 web o", ": o"),
            ("0 cart on", "web: no"),
            ("1000 cart o", "again: no"),
            ("1001 web n", "cart: no"),
        ]);
    }
}
