//! Messages: what a client asks, and the bytes that it gets.
//!
//! What is odd is dealt with as CoreDNS does, so that clients meet nothing new: what is malformed gets `FORMERR`, other
//! operations `NOTIMP`, other classes and transfers `REFUSED`, and what is no query no answer.

use hickory_proto::ProtoError;
use hickory_proto::op::{
    Edns, EmitAndCount, Message, MessageType, Metadata, OpCode, Query, ResponseCode, emit_message_parts,
};
use hickory_proto::rr::{DNSClass, Name, Record, RecordType};
use hickory_proto::serialize::binary::{BinEncodable, BinEncoder};

/// The length of a message's header.
const HEADER: usize = 12;
/// What a client takes by UDP that says nothing of it, in bytes (RFC 1035).
const PLAIN: u16 = 512;
/// The longest message that is sent by UDP, whatever the client takes.
const MAX_UDP: u16 = 4096;
/// The longest query that is taken by UDP, which answers tell (RFC 9715's).
const MAX_QUERY: u16 = 1232;
/// The version of EDNS that is spoken.
const EDNS: u8 = 0;

/// What came from a client.
#[derive(Debug, PartialEq)]
pub(crate) enum Received {
    /// Nothing to be answered.
    Nothing,
    /// Something whose answer is settled: these bytes.
    Odd(ResponseCode, Vec<u8>),
    /// A question.
    Question(Box<Request>),
}

/// A question, and how it is to be answered.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Request {
    header: Metadata,
    /// The question, with its name as it was written.
    pub(crate) query: Query,
    edns: Option<Edns>,
}

/// How a message travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    /// In a datagram.
    Udp,
    /// In a stream, with its length before it.
    Tcp,
}

impl Transport {
    /// Its name in metrics.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
        }
    }
}

/// An answer, before it is bytes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Reply {
    pub(crate) code: ResponseCode,
    /// Whether it is by whom the zone is of.
    pub(crate) authoritative: bool,
    pub(crate) answers: Vec<Record>,
    pub(crate) authorities: Vec<Record>,
    pub(crate) additionals: Vec<Record>,
}

impl Reply {
    /// About how many bytes it takes in memory.
    pub(crate) fn size(&self) -> u32 {
        let records = self.answers.iter().chain(&self.authorities).chain(&self.additionals);
        // Behind a record is what it says: a text, of as many bytes as a message may have.
        let behind = |record: &Record| record.data.to_bytes().map_or(0, |bytes| bytes.len());
        let size: usize = records.map(|record| size_of::<Record>() + behind(record)).sum();
        u32::try_from(size_of::<Self>() + size).unwrap_or(u32::MAX)
    }

    /// One without records.
    pub(crate) fn of(code: ResponseCode) -> Self {
        Self {
            code,
            authoritative: false,
            answers: Vec::new(),
            authorities: Vec::new(),
            additionals: Vec::new(),
        }
    }
}

impl Received {
    /// Reads what a client sent.
    pub(crate) fn read(bytes: &[u8]) -> Self {
        let Some(header) = bytes.first_chunk::<HEADER>() else { return Self::Nothing };
        let is_answer = header[2] & 0x80 != 0;
        if is_answer {
            return Self::Nothing;
        }
        let code = OpCode::from_u8((header[2] >> 3) & 0xf);
        let odd = |response| Self::Odd(response, bare(header, response));
        if !matches!(code, OpCode::Query | OpCode::Notify) {
            return odd(ResponseCode::NotImp);
        }
        let questions = u16::from_be_bytes([header[4], header[5]]);
        if questions != 1 || !has_plain_name(&bytes[HEADER..]) {
            return odd(ResponseCode::FormErr);
        }
        let Ok(message) = Message::from_vec(bytes) else { return odd(ResponseCode::FormErr) };
        let Some(query) = message.queries.first().cloned() else { return odd(ResponseCode::FormErr) };
        let request = Request { header: message.metadata, query, edns: message.edns };
        let settled = |code| Self::Odd(code, request.encode(&Reply::of(code), Transport::Udp));
        if request.edns.as_ref().is_some_and(|edns| edns.version() > EDNS) {
            return settled(ResponseCode::BADVERS);
        }
        let transfer = matches!(request.query.query_type(), RecordType::AXFR | RecordType::IXFR);
        if request.query.query_class() != DNSClass::IN || transfer {
            return settled(ResponseCode::Refused);
        }
        Self::Question(Box::new(request))
    }
}

/// Whether a question's name is written out: a pointer there has nothing to point to.
fn has_plain_name(mut bytes: &[u8]) -> bool {
    loop {
        match bytes.first() {
            Some(0) => return true,
            Some(&length) if length < 64 && bytes.len() > usize::from(length) => {
                bytes = &bytes[usize::from(length) + 1..];
            }
            _ => return false,
        }
    }
}

