//! Messages as clients and servers send them, and as nobody should.

use proptest::prelude::*;

use super::*;

fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

fn with_edns(mut message: Message, payload: u16) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(payload);
    edns.set_dnssec_ok(true);
    message.set_edns(edns);
    message
}

fn request(message: &Message, transport: Transport) -> Request {
    Request::read(&message.to_vec().unwrap(), transport).unwrap()
}

fn known(alias_of: Option<&str>, count: u32) -> Known {
    let addresses = (1..=count).map(|n| IpAddr::V4(std::net::Ipv4Addr::from_bits(0x0a00_0000 + n)));
    Known { alias_of: alias_of.map(str::to_owned), addresses: addresses.collect() }
}

const TTL: Duration = Duration::from_secs(30);

/// Flags, code and records of an answer, as `dig` would tell them.
fn text(bytes: &[u8]) -> String {
    let message = Message::from_vec(bytes).unwrap();
    let metadata = message.metadata;
    let flags = [
        (metadata.authoritative, "aa"),
        (metadata.truncation, "tc"),
        (metadata.recursion_desired, "rd"),
        (metadata.recursion_available, "ra"),
    ];
    let flags: Vec<&str> = flags.iter().filter(|(set, _)| *set).map(|(_, name)| *name).collect();
    let records = message.answers.iter().map(|record| format!("; {record}"));
    format!("{:?} {}{}", metadata.response_code, flags.join(","), records.collect::<String>())
}

#[test]
fn an_answer_of_the_mesh_is_authoritative_and_may_be_kept_for_thirty_seconds() {
    let request = request(&query("Cart.shop.", RecordType::A), Transport::Udp);
    assert_eq!(request.addresses_of(), Some(("cart.shop".into(), Family::Ipv4)));
    let answer = request.answer(&known(None, 2), TTL);
    assert_eq!(&answer[..2], [0x12, 0x34]);
    assert_eq!(
        text(&answer),
        "NoError aa,rd,ra; Cart.shop. 30 IN A 10.0.0.1; Cart.shop. 30 IN A 10.0.0.2"
    );
}

#[test]
fn a_completed_name_is_answered_by_its_alias() {
    let request = request(&query("cart.shop.cluster.local.", RecordType::A), Transport::Udp);
    assert_eq!(
        text(&request.answer(&known(Some("cart.shop"), 1), TTL)),
        "NoError aa,rd,ra; cart.shop.cluster.local. 30 IN CNAME cart.shop.; cart.shop. 30 IN A 10.0.0.1"
    );
}

#[test]
fn a_known_name_without_records_is_no_error() {
    let request = request(&query("cart.", RecordType::AAAA), Transport::Udp);
    assert_eq!(text(&request.answer(&known(None, 0), TTL)), "NoError aa,rd,ra");
}

#[test]
fn edns_is_answered_with_the_clients_payload_version_and_do_bit() {
    for (asked, told) in [(1232, 1232), (100, 512), (0, 512), (4096, 4096)] {
        let request = request(&with_edns(query("cart.", RecordType::A), asked), Transport::Udp);
        let answer = Message::from_vec(&request.answer(&known(None, 1), TTL)).unwrap();
        let edns = answer.edns.unwrap();
        assert_eq!(edns.max_payload(), told);
        assert_eq!((edns.version(), edns.flags().dnssec_ok), (0, true));
    }
    let without = request(&query("cart.", RecordType::A), Transport::Udp);
    assert!(Message::from_vec(&without.answer(&known(None, 1), TTL)).unwrap().edns.is_none());
}

#[test]
fn what_does_not_fit_a_datagram_is_cut_off_and_told_so() {
    let plain = query("db.shop.svc.cluster.local.", RecordType::A);
    for (message, limit) in [
        (plain.clone(), 512),
        (with_edns(plain.clone(), 1232), 1232),
        (with_edns(plain.clone(), 9), 512),
    ] {
        let request = request(&message, Transport::Udp);
        let answer = request.answer(&known(None, 500), TTL);
        assert!(
            answer.len() <= limit && answer.len() > limit * 3 / 4,
            "{} of {limit}",
            answer.len()
        );
        let answer = Message::from_vec(&answer).unwrap();
        assert!(answer.metadata.truncation);
        assert_eq!(answer.edns.is_some(), request.edns.is_some());
    }
    let request = request(&plain, Transport::Tcp);
    let answer = Message::from_vec(&request.answer(&known(None, 500), TTL)).unwrap();
    assert_eq!((answer.answers.len(), answer.metadata.truncation), (500, false));
    // The longest message there is.
    let answer = request.answer(&known(None, 100_000), TTL);
    assert!(answer.len() <= 65535);
}

#[test]
fn only_addresses_in_the_internet_class_are_answered_here() {
    for kind in
        [RecordType::SRV, RecordType::TXT, RecordType::PTR, RecordType::ANY, RecordType::HTTPS]
    {
        assert_eq!(request(&query("cart.", kind), Transport::Udp).addresses_of(), None, "{kind}");
    }
    let mut chaos = query("version.bind.", RecordType::A);
    chaos.queries[0].set_query_class(DNSClass::CH);
    assert_eq!(request(&chaos, Transport::Udp).addresses_of(), None);
    assert_eq!(request(&query(".", RecordType::A), Transport::Udp).addresses_of(), None);
    assert_eq!(request(&query("a\\.b.c.", RecordType::A), Transport::Udp).addresses_of(), None);
}

#[test]
fn other_operations_are_not_implemented() {
    for operation in [OpCode::Notify, OpCode::Update, OpCode::Status] {
        let message = Message::new(7, MessageType::Query, operation);
        let refused = Request::read(&message.to_vec().unwrap(), Transport::Udp).unwrap_err();
        let Malformed::Answered(answer) = refused else { panic!("{refused:?}") };
        assert_eq!((answer[1], answer[3] & 0xf, (answer[2] >> 3) & 0xf), (7, 4, operation.into()));
    }
}

