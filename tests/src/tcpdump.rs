//! Records what crosses the fabric.
//!
//! In: a cluster and a filter. Out: a file of whole packets, and questions about it: does a text occur in any, which TCP
//! ports were used. This is the witness for "nothing crosses in the clear"; it sees what the wire sees.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};

use crate::command::run;
use crate::place::Place;
use crate::process::Process;
use crate::wait::{PATIENCE, wait_until};

/// A capture that runs.
#[derive(Debug)]
pub struct Tcpdump {
    process: Process,
    file: PathBuf,
}

/// A capture that has ended.
#[derive(Debug)]
pub struct Packets {
    file: PathBuf,
    bytes: Vec<u8>,
}

impl Tcpdump {
    /// Starts to record packets that match `filter` on `interface`, and waits until it does.
    ///
    /// # Errors
    /// If tcpdump does not come up.
    pub fn start(place: &Place, interface: &str, name: &str, filter: &str) -> Result<Tcpdump> {
        let file = place.logs.join(format!("{name}.pcap"));
        let path = file.display().to_string();
        let words = [
            "tcpdump", "-Z", "root", "-i", interface, "-s", "0", "-U", "-n", "-B", "32768", "-w",
            &path, filter,
        ];
        let mut process = place.spawn(&format!("tcpdump-{name}"), &words, &[])?;
        let log = process.log_path().to_owned();
        process.wait_running("tcpdump to listen", || {
            ensure!(fs::read_to_string(&log)?.contains("listening on"), "it does not listen");
            Ok(())
        })?;
        Ok(Tcpdump { process, file })
    }

    /// Where the capture goes.
    pub fn file(&self) -> &std::path::Path {
        &self.file
    }

    /// Waits until `text` has been recorded, then ends.
    ///
    /// # Errors
    /// If it is not seen in time.
    pub fn stop_after(self, text: &str) -> Result<Packets> {
        wait_until(&format!("{text:?} on the wire"), PATIENCE, || {
            fs::read(&self.file).is_ok_and(|bytes| contains(&bytes, text.as_bytes()))
        })?;
        self.stop()
    }

    /// Ends the capture and reads it. Packets that the kernel holds back are written first.
    ///
    /// # Errors
    /// If tcpdump does not end or lost packets.
    pub fn stop(mut self) -> Result<Packets> {
        self.process.terminate()?;
        let log = self.process.log()?;
        ensure!(
            log.contains("0 packets dropped by kernel"),
            "tcpdump lost packets: {}",
            log.trim()
        );
        let bytes = fs::read(&self.file).context("reading the capture")?;
        Ok(Packets { file: self.file, bytes })
    }
}

impl Packets {
    /// Whether `text` occurs in any packet.
    pub fn contain(&self, text: &str) -> bool {
        contains(&self.bytes, text.as_bytes())
    }

    /// The server ports of the TCP connections that were opened: the destinations of all SYN.
    ///
    /// # Errors
    /// If tcpdump cannot read the file.
    pub fn ports_dialed(&self) -> Result<BTreeSet<u16>> {
        // `tcp[13]` does not look into IPv6, and `ip6[53]` is the flags' byte where no extension header comes first.
        let syn = "tcp[13] & 18 == 2 or (ip6[6] == 6 and ip6[53] & 18 == 2)";
        Ok(self.lines(syn)?.lines().filter_map(destination_port).collect())
    }

    /// The ports, of either side, of every TCP packet: the lower one of the two, which is the server's.
    ///
    /// # Errors
    /// If tcpdump cannot read the file.
    pub fn tcp_ports(&self) -> Result<BTreeSet<u16>> {
        let ports = |line: &str| Some(source_port(line)?.min(destination_port(line)?));
        Ok(self.lines("tcp")?.lines().filter_map(ports).collect())
    }

    /// How many packets match `filter`.
    ///
    /// # Errors
    /// If tcpdump cannot read the file.
    pub fn count(&self, filter: &str) -> Result<usize> {
        Ok(self.lines(filter)?.lines().count())
    }

    /// Where the capture is.
    pub fn file(&self) -> &std::path::Path {
        &self.file
    }

    fn lines(&self, filter: &str) -> Result<String> {
        run("tcpdump", ["-n", "-q", "-t", "-r", &self.file.display().to_string(), filter])
    }
}

/// The port of `IP 10.1.1.2.40000 > 10.1.2.2.80: tcp 0` after the arrow.
fn destination_port(line: &str) -> Option<u16> {
    let (_, after) = line.split_once(" > ")?;
    after.split(": ").next()?.rsplit_once('.')?.1.parse().ok()
}

fn source_port(line: &str) -> Option<u16> {
    line.split_once(" > ")?.0.rsplit_once('.')?.1.parse().ok()
}

fn contains(bytes: &[u8], text: &[u8]) -> bool {
    !text.is_empty() && bytes.windows(text.len()).any(|window| window == text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_from_both_families() {
        for line in [
            "IP 10.1.1.2.40000 > 10.1.2.2.80: tcp 0",
            "IP6 fd00:a9:1:1::2.40000 > fd00:a9:1:2::2.80: tcp 0",
        ] {
            assert_eq!(
                (source_port(line), destination_port(line)),
                (Some(40000), Some(80)),
                "{line}"
            );
        }
    }

    #[test]
    fn a_text_is_found_across_any_offset() {
        assert!(contains(b"\x00\x01secret\x02", b"secret"));
        assert!(!contains(b"\x00\x01secre\x02t", b"secret"));
    }
}
