//! A table without a kernel, for the tests of sources: it serves every pod but those named `refused`.

use std::{cell::RefCell, collections::BTreeSet};

use super::{AddError, Announced, PodTable, PodUid};

/// Knows only which pods it serves.
#[derive(Default)]
pub(super) struct StandIn(RefCell<BTreeSet<PodUid>>);

impl PodTable for StandIn {
    fn add(&self, pod: Announced) -> Result<(), AddError> {
        if pod.name == "refused" {
            return Err(AddError::NoAddress);
        }
        self.0.borrow_mut().insert(pod.uid);
        Ok(())
    }

    fn remove(&self, uid: &PodUid) {
        self.0.borrow_mut().remove(uid);
    }

    fn uids(&self) -> Vec<PodUid> {
        self.0.borrow().iter().cloned().collect()
    }
}
