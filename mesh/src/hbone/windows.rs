//! How much a tunnel may receive before somebody takes it.
//!
//! In: what the tunnels of one owner may hold together. Out: windows for each tunnel, smaller as the budget is used up.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use super::HboneConfig;

/// The least window of a tunnel: HTTP/2's own first one (RFC 9113 §6.9.2), rounded up.
const LEAST_BYTES: u32 = 64 * 1024;
/// A tunnel gets at most this part of what is left, so that the last ones do not stand before nothing.
const PART: u64 = 8;

/// Bytes that the tunnels of one owner may have received and nobody has taken. May be shared by threads.
///
/// Every tunnel gets 64 KiB whatever is left: limit their number to bound the sum.
#[derive(Debug)]
pub struct WindowBudget {
    total: u64,
    granted: AtomicU64,
}

impl WindowBudget {
    /// A budget of which nothing is used.
    pub fn new(total: u64) -> Arc<Self> {
        Arc::new(Self { total, granted: AtomicU64::new(0) })
    }
}

/// The windows of one tunnel. What they took of the budget is given back when this is dropped.
#[derive(Debug)]
pub(super) struct Windows {
    stream_bytes: u32,
    tunnel_bytes: u32,
    budget: Option<Arc<WindowBudget>>,
}

impl Windows {
    /// The windows of the next tunnel.
    pub(super) fn of(config: &HboneConfig) -> Self {
        let tunnel_bytes = match &config.budget {
            None => config.tunnel_window_bytes,
            Some(budget) => {
                let granted = budget.granted.load(Ordering::Relaxed);
                let part = budget.total.saturating_sub(granted) / PART;
                let part = u32::try_from(part).unwrap_or(u32::MAX).max(LEAST_BYTES);
                let bytes = part.min(config.tunnel_window_bytes);
                budget.granted.fetch_add(bytes.into(), Ordering::Relaxed);
                bytes
            }
        };
        let stream_bytes = config.stream_window_bytes.min(tunnel_bytes);
        Self { stream_bytes, tunnel_bytes, budget: config.budget.clone() }
    }

    /// Those of a stream and of the tunnel.
    pub(super) fn sizes(&self) -> (u32, u32) {
        (self.stream_bytes, self.tunnel_bytes)
    }
}

impl Drop for Windows {
    fn drop(&mut self) {
        if let Some(budget) = &self.budget {
            budget.granted.fetch_sub(self.tunnel_bytes.into(), Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(total: u64) -> HboneConfig {
        HboneConfig { budget: Some(WindowBudget::new(total)), ..HboneConfig::default() }
    }

    #[test]
    fn without_a_budget_windows_are_as_configured() {
        let windows = Windows::of(&HboneConfig::default());
        assert_eq!((windows.stream_bytes, windows.tunnel_bytes), (4 << 20, 16 << 20));
    }

    #[test]
    fn windows_shrink_as_the_budget_is_used_up_and_grow_when_tunnels_end() {
        let config = config(256 << 20);
        let mut open: Vec<Windows> = (0..200).map(|_| Windows::of(&config)).collect();
        assert_eq!(open[0].tunnel_bytes, 16 << 20);
        assert!(open.iter().is_sorted_by_key(|windows| std::cmp::Reverse(windows.tunnel_bytes)));
        let last = open.last().unwrap();
        assert_eq!((last.stream_bytes, last.tunnel_bytes), (LEAST_BYTES, LEAST_BYTES));
        let sum: u64 = open.iter().map(|windows| u64::from(windows.tunnel_bytes)).sum();
        assert!(sum <= (256 << 20) + 200 * u64::from(LEAST_BYTES), "{sum}");
        open.clear();
        assert_eq!(Windows::of(&config).tunnel_bytes, 16 << 20);
    }
}
