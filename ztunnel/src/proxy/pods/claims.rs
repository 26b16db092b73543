//! Who announced a pod and has not taken it back.
//!
//! In: sources that announce it and leave it. Out: whether it is anybody's still. What follows is the table's.

use super::Source;

/// The sources of one pod, each once.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Claims(Vec<Source>);

impl From<Source> for Claims {
    fn from(source: Source) -> Self {
        Self(vec![source])
    }
}

impl Claims {
    pub(super) fn has(&self, source: Source) -> bool {
        self.0.contains(&source)
    }

    /// Takes in the others.
    pub(super) fn join(&mut self, others: &Self) {
        for source in &others.0 {
            if !self.has(*source) {
                self.0.push(*source);
            }
        }
    }

    /// Takes one source out; gives whether the pod was this one's alone. A source that never claimed it changes nothing.
    pub(super) fn leave(&mut self, source: Source) -> bool {
        let had = self.has(source);
        self.0.retain(|other| *other != source);
        had && self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_let_go_by_the_last_source_that_leaves_it() {
        let mut claims = Claims::from(Source::Registry);
        claims.join(&Source::NodeAgent.into());
        claims.join(&Source::NodeAgent.into());
        assert!(!claims.leave(Source::NodeAgent));
        assert!(!claims.has(Source::NodeAgent) && claims.has(Source::Registry));
        assert!(claims.leave(Source::Registry));
    }

    #[test]
    fn a_source_cannot_let_go_of_what_another_announced() {
        let mut claims = Claims::from(Source::Registry);
        assert!(!claims.leave(Source::NodeAgent));
        assert_eq!(claims, Source::Registry.into());
    }
}
