//! DNS messages: queries in, answers out.
//!
//! In: bytes that a pod or a server has sent. Out: a [`Request`], the bytes of an answer to it, or that bytes are no
//! answer to it. What is answered is decided elsewhere.

use std::{net::IpAddr, time::Duration};

use hickory_proto::{
    op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode},
    rr::{DNSClass, Name, RData, Record, RecordType},
    serialize::binary::{BinEncodable, BinEncoder},
};

use super::{Family, Known};

/// Length of a message's header.
const HEADER: usize = 12;
/// Every client takes a datagram of this length (RFC 1035 §2.3.4).
const SMALLEST_PAYLOAD: u16 = 512;
/// Answers given at most: more do not fit into a message.
const MAX_ANSWERS: usize = 4096;

/// How a query came.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Transport {
    /// In a datagram.
    Udp,
    /// On a connection.
    Tcp,
}

/// A question that can be answered or passed on.
#[derive(Clone, Debug)]
pub struct Request {
    /// As it came, to be passed on.
    bytes: Vec<u8>,
    transport: Transport,
    metadata: Metadata,
    query: Query,
    edns: Option<Edns>,
}

/// Why bytes are no request.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Malformed {
    /// They are too short to be answered at all.
    NoHeader,
    /// This is what to answer.
    Answered(Vec<u8>),
}

impl Request {
    /// Reads a query.
    ///
    /// # Errors
    /// [`Malformed`], with the answer to be given: FORMERR for what is no query of one question, NOTIMP for another
    /// operation than a query.
    pub fn read(bytes: &[u8], transport: Transport) -> Result<Self, Malformed> {
        if bytes.len() < HEADER {
            return Err(Malformed::NoHeader);
        }
        let refuse = |code| Err(Malformed::Answered(bare(bytes, code)));
        // The operation stands in the header: another one's body is none of ours to read.
        if (bytes[2] >> 3) & 0xf != u8::from(OpCode::Query) {
            return refuse(ResponseCode::NotImp);
        }
        let Ok(mut message) = Message::from_vec(bytes) else {
            return refuse(ResponseCode::FormErr);
        };
        let (Some(query), None) = (message.queries.pop(), message.queries.pop()) else {
            return refuse(ResponseCode::FormErr);
        };
        if message.metadata.message_type != MessageType::Query {
            return refuse(ResponseCode::FormErr);
        }
        let Message { metadata, edns, .. } = message;
        Ok(Self { bytes: bytes.to_vec(), transport, metadata, query, edns })
    }

    /// How it came.
    pub fn transport(&self) -> Transport {
        self.transport
    }

    /// As it came.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The type asked for, as text; one word for those without a name, of which a client could make up 65,000.
    pub fn kind(&self) -> String {
        let kind = self.query.query_type();
        if matches!(kind, RecordType::Unknown(_)) {
            return "other".into();
        }
        kind.to_string().to_ascii_lowercase()
    }

    /// The name asked for, as text.
    pub fn name(&self) -> String {
        self.query.name().to_ascii()
    }

    /// The addresses of which name are asked for; none if something else is, or if the name could be none of the mesh.
    pub fn addresses_of(&self) -> Option<(String, Family)> {
        if self.query.query_class() != DNSClass::IN {
            return None;
        }
        let family = if self.query.query_type() == RecordType::A {
            Family::Ipv4
        } else if self.query.query_type() == RecordType::AAAA {
            Family::Ipv6
        } else {
            return None;
        };
        let mut host = String::with_capacity(self.query.name().len());
        for label in self.query.name().iter() {
            // What else a label may hold, dots included, stands in no name of the mesh.
            let plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
            if !label.iter().all(plain) {
                return None;
            }
            if !host.is_empty() {
                host.push('.');
            }
            host.extend(label.iter().map(|byte| char::from(byte.to_ascii_lowercase())));
        }
        (!host.is_empty()).then_some((host, family))
    }

    /// The answer of the mesh.
    pub fn answer(&self, known: &Known, time_to_live: Duration) -> Vec<u8> {
        let seconds = u32::try_from(time_to_live.as_secs()).unwrap_or(u32::MAX);
        let mut message = self.response(ResponseCode::NoError);
        message.metadata.authoritative = true;
        let mut owner = self.query.name().clone();
        if let Some(alias) = known.alias_of.as_deref().and_then(absolute) {
            let cname = RData::CNAME(hickory_proto::rr::rdata::CNAME(alias.clone()));
            message.add_answer(Record::from_rdata(owner, seconds, cname));
            owner = alias;
        }
        let address = |ip: &IpAddr| match ip {
            IpAddr::V4(ip) => RData::A((*ip).into()),
            IpAddr::V6(ip) => RData::AAAA((*ip).into()),
        };
        let records = known.addresses.iter().take(MAX_ANSWERS).map(address);
        message.add_answers(records.map(|data| Record::from_rdata(owner.clone(), seconds, data)));
        self.encode(message)
    }

