//! Tells the demo's story: chapters, claims, the command behind each, ✓ or ✗.
//!
//! In: claims and the attempts that prove them. Out: lines on standard output, and at the end how many claims failed. An
//! attempt that fails does not end the story: the next claims may still hold, and show how far the failure reaches.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use anyhow::Result;

/// The story so far.
pub(crate) struct Story {
    chapter: u32,
    held: u32,
    failed: Vec<String>,
    colours: Colours,
}

struct Colours {
    good: &'static str,
    bad: &'static str,
    strong: &'static str,
    faint: &'static str,
    plain: &'static str,
}

impl Story {
    /// A story that has not begun. Colours only where a person looks.
    pub(crate) fn new() -> Story {
        let colours = if io::stdout().is_terminal() {
            Colours {
                good: "\x1b[32m",
                bad: "\x1b[31m",
                strong: "\x1b[1m",
                faint: "\x1b[2m",
                plain: "\x1b[0m",
            }
        } else {
            Colours { good: "", bad: "", strong: "", faint: "", plain: "" }
        };
        Story { chapter: 0, held: 0, failed: Vec::new(), colours }
    }

    /// Opens a chapter.
    pub(crate) fn chapter(&mut self, title: &str) {
        self.chapter += 1;
        let Colours { strong, plain, .. } = self.colours;
        line(&format!("\n{strong}{}. {title}{plain}", self.chapter));
    }

    /// Explains.
    pub(crate) fn say(&self, text: &str) {
        for part in text.lines() {
            line(&format!("   {part}"));
        }
    }

    /// Makes a claim, shows the command behind it, and what came out.
    pub(crate) fn claim(
        &mut self,
        claim: &str,
        command: &str,
        attempt: impl FnOnce() -> Result<String>,
    ) -> bool {
        let Colours { good, bad, faint, plain, .. } = self.colours;
        let result = attempt();
        match &result {
            Ok(_) => line(&format!("   {good}✓{plain} {claim}")),
            Err(_) => line(&format!("   {bad}✗{plain} {claim}")),
        }
        for part in command.lines() {
            line(&format!("       {faint}$ {part}{plain}"));
        }
        match result {
            Ok(evidence) => {
                evidence.lines().for_each(|part| line(&format!("       {faint}→ {part}{plain}")));
                self.held += 1;
                true
            }
            Err(error) => {
                format!("{error:#}")
                    .lines()
                    .for_each(|part| line(&format!("       {bad}→ {part}{plain}")));
                self.failed.push(format!("{}: {claim}", self.chapter));
                false
            }
        }
    }

    /// Ends the story; whether every claim held.
    pub(crate) fn end(&self, took: Duration) -> bool {
        let total = self.held as usize + self.failed.len();
        line(&format!("\n{} of {total} claims held, in {:.1} s.", self.held, took.as_secs_f64()));
        for failed in &self.failed {
            line(&format!("   ✗ {failed}"));
        }
        self.failed.is_empty()
    }
}

/// A reader that has gone away is no reason to stop half-way.
fn line(text: &str) {
    let _ = writeln!(io::stdout(), "{text}");
}
