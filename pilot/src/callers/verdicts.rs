//! What was found of tokens a moment ago.
//!
//! In: tokens and what the API server says of them. Out: the same, for a while, so that a thousand streams of one node
//! are one review. Holds digests, never tokens. Told the time.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use super::{Pod, ReviewError};

/// How long a token counts as good: so much longer it is of use after its pod is gone.
const GOOD_FOR: Duration = Duration::from_secs(10);
/// How long it counts as bad: a token may become good, as when its pod's record reaches that API server.
const BAD_FOR: Duration = Duration::from_secs(2);
/// More are forgotten: each is a few hundred bytes.
const MOST: usize = 10_000;

/// Stands for a token: no two are known that have the same.
pub(super) type Digest = [u8; 32];

type Verdict = Result<Pod, ReviewError>;

#[derive(Debug, Default)]
pub(super) struct Verdicts {
    by_token: HashMap<Digest, (Verdict, Instant)>,
}

impl Verdicts {
    /// What is still known of a token.
    pub(super) fn of(&self, token: &Digest, now: Instant) -> Option<Verdict> {
        let (verdict, until) = self.by_token.get(token)?;
        (now < *until).then(|| verdict.clone())
    }

    /// Takes what an API server said. That it said nothing is forgotten at once.
    pub(super) fn take(&mut self, token: Digest, verdict: &Verdict, now: Instant) {
        let lasts = match verdict {
            Ok(_) => GOOD_FOR,
            Err(ReviewError::Refused { .. } | ReviewError::NoServiceAccount { .. }) => BAD_FOR,
            Err(ReviewError::Away { .. }) => return,
        };
        if self.by_token.len() >= MOST {
            self.by_token.retain(|_, (_, until)| now < *until);
        }
        if self.by_token.len() < MOST {
            self.by_token.insert(token, (verdict.clone(), now + lasts));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Verdict {
        Ok(Pod { namespace: "shop".into(), service_account: "web".into(), name: None, node: None })
    }

    #[test]
    fn what_was_said_counts_for_a_short_while() {
        let refused = || Err(ReviewError::Refused { reason: "expired".into() });
        let away = || Err(ReviewError::Away { reason: "no answer".into() });
        let begun = Instant::now();
        for (verdict, lasts) in [(good(), GOOD_FOR), (refused(), BAD_FOR), (away(), Duration::ZERO)]
        {
            let mut verdicts = Verdicts::default();
            verdicts.take([1; 32], &verdict, begun);
            assert_eq!(verdicts.of(&[2; 32], begun), None);
            let known = |at| verdicts.of(&[1; 32], at).is_some();
            assert_eq!(known(begun), !lasts.is_zero(), "{verdict:?}");
            assert!(!known(begun + lasts), "{verdict:?}");
        }
    }

    #[test]
    fn of_more_tokens_than_there_is_room_for_those_that_ended_are_forgotten() {
        let mut verdicts = Verdicts::default();
        let begun = Instant::now();
        let token = |number: usize| {
            let mut token = [0; 32];
            token[..8].copy_from_slice(&number.to_le_bytes());
            token
        };
        for number in 0..=MOST {
            verdicts.take(token(number), &good(), begun);
        }
        assert_eq!(verdicts.by_token.len(), MOST);
        verdicts.take(token(MOST), &good(), begun + GOOD_FOR);
        assert_eq!(verdicts.by_token.len(), 1);
    }
}
