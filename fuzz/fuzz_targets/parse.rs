//! Any bytes are parsed, or not, and what is parsed lies within them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use podnet_common::packet::{ETHERNET, IPV4, parse};
use podnet_common::verdict::Reason;
use podnet_common::wire::Protocol;

fuzz_target!(|bytes: &[u8]| {
    let frame = bytes.to_vec();
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
        Err(reason) => assert!(matches!(
            reason,
            Reason::NotIp | Reason::OtherProtocol | Reason::Fragment | Reason::Truncated | Reason::Malformed
        )),
    }
});
