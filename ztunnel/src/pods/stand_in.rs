//! A table without a kernel, for the tests of sources: it serves every pod but those named `refused`.

use std::{cell::RefCell, collections::BTreeMap, os::unix::fs::MetadataExt};

use super::{AddError, Announced, PodTable, PodUid};

/// Knows only which pods it serves, each with the inode of its namespace, and which it could not.
#[derive(Default)]
pub(super) struct StandIn {
    pub(super) served: RefCell<BTreeMap<PodUid, u64>>,
    waiting: RefCell<BTreeMap<PodUid, u64>>,
}

impl PodTable for StandIn {
    fn add(&self, pod: Announced) -> Result<(), AddError> {
        self.remove(&pod.uid);
        let inode = pod.netns.metadata().map_or(0, |metadata| metadata.ino());
        if pod.name == "refused" {
            self.waiting.borrow_mut().insert(pod.uid, inode);
            return Err(AddError::NoAddress);
        }
        self.served.borrow_mut().insert(pod.uid, inode);
        Ok(())
    }

    fn remove(&self, uid: &PodUid) {
        self.served.borrow_mut().remove(uid);
        self.waiting.borrow_mut().remove(uid);
    }

    fn uids(&self) -> Vec<PodUid> {
        self.served.borrow().keys().cloned().collect()
    }

    fn waiting(&self) -> Vec<PodUid> {
        self.waiting.borrow().keys().cloned().collect()
    }
}
