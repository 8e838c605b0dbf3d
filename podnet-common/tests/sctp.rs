//! SCTP: what arrives is what would have been sent to the other end directly, its CRC included.
#![allow(clippy::unwrap_used, reason = "what is unexpected fails the test")]

mod support;

use crc::{CRC_32_ISCSI, Crc};
use etherparse::{IpFragOffset, IpHeaders, IpNumber, Ipv6FragmentHeader, Ipv6RawExtHeader, PacketBuilder};
use podnet_common::conntrack::Tuple;
use podnet_common::fragment;
use podnet_common::packet::{self, ETHERNET, IPV4, IPV6, TcpFlags};
use podnet_common::sctp::{self, Chunk};
use podnet_common::verdict::Reason;
use podnet_common::wire::{Family, Protocol};
use proptest::prelude::*;
use support::arbitrary::families;
use support::summed::{Summed, sum};
use support::*;

const CRC32C: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

/// A packet from one end to the other, its checksum made by the `crc` crate.
fn packet_of(tuple: &Tuple, chunks: &[u8]) -> Vec<u8> {
    let ports = [tuple.source().port.get().to_be_bytes(), tuple.destination().port.get().to_be_bytes()];
    let mut packet = ports.concat();
    packet.extend([0xca, 0xfe, 0xba, 0xbe, 0, 0, 0, 0]);
    packet.extend(chunks);
    let checksum = CRC32C.checksum(&packet);
    packet[8..12].copy_from_slice(&checksum.to_le_bytes());
    packet
}

/// What stands around a packet.
#[derive(Clone, Copy, Debug, Default)]
struct Dress {
    options: bool,
    padding: usize,
}

fn frame_of(tuple: &Tuple, packet: &[u8], dress: Dress) -> Vec<u8> {
    let mut headers = ip(tuple.source(), tuple.destination(), IpNumber(Protocol::SCTP.0));
    if dress.options {
        match &mut headers {
            IpHeaders::Ipv4(header, _) => header.options = [7, 7, 4, 0, 0, 0, 0, 0].into(),
            IpHeaders::Ipv6(_, extensions) => {
                extensions.destination_options =
                    Ipv6RawExtHeader::new_raw(IpNumber(59), &[1, 4, 0, 0, 0, 0]).ok();
            }
        }
    }
    let mut frame = with_headers(headers, packet);
    frame.resize(frame.len() + dress.padding, 0xee);
    frame
}

fn with_headers(headers: IpHeaders, packet: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(POD_MAC, NODE_MAC)
        .ip(headers)
        .write(&mut frame, IpNumber(Protocol::SCTP.0), packet)
        .unwrap();
    frame
}

fn tuples(family: Family) -> impl Strategy<Value = Tuple> {
    let end = (0..5_u8, any::<u16>(), any::<bool>())
        .prop_map(
            move |(n, port, is_pod)| if is_pod { pod(family, n, port) } else { service(family, n, port) },
        )
        .boxed();
    (end.clone(), end).prop_map(|(from, to)| Tuple::between(from, to, Protocol::SCTP))
}

fn pairs() -> impl Strategy<Value = (Tuple, Tuple)> {
    families().prop_flat_map(|family| (tuples(family), tuples(family)))
}

proptest! {
    #![proptest_config(cases(1000))]

    #[test]
    fn a_packet_is_translated_as_if_it_had_been_sent_so(
        (from, to) in pairs(), chunks in proptest::collection::vec(any::<u8>(), 4..2000),
        options: bool, padding in 0..20_usize,
    ) {
        let dress = Dress { options, padding };
        let sent = frame_of(&from, &packet_of(&from, &chunks), dress);
        let parsed = packet::parse(&sent).unwrap();
        prop_assert_eq!(parsed.tuple, from);
        prop_assert_eq!(parsed.flags, Chunk(chunks[0]).flags());

        let mut frame = Summed::new(sent.clone());
        prop_assert_eq!(sctp::rewrite(&mut frame, &parsed, &to), Some(()));
        prop_assert_eq!(&frame.bytes, &frame_of(&to, &packet_of(&to, &chunks), dress));
        // The sum, less what was noted, is what it was.
        let noted = sum(&sent) + u64::from(frame.change.wide());
        prop_assert_eq!(noted % 0xffff, sum(&frame.bytes) % 0xffff);

        let mut frame = frame.bytes;
        let parsed = packet::parse(&frame).unwrap();
        prop_assert_eq!(sctp::rewrite(&mut frame, &parsed, &from), Some(()));
        prop_assert_eq!(frame, sent);
    }

    /// A device, or nobody, is to make the checksum: only zeroes let it.
    #[test]
    fn a_checksum_that_is_not_there_stays_away(
        (from, to) in pairs(), chunks in proptest::collection::vec(any::<u8>(), 4..100),
    ) {
        let without = |tuple: &Tuple| {
            let mut packet = packet_of(tuple, &chunks);
            packet[8..12].fill(0);
            frame_of(tuple, &packet, Dress::default())
        };
        let mut frame = without(&from);
        let parsed = packet::parse(&frame).unwrap();
        prop_assert_eq!(sctp::rewrite(&mut frame, &parsed, &to), Some(()));
        prop_assert_eq!(frame, without(&to));
    }

    #[test]
    fn a_length_that_is_wrong_changes_nothing_outside((from, to) in pairs(), length: u16) {
        let mut sent = frame_of(&from, &packet_of(&from, &[0; 20]), Dress::default());
        let v4 = from.source().addr.family() == Family::V4;
        let at = ETHERNET + if v4 { 2 } else { 4 };
        sent[at..at + 2].copy_from_slice(&length.to_be_bytes());
        let parsed = packet::parse(&sent).unwrap();
        let mut frame = sent.clone();
        if sctp::rewrite(&mut frame, &parsed, &to).is_none() {
            let shortest = if v4 { 20 + 12 } else { 12 };
            prop_assert!(length < shortest);
            prop_assert_eq!(frame, sent);
        }
    }
}