/// An answer of nothing but a header: for what cannot be read any further.
fn bare(header: &[u8; HEADER], code: ResponseCode) -> Vec<u8> {
    let mut answer = [0; HEADER];
    answer[..2].copy_from_slice(&header[..2]);
    // The operation and the wish for recursion are as they were.
    answer[2] = 0x80 | header[2] & 0x79;
    answer[3] = code.low();
    answer.to_vec()
}

impl Request {
    /// Whether it asks for the records of DNSSEC too.
    pub(crate) fn wants_dnssec(&self) -> bool {
        self.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok)
    }

    /// Whether it asks not to have answers checked.
    pub(crate) fn wants_unchecked(&self) -> bool {
        self.header.checking_disabled
    }

    /// How long an answer may be.
    fn limit(&self, transport: Transport) -> u16 {
        match (transport, &self.edns) {
            (Transport::Tcp, _) => u16::MAX,
            (Transport::Udp, None) => PLAIN,
            (Transport::Udp, Some(edns)) => edns.max_payload().clamp(PLAIN, MAX_UDP),
        }
    }

    /// The answer's bytes: with as many whole records as fit, and marked as truncated if those that were asked for do
    /// not all. Additional ones are left out without a word (RFC 2181).
    pub(crate) fn encode(&self, reply: &Reply, transport: Transport) -> Vec<u8> {
        let mut header = Metadata::new(self.header.id, MessageType::Response, self.header.op_code);
        header.authoritative = reply.authoritative;
        header.recursion_desired = self.header.recursion_desired;
        header.checking_disabled = self.header.checking_disabled;
        // As CoreDNS has it, what is the cluster's own is not said to be got for the client.
        header.recursion_available = !reply.authoritative;
        header.response_code = reply.code;
        let opt = self.edns.as_ref().map(|edns| {
            let mut own = Edns::new();
            own.set_max_payload(MAX_QUERY).set_version(EDNS).set_rcode_high(reply.code.high());
            own.set_dnssec_ok(edns.flags().dnssec_ok);
            Record::from(&own)
        });
        let limit = self.limit(transport) - opt.as_ref().map_or(0, |_| OPT);
        let asked = self.query.name();
        let section = |records| Section { records, asked, limit: limit.into(), cut: false };
        let (mut answers, mut authorities) = (section(&reply.answers), section(&reply.authorities));
        let mut bytes = Vec::with_capacity(usize::from(PLAIN));
        let written = emit_message_parts(
            &header,
            &mut std::iter::once(&self.query),
            &mut answers,
            &mut authorities,
            &mut Rest { further: section(&reply.additionals), opt },
            None,
            None,
            &mut BinEncoder::new(&mut bytes),
        );
        if written.is_err() {
            // A name that cannot be written, which none that was read is.
            let code = ResponseCode::ServFail;
            return Message::error_msg(self.header.id, self.header.op_code, code)
                .to_vec()
                .unwrap_or_default();
        }
        if answers.cut || authorities.cut {
            bytes[2] |= TRUNCATED;
        }
        bytes
    }
}

/// The length of an OPT record without options.
const OPT: u16 = 11;

/// The bit of a header's third byte that says that there is more.
const TRUNCATED: u8 = 0x02;

/// What stands for the name that was asked for: a pointer to where it is.
const ASKED: u16 = 0xc000 | 12;

/// The records of a section, as far as they fit.
///
/// The encoder can keep to a limit too, but by its names' full length, since it shortens them once they are written;
/// and it does that for the first ones of a message only.
struct Section<'a> {
    records: &'a [Record],
    /// The name that was asked for.
    asked: &'a Name,
    /// How long the message may be after them.
    limit: usize,
    /// Whether some did not fit.
    cut: bool,
}

impl Section<'_> {
    fn write(&self, record: &Record, encoder: &mut BinEncoder<'_>) -> Result<(), ProtoError> {
        if !record.name.eq_case(self.asked) {
            return record.emit(encoder);
        }
        encoder.emit_u16(ASKED)?;
        record.record_type().emit(encoder)?;
        record.dns_class.emit(encoder)?;
        encoder.emit_u32(record.ttl)?;
        let length = encoder.place::<u16>()?;
        record.data.emit(encoder)?;
        let written = u16::try_from(encoder.len_since_place(&length)).unwrap_or(u16::MAX);
        length.replace(encoder, written)
    }
}

impl EmitAndCount for Section<'_> {
    fn emit(&mut self, encoder: &mut BinEncoder<'_>) -> Result<usize, ProtoError> {
        for (count, record) in self.records.iter().enumerate() {
            let before = encoder.offset();
            let written = self.write(record, encoder);
            if written.is_err() || encoder.offset() > self.limit {
                encoder.set_offset(before);
                encoder.trim();
                self.cut = true;
                return Ok(count);
            }
        }
        Ok(self.records.len())
    }
}

