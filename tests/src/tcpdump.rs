//! Records what crosses the fabric.
//!
//! In: a cluster and a filter. Out: a file of whole packets, and questions about it: does a text occur in any, which TCP
//! ports were used. This is the witness for "nothing crosses in the clear"; it sees what the wire sees.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};

use crate::binaries;
use crate::command::{run, text};
use crate::place::Place;
use crate::process::Process;

/// A capture that runs.
#[derive(Debug)]
pub struct Tcpdump {
    process: Process,
    file: PathBuf,
    mark: Mark,
}

/// How to send a datagram that the capture is sure to see, so that everything before it has been seen too.
#[derive(Clone, Debug)]
pub struct Mark {
    /// Where it is sent from.
    pub from: Place,
    /// Where it is sent to, across what is captured.
    pub to: IpAddr,
}

/// The discard service: nobody listens, and no application's traffic goes there.
const MARK_PORT: u16 = 9;
const MARK_TEXT: &str = "the end of the capture";

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
    pub fn start(
        place: &Place,
        interface: &str,
        name: &str,
        filter: &str,
        mark: Mark,
    ) -> Result<Tcpdump> {
        let filter = format!("({filter}) or udp port {MARK_PORT}");
        let file = place.logs.join(format!("{name}.pcap"));
        let path = file.display().to_string();
        let options = [
            "--immediate-mode",
            "-Z",
            "root",
            "-i",
            interface,
            "-s",
            "0",
            "-U",
            "-n",
            "-B",
            "32768",
        ];
        let words = [["tcpdump"].as_slice(), &options, &["-w", &path, &filter]].concat();
        let mut process = place.spawn(&format!("tcpdump-{name}"), &words, &[])?;
        let log = process.log_path().to_owned();
        process.wait_running("tcpdump to listen", || {
            ensure!(fs::read_to_string(&log)?.contains("listening on"), "it does not listen");
            Ok(())
        })?;
        Ok(Tcpdump { process, file, mark })
    }

    /// Where the capture goes.
    pub fn file(&self) -> &std::path::Path {
        &self.file
    }

    /// Ends the capture when everything that was sent until this call has been recorded, and reads it.
    ///
    /// # Errors
    /// If the mark is not recorded, or tcpdump lost packets.
    pub fn stop(mut self) -> Result<Packets> {
        let load = binaries::ours("load")?.display().to_string();
        let to = SocketAddr::new(self.mark.to, MARK_PORT).to_string();
        let said = self.mark.from.run(&[&load, "say", "--to", &to, MARK_TEXT])?;
        ensure!(said.status.success(), "marking the capture's end: {}", text(&said.stderr));
        let file = self.file.clone();
        self.process.wait_running("the capture's end", || {
            ensure!(contains(&fs::read(&file)?, MARK_TEXT.as_bytes()), "the mark is not recorded");
            Ok(())
        })?;
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