#[test]
fn what_is_no_query_of_one_question_is_a_format_error() {
    let mut answer = query("cart.", RecordType::A);
    answer.metadata.message_type = MessageType::Response;
    let mut two = query("cart.", RecordType::A);
    two.add_query(Query::query(Name::from_ascii("db.").unwrap(), RecordType::A));
    let none = Message::new(1, MessageType::Query, OpCode::Query);
    let mut cut = query("cart.shop.", RecordType::A).to_vec().unwrap();
    cut.truncate(20);
    let whole = [answer, two, none].map(|message| message.to_vec().unwrap());
    for bytes in whole.into_iter().chain([cut]) {
        let refused = Request::read(&bytes, Transport::Udp).unwrap_err();
        let Malformed::Answered(answer) = refused else { panic!("{refused:?}") };
        assert_eq!((&answer[..2], answer[2] & 0x80, answer[3] & 0xf), (&bytes[..2], 0x80, 1));
    }
    assert_eq!(Request::read(&[0; 11], Transport::Udp).unwrap_err(), Malformed::NoHeader);
}

#[test]
fn an_answer_must_have_the_identifier_and_the_question_of_the_query() {
    let asked = query("www.example.com.", RecordType::A);
    let bytes = asked.to_vec().unwrap();
    let answer = |change: &dyn Fn(&mut Message)| {
        let mut message = Message::response(0x1234, OpCode::Query);
        message.add_query(asked.queries[0].clone());
        change(&mut message);
        matches(&bytes, &message.to_vec().unwrap())
    };
    assert!(answer(&|_| {}));
    assert!(answer(&|m| m.metadata.response_code = ResponseCode::NXDomain));
    assert!(answer(&|m| {
        m.queries[0].set_name(Name::from_ascii("WWW.example.COM.").unwrap());
    }));
    assert!(!answer(&|m| m.metadata.id = 0x1235));
    assert!(!answer(&|m| m.metadata.message_type = MessageType::Query));
    assert!(!answer(&|m| m.metadata.op_code = OpCode::Notify));
    assert!(!answer(&|m| {
        m.queries[0].set_name(Name::from_ascii("www.example.net.").unwrap());
    }));
    assert!(!answer(&|m| {
        m.queries[0].set_query_type(RecordType::AAAA);
    }));
    assert!(!answer(&|m| m.queries.clear()));
    assert!(answer(&|m| {
        m.queries.clear();
        m.metadata.response_code = ResponseCode::FormErr;
    }));
}

#[test]
fn an_answer_passed_on_has_the_clients_identifier_and_is_not_authoritative() {
    let asked = query("www.example.com.", RecordType::A);
    let request = request(&asked, Transport::Udp);
    let mut message = Message::response(0x9999, OpCode::Query);
    message.metadata.authoritative = true;
    message.metadata.response_code = ResponseCode::NXDomain;
    message.add_query(asked.queries[0].clone());
    let passed = finish_answer(&request, message.to_vec().unwrap());
    assert_eq!(&passed[..2], [0x12, 0x34]);
    assert_eq!(text(&passed), "NXDomain ");
    // A server that sends more than the client takes.
    let data = RData::A(std::net::Ipv4Addr::LOCALHOST.into());
    let name = Name::from_ascii("www.example.com.").unwrap();
    message.add_answers((0..100).map(|_| Record::from_rdata(name.clone(), 1, data.clone())));
    let passed = finish_answer(&request, message.to_vec().unwrap());
    assert!(passed.len() <= 512);
    assert!(text(&passed).contains("tc"));
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_answered(bytes in proptest::collection::vec(any::<u8>(), 0..200), tcp: bool) {
        check_bytes(&bytes, if tcp { Transport::Tcp } else { Transport::Udp });
    }

    #[test]
    fn any_change_of_a_query_is_read_or_answered(at in 0_usize..60, byte: u8, cut in 0_usize..60) {
        let mut bytes = with_edns(query("cart.shop.svc.cluster.local.", RecordType::A), 1232).to_vec().unwrap();
        let length = bytes.len();
        bytes[at % length] = byte;
        bytes.truncate(length - cut.min(length));
        check_bytes(&bytes, Transport::Udp);
    }

    #[test]
    fn answers_fit_whatever_the_client_takes(count in 0_u32..300, payload: u16, alias: bool) {
        let request = request(&with_edns(query("cart.shop.svc.", RecordType::A), payload), Transport::Udp);
        let answer = request.answer(&known(alias.then_some("cart.shop"), count), TTL);
        prop_assert!(answer.len() <= usize::from(payload.max(512)));
        let told = Message::from_vec(&answer).unwrap();
        let all = told.answers.len() == count as usize + usize::from(alias);
        prop_assert_eq!(told.metadata.truncation, !all);
    }
}

/// Reading never panics, and every answer is a message with the asker's identifier.
fn check_bytes(bytes: &[u8], transport: Transport) {
    match Request::read(bytes, transport) {
        Ok(request) => {
            let _ = (request.addresses_of(), request.kind(), request.name());
            for answer in [
                request.answer(&known(Some("cart.shop"), 3), TTL),
                request.failure(ResponseCode::ServFail),
                finish_answer(&request, bytes.to_vec()),
            ] {
                assert_eq!(answer[..2], bytes[..2]);
                assert!(Message::from_vec(&answer).is_ok());
            }
        }
        Err(Malformed::Answered(answer)) => assert_eq!(answer[..2], bytes[..2]),
        Err(Malformed::NoHeader) => assert!(bytes.len() < HEADER),
    }
}
