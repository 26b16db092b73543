//! Several things under one key, where nearly always there is one.

use std::{iter, slice, sync::Arc};

/// One shared value, or several in the order in which they came.
#[derive(Debug)]
pub(super) enum Few<T> {
    /// The usual case: no allocation of its own.
    One(Arc<T>),
    /// At least two.
    Several(Arc<[Arc<T>]>),
}

impl<T> Clone for Few<T> {
    fn clone(&self) -> Self {
        match self {
            Self::One(one) => Self::One(one.clone()),
            Self::Several(several) => Self::Several(several.clone()),
        }
    }
}

impl<T> Few<T> {
    /// All of them, first come first.
    pub(super) fn iter(&self) -> slice::Iter<'_, Arc<T>> {
        match self {
            Self::One(one) => slice::from_ref(one).iter(),
            Self::Several(several) => several.iter(),
        }
    }

    /// Adds a value, or puts it in the place of the one that `same` finds.
    pub(super) fn put(&self, value: Arc<T>, same: impl Fn(&T) -> bool) -> Self {
        if !self.iter().any(|held| same(held)) {
            return self.iter().cloned().chain(iter::once(value)).collect();
        }
        let place = |held: &Arc<T>| if same(held) { value.clone() } else { held.clone() };
        self.iter().map(place).collect()
    }

    /// What is left without the one that `same` finds, if anything.
    pub(super) fn without(&self, same: impl Fn(&T) -> bool) -> Option<Self> {
        let mut rest = self.iter().filter(|held| !same(held)).cloned().peekable();
        rest.peek()?;
        Some(rest.collect())
    }
}

impl<T> FromIterator<Arc<T>> for Few<T> {
    /// # Panics
    /// If there is nothing to collect.
    fn from_iter<I: IntoIterator<Item = Arc<T>>>(values: I) -> Self {
        let mut values = values.into_iter();
        let first = values.next().expect("never empty: callers hold or add one");
        match values.next() {
            None => Self::One(first),
            Some(second) => Self::Several([first, second].into_iter().chain(values).collect()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(few: &Few<&'static str>) -> String {
        few.iter().map(|value| **value).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn values_stay_in_the_order_in_which_they_came() {
        let few = Few::One(Arc::new("a"));
        let few = few.put(Arc::new("b"), |held| *held == "b");
        let few = few.put(Arc::new("c"), |held| *held == "c");
        assert_eq!(list(&few), "a b c");
        let few = few.put(Arc::new("B"), |held| *held == "b");
        assert_eq!(list(&few), "a B c");
        let few = few.without(|held| *held == "a").unwrap();
        assert_eq!(list(&few), "B c");
        let few = few.without(|held| *held == "c").unwrap();
        assert!(matches!(few, Few::One(_)));
        assert!(few.without(|held| *held == "B").is_none());
    }
}
