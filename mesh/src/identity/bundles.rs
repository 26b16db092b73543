//! Which roots the identities of a node trust, and who is to ask again when they change.
//!
//! In: the roots that came with each certificate, and when. Out: all of them together, which every identity of the node
//! trusts from that moment on, and the identities that were given others. Pure, as [`Renewal`](super::Renewal) is.
//!
//! A root is added for all identities as soon as one of them was given it. It is dropped when the last of them that was
//! given it has been given other roots, which is why all others ask again.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use rustls_pki_types::CertificateDer;

use super::Spiffe;

/// A set of roots that was seen this recently is no news. Replicas of an authority that have different ones, and answer
/// in turn, would otherwise have everybody ask again without end.
const NEWS: Duration = Duration::from_secs(600);

/// In the order of their bytes: the order in which an authority lists them does not matter.
type Bundle = Arc<BTreeSet<Vec<u8>>>;

/// The roots of all identities.
#[derive(Default)]
pub(super) struct Bundles {
    held: HashMap<Spiffe, Bundle>,
    /// Sets of roots, and when each last came.
    seen: Vec<(Bundle, Instant)>,
}

impl Bundles {
    /// `who` was given a certificate with `roots`. Out: those who hold other roots, if these are news.
    pub(super) fn handle_delivered(
        &mut self,
        who: &Spiffe,
        roots: &[CertificateDer<'_>],
        now: Instant,
    ) -> Vec<Spiffe> {
        let bundle: Bundle = Arc::new(roots.iter().map(|root| root.to_vec()).collect());
        self.seen.retain(|(_, at)| now.saturating_duration_since(*at) < NEWS);
        let known = self.seen.iter_mut().find(|(seen, _)| *seen == bundle);
        let is_news = known.is_none();
        match known {
            Some((_, at)) => *at = now,
            None => self.seen.push((bundle.clone(), now)),
        }
        self.held.insert(who.clone(), bundle.clone());
        if !is_news {
            return Vec::new();
        }
        let others = self.held.iter().filter(|(_, held)| **held != bundle);
        others.map(|(who, _)| who.clone()).collect()
    }

    /// `who` has no certificate any more.
    pub(super) fn handle_dropped(&mut self, who: &Spiffe) {
        self.held.remove(who);
    }

    /// All roots, each once, in the order of their bytes.
    pub(super) fn union(&self) -> Vec<CertificateDer<'static>> {
        let all: BTreeSet<&Vec<u8>> = self.held.values().flat_map(|bundle| bundle.iter()).collect();
        all.into_iter().map(|root| CertificateDer::from(root.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plays a script: `SECOND WHO ROOTS`, a root being a letter, or `SECOND WHO gone`. Each row of `expected` is who asks
    /// again, and what is trusted.
    fn check(script: &[(&str, &str)]) {
        let start = Instant::now();
        let mut bundles = Bundles::default();
        for (event, expected) in script {
            let words: Vec<&str> = event.split(' ').collect();
            let who = |account: &str| Spiffe::new("cluster.local", "shop", account).unwrap();
            let now = start + Duration::from_secs(words[0].parse().unwrap());
            let asking = if words[2] == "gone" {
                bundles.handle_dropped(&who(words[1]));
                Vec::new()
            } else {
                let roots: Vec<_> =
                    words[2].bytes().map(|root| CertificateDer::from(vec![root])).collect();
                bundles.handle_delivered(&who(words[1]), &roots, now)
            };
            let mut asking: Vec<_> = asking.iter().map(Spiffe::service_account).collect();
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
    fn an_old_root_is_trusted_until_the_last_certificate_that_came_with_it_is_replaced() {
        check(&[
            ("0 web on", ": no"),
            ("0 cart on", ": no"),
            ("1000 web n", "cart: no"),
            ("1010 cart n", ": n"),
        ]);
    }

    #[test]
    fn who_leaves_takes_its_roots_along() {
        check(&[("0 web o", ": o"), ("1 cart n", "web: no"), ("2 web gone", ": n")]);
    }

    #[test]
    fn authorities_that_disagree_do_not_keep_everybody_asking() {
        check(&[
            ("0 web a", ": a"),
            ("0 cart b", "web: ab"),
            ("30 web b", ": b"),
            ("60 cart a", ": ab"),
            ("90 cart b", ": b"),
            ("120 web a", ": ab"),
        ]);
    }

    #[test]
    fn roots_that_come_back_later_are_news_again() {
        check(&[
            ("0 web o", ": o"),
            ("0 cart on", "web: no"),
            ("1000 cart o", ": o"),
            ("1001 web n", "cart: no"),
        ]);
    }
}
