//! Any bytes are parsed, or not, and what is parsed lies within them and can be rewritten.
#![no_main]

use libfuzzer_sys::fuzz_target;
use podnet_common::conntrack::Tuple;
use podnet_common::fragment::{self, Fragment};
use podnet_common::icmp;
use podnet_common::packet::{ETHERNET, IPV4, parse};
use podnet_common::verdict::Reason;
use podnet_common::wire::{Be16, Protocol};

fuzz_target!(|bytes: &[u8]| {
    let mut frame = bytes.to_vec();
    match parse(&frame) {
        Ok(packet) => {
            assert!((ETHERNET + IPV4..=frame.len() - 8).contains(&packet.l4));
            assert!([Protocol::TCP, Protocol::UDP, Protocol::SCTP].contains(&packet.tuple.protocol()));
            assert_eq!(packet.tuple.source().addr.family(), packet.family);
            assert_eq!(packet.tuple.destination().addr.family(), packet.family);
            // More bytes change nothing; fewer may.
            let longer = [bytes, &[0xff; 20]].concat();
            assert_eq!(parse(&longer), Ok(packet));
        }
        Err(Reason::Fragment) => {
            if let Ok(Fragment::Later(key)) = fragment::parse(&frame) {
                let to =
                    Tuple::new(key.destination(), Be16::new(1), key.source(), Be16::new(2), Protocol::UDP);
                assert_eq!(fragment::rewrite_addresses(&mut frame, &key, &to), Some(()));
                assert_eq!(frame.len(), bytes.len());
            }
        }
        Err(Reason::OtherProtocol) => {
            if let Ok(error) = icmp::parse(&mut frame) {
                assert_eq!(icmp::rewrite(&mut frame, &error, &error.quoted), Some(()));
                assert_eq!(icmp::parse(&mut frame).map(|new| new.flow()), Ok(error.quoted));
            }
        }
        Err(reason) => {
            assert!(matches!(reason, Reason::NotIp | Reason::Tagged | Reason::Truncated | Reason::Malformed));
        }
    }
});