    /// An answer without records.
    pub fn failure(&self, code: ResponseCode) -> Vec<u8> {
        self.encode(self.response(code))
    }

    fn response(&self, code: ResponseCode) -> Message {
        let mut message = Message::response(self.metadata.id, self.metadata.op_code);
        message.metadata.recursion_desired = self.metadata.recursion_desired;
        message.metadata.checking_disabled = self.metadata.checking_disabled;
        message.metadata.recursion_available = true;
        message.metadata.response_code = code;
        message.add_query(self.query.clone());
        if let Some(asked) = &self.edns {
            let mut edns = Edns::new();
            edns.set_max_payload(asked.max_payload().max(SMALLEST_PAYLOAD));
            edns.set_version(asked.version());
            edns.set_dnssec_ok(asked.flags().dnssec_ok);
            message.set_edns(edns);
        }
        message
    }

    /// How long an answer may be.
    fn limit(&self) -> u16 {
        match (self.transport, &self.edns) {
            (Transport::Tcp, _) => u16::MAX,
            (Transport::Udp, None) => SMALLEST_PAYLOAD,
            (Transport::Udp, Some(edns)) => edns.max_payload().max(SMALLEST_PAYLOAD),
        }
    }

    /// As many of the records as there is room for; in a datagram the client is told that there are more.
    fn encode(&self, mut message: Message) -> Vec<u8> {
        loop {
            match encoded(&message, self.limit()) {
                Some(bytes) => return bytes,
                // A question and EDNS fit in any message, so that this ends at the latest without records.
                None if message.answers.is_empty() => {
                    return bare(&self.bytes, ResponseCode::ServFail);
                }
                None => {
                    message.answers.truncate(message.answers.len() * 7 / 8);
                    message.metadata.truncation = self.transport == Transport::Udp;
                }
            }
        }
    }
}

/// The message's bytes, if they are no more than `limit`.
fn encoded(message: &Message, limit: u16) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(512);
    let mut encoder = BinEncoder::new(&mut bytes);
    encoder.set_max_size(limit);
    message.emit(&mut encoder).ok()?;
    // What did not fit was left out, EDNS as the last: the header then says so.
    let left_out = bytes[2] & 2 != 0 && !message.metadata.truncation;
    (!left_out && bytes.len() <= usize::from(limit)).then_some(bytes)
}

fn absolute(name: &str) -> Option<Name> {
    let mut name = Name::from_ascii(name).ok()?;
    name.set_fqdn(true);
    Some(name)
}

/// An answer to bytes that cannot be read: their header, turned round.
fn bare(bytes: &[u8], code: ResponseCode) -> Vec<u8> {
    let mut answer = vec![0; HEADER];
    answer[..2].copy_from_slice(&bytes[..2]);
    // QR set; operation and RD as they came. RA set.
    answer[2] = 0x80 | bytes[2] & 0x79;
    answer[3] = 0x80 | code.low();
    answer
}

/// Whether bytes from a server answer the request that was sent as `query`: same identifier, an answer, same question.
pub fn matches(query: &[u8], answer: &[u8]) -> bool {
    if query.len() < HEADER || answer.len() < HEADER {
        return false;
    }
    let (is_answer, code) = (answer[2] & 0x80 != 0, answer[3] & 0xf);
    if query[..2] != answer[..2] || !is_answer || (query[2] ^ answer[2]) & 0x78 != 0 {
        return false;
    }
    match answer[4..6] {
        // A server that cannot read the question does not repeat it.
        [0, 0] => code != ResponseCode::NoError.low(),
        [0, 1] => question(query).is_some_and(|question| {
            answer
                .get(HEADER..HEADER + question.len())
                .is_some_and(|found| found.eq_ignore_ascii_case(question))
        }),
        _ => false,
    }
}

/// The bytes of the one question of a query that was read before, so that its name is not compressed.
fn question(query: &[u8]) -> Option<&[u8]> {
    let mut at = HEADER;
    loop {
        match *query.get(at)? {
            0 => return query.get(HEADER..at + 5),
            length @ 1..64 => at += 1 + usize::from(length),
            _ => return None,
        }
    }
}

/// Makes a server's answer ours: the client's identifier, not authoritative, and no longer than the client takes.
pub fn finish_answer(request: &Request, mut answer: Vec<u8>) -> Vec<u8> {
    if answer.len() > usize::from(request.limit()) {
        answer = request.encode({
            let mut message = request.response(ResponseCode::NoError);
            message.metadata.truncation = true;
            message
        });
    }
    if answer.len() < HEADER {
        return request.failure(ResponseCode::ServFail);
    }
    answer[..2].copy_from_slice(&request.bytes[..2]);
    answer[2] &= !0x04;
    answer
}

#[cfg(test)]
mod tests;
