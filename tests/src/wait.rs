//! Waits for a condition with a deadline.
//!
//! In: what is awaited, for the message, and a check. Out: the check's value, or an error that says what did not happen
//! and what the last attempt saw. Nothing in the testbed sleeps for a fixed time and hopes.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

/// How long a component may take to do what it was asked, on a machine where a compiler runs beside.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Between two attempts. The kernel and the processes watched have no event to offer for most of what is awaited.
const POLL: Duration = Duration::from_millis(5);

/// Calls `check` until it gives a value.
///
/// # Errors
/// When `limit` has passed: `what`, and the error of the last attempt.
pub fn wait_for<T>(what: &str, limit: Duration, mut check: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        match check() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= deadline => {
                return Err(error.context(format!("waited {limit:?} for {what}")));
            }
            Err(_) => thread::sleep(POLL),
        }
    }
}

/// Calls `check` until it is true.
///
/// # Errors
/// When `limit` has passed: `what`.
pub fn wait_until(what: &str, limit: Duration, mut check: impl FnMut() -> bool) -> Result<()> {
    wait_for(what, limit, || if check() { Ok(()) } else { Err(anyhow!("it is not so")) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_value_ends_the_wait() {
        let mut attempts = 0;
        let value = wait_for("three attempts", PATIENCE, || {
            attempts += 1;
            if attempts == 3 { Ok(attempts) } else { Err(anyhow!("attempt {attempts}")) }
        });
        assert_eq!(value.unwrap(), 3);
    }

    #[test]
    fn a_missed_deadline_says_what_and_why() {
        let error =
            wait_for("the moon", Duration::ZERO, || -> Result<()> { Err(anyhow!("too far")) })
                .unwrap_err();
        assert_eq!(format!("{error:#}"), "waited 0ns for the moon: too far");
    }
}