#[test]
fn the_first_chunk_says_what_becomes_of_the_association() {
    let tuple = |family| Tuple::between(pod(family, 1, 40000), service(family, 1, 80), Protocol::SCTP);
    for family in FAMILIES {
        for chunk in 0..=255 {
            let frame =
                frame_of(&tuple(family), &packet_of(&tuple(family), &[chunk, 0, 0, 4]), Dress::default());
            let packet = packet::parse(&frame).unwrap();
            assert_eq!(packet.l4, ETHERNET + if family == Family::V4 { IPV4 } else { IPV6 });
            assert_eq!(packet.flags.opens(), Chunk(chunk) == Chunk::INIT, "{chunk}");
            let silent = [Chunk::INIT, Chunk::ABORT, Chunk::SHUTDOWN_COMPLETE].contains(&Chunk(chunk));
            assert_eq!(packet.flags.has(TcpFlags::ACK), !silent, "{chunk}");
            let ends = [Chunk::ABORT, Chunk::SHUTDOWN_COMPLETE].contains(&Chunk(chunk));
            assert_eq!(packet.flags.has(TcpFlags::RST), ends, "{chunk}");
            let closes = [Chunk::SHUTDOWN, Chunk::SHUTDOWN_ACK].contains(&Chunk(chunk));
            assert_eq!(packet.flags.has(TcpFlags::FIN), closes, "{chunk}");
        }
    }
}

/// The chunks of a packet that a device is to cut apart need not follow the header in one piece.
#[test]
fn frames_end_anywhere() {
    for family in FAMILIES {
        let tuple = Tuple::between(pod(family, 1, 40000), service(family, 1, 80), Protocol::SCTP);
        let whole = frame_of(&tuple, &packet_of(&tuple, &[1, 0, 0, 4]), Dress::default());
        let header = ETHERNET + if family == Family::V4 { IPV4 } else { IPV6 } + 12;
        for len in 0..=whole.len() {
            let parsed = packet::parse(&whole[..len].to_vec());
            if len < header {
                assert_eq!(parsed, Err(Reason::Truncated), "{len} bytes");
            } else {
                let packet = parsed.unwrap();
                assert_eq!((packet.tuple, packet.flags.opens()), (tuple, len > header));
            }
        }
    }
}

#[test]
fn fragments_are_left_alone() {
    for family in FAMILIES {
        let tuple = Tuple::between(pod(family, 1, 40000), service(family, 1, 80), Protocol::SCTP);
        for (more, offset) in [(true, 0), (true, 10), (false, 10)] {
            let offset = IpFragOffset::try_new(offset).unwrap();
            let mut headers = ip(tuple.source(), tuple.destination(), IpNumber(Protocol::SCTP.0));
            match &mut headers {
                IpHeaders::Ipv4(header, _) => {
                    header.more_fragments = more;
                    header.fragment_offset = offset;
                }
                IpHeaders::Ipv6(_, extensions) => {
                    extensions.fragment = Some(Ipv6FragmentHeader::new(IpNumber(59), offset, more, 7));
                }
            }
            let frame = with_headers(headers, &packet_of(&tuple, &[0; 20]));
            assert_eq!(packet::parse(&frame), Err(Reason::Fragment));
            assert_eq!(fragment::parse(&frame), Err(Reason::SctpFragment));
        }
    }
}