/// What comes last in an answer: further records, and the OPT record, for which there is room.
struct Rest<'a> {
    further: Section<'a>,
    opt: Option<Record>,
}

impl EmitAndCount for Rest<'_> {
    fn emit(&mut self, encoder: &mut BinEncoder<'_>) -> Result<usize, ProtoError> {
        Ok(self.further.emit(encoder)? + encoder.emit_all(self.opt.iter())?)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use hickory_proto::rr::RData;
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// A query with some of its bytes changed, cut or added to: what is nearly right goes further than what is not.
    fn nearly_a_query() -> impl Strategy<Value = Vec<u8>> {
        let names = prop_oneof![Just("."), Just("web.shop.svc.cluster.local."), Just("a.b.")];
        let changes = vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
        (names, any::<u16>(), any::<bool>(), changes, vec(any::<u8>(), 0..20), 0..60usize).prop_map(
            |(name, kind, edns, changes, more, cut)| {
                let mut message = Message::query();
                message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::from(kind)));
                if edns {
                    message.set_edns(Edns::new());
                }
                let mut bytes = message.to_vec().unwrap();
                for (at, byte) in changes {
                    let at = at.index(bytes.len());
                    bytes[at] = byte;
                }
                bytes.extend(more);
                // Mostly nothing is cut off.
                bytes.truncate(bytes.len().saturating_sub(cut.saturating_sub(40)));
                bytes
            },
        )
    }

    fn record() -> impl Strategy<Value = Record> {
        let names = prop_oneof![
            Just("web.shop.svc.cluster.local."),
            Just("x.web.shop.svc.cluster.local."),
            Just(".")
        ];
        (names, any::<[u8; 16]>(), any::<bool>()).prop_map(|(name, ip, v4)| {
            let ip: IpAddr =
                if v4 { Ipv4Addr::new(ip[0], ip[1], ip[2], ip[3]).into() } else { Ipv6Addr::from(ip).into() };
            Record::from_rdata(Name::from_ascii(name).unwrap(), 5, RData::from(ip))
        })
    }

    proptest! {
        /// Whatever comes is answered, if at all, by a message that can be read and has its number.
        #[test]
        fn anything_may_come(bytes in prop_oneof![vec(any::<u8>(), 0..80), nearly_a_query()]) {
            let answer = match Received::read(&bytes) {
                Received::Nothing => return Ok(()),
                Received::Odd(_, answer) => answer,
                Received::Question(request) => {
                    request.encode(&Reply::of(ResponseCode::NoError), Transport::Udp)
                }
            };
            let answer = Message::from_vec(&answer).unwrap().metadata;
            prop_assert_eq!(answer.id.to_be_bytes(), [bytes[0], bytes[1]]);
            prop_assert_eq!(answer.message_type, MessageType::Response);
        }

        /// An answer is as long as its client takes at most, and all that is in it is what it should be, in order.
        #[test]
        fn an_answer_is_a_beginning_of_what_there_is(
            name in prop_oneof![Just("web.shop.svc.cluster.local."), Just("."), Just("wEb.shop.svc.cluster.local.")],
            size in prop::option::of(0..5000u16),
            answers in vec(record(), 0..300),
            authorities in vec(record(), 0..3),
            additionals in vec(record(), 0..30),
            by_tcp in any::<bool>(),
        ) {
            let mut message = Message::query();
            message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
            if let Some(size) = size {
                let mut edns = Edns::new();
                edns.set_max_payload(size);
                message.set_edns(edns);
            }
            let Received::Question(request) = Received::read(&message.to_vec().unwrap()) else {
                panic!("it is a question")
            };
            let reply = Reply { answers, authorities, additionals, ..Reply::of(ResponseCode::NoError) };
            let transport = if by_tcp { Transport::Tcp } else { Transport::Udp };
            let bytes = request.encode(&reply, transport);
            prop_assert!(bytes.len() <= usize::from(request.limit(transport)));
            let read = Message::from_vec(&bytes).unwrap();
            let whole = read.answers.len() == reply.answers.len() && read.authorities.len() == reply.authorities.len();
            prop_assert_eq!(read.metadata.truncation, !whole);
            prop_assert_eq!(read.edns.is_some(), size.is_some());
            prop_assert!(read.queries[0].name().eq_case(message.queries[0].name()));
            for (found, expected) in [
                (&read.answers, &reply.answers),
                (&read.authorities, &reply.authorities),
                (&read.additionals, &reply.additionals),
            ] {
                prop_assert!(found.iter().eq(&expected[..found.len()]));
            }
        }
    }
}
