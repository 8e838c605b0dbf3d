//! What may become of a packet, whatever the tables hold: shared with the fuzz target.

use podnet_common::verdict::Reason;

/// Why a packet is dropped.
pub(crate) const DROPS: [Reason; 11] = [
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
