//! What may become of a packet, whatever the tables hold: shared with the fuzz target.

use podnet_common::packet::parse;
use podnet_common::verdict::Reason;

/// Whether the packet in the frame `sent` may be dropped for `reason`: also for what its sender would be told of, if
/// there is nobody to be told.
pub(crate) fn may_drop(reason: Reason, sent: &[u8]) -> bool {
    DROPS.contains(&reason) || REFUSALS.contains(&reason) && !has_one_sender(sent)
}

/// Whether a frame is to one machine, of one machine's packet: nobody else gets answers.
fn has_one_sender(sent: &[u8]) -> bool {
    let of_one = parse(&sent.to_vec()).is_ok_and(|packet| packet.tuple.source().addr.is_of_one());
    sent[0] & 1 == 0 && of_one
}

/// Why a packet is dropped.
const DROPS: [Reason; 11] = [
    Reason::BackendGone,
    Reason::Collision,
    Reason::FlowTableFull,
    Reason::NoneLocal,
    Reason::TooManyRefusals,
    Reason::SourceRange,
    Reason::Unassigned,
    Reason::NoRoute,
    Reason::SourcePorts,
    Reason::TooBig,
    Reason::Expired,
];
/// Why its sender gets an answer in its place.
pub(crate) const REFUSALS: [Reason; 5] =
    [Reason::NoEndpoints, Reason::NoPort, Reason::BackendGone, Reason::TooBig, Reason::Expired];
