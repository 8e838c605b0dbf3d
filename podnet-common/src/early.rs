//! The way of a packet at a network card, before the node's stack has made an skb of it.
//!
//! What clients outside send, and what backends elsewhere answer to masqueraded ones, is translated here as
//! [`route`](crate::route) would; all else is left to that, untouched. Both use the same tables, so a flow's packets
//! may take either way at any time.

use crate::conntrack::{Direction, Flow, REFRESH, Time, Way};
use crate::filter::Place;
use crate::fragment::{self, Fragment};
use crate::frame::Frame;
use crate::packet;
use crate::route::{Sender, enter, follow, is_due, movable};
use crate::tables::Tables;
use crate::verdict::{Reason, Verdict};
use crate::wire::Protocol;

/// Decides about a packet that another machine has sent, of a known flow: nearly all of those to a Service. Others are
/// left over, or left as they are.
#[inline(always)]
pub fn early<F: Frame, T: Tables>(frame: &mut F, tables: &mut T) -> Verdict {
    let Ok(packet) = packet::parse(frame) else { return Verdict::Leave };
    let (destination, protocol) = (packet.tuple.destination(), packet.tuple.protocol());
    if protocol == Protocol::SCTP || !tables.may_hold(Place::of_frontend(destination.addr)) {
        return Verdict::Leave;
    }
    let now = tables.now();
    if let Some(flow) = tables.flow(&packet.tuple)
        && flow.alive(protocol, now, tables)
    {
        if !is_from_outside(&flow) || is_due(&packet, &flow, now) || asks_for_its_neighbour(&flow, now) {
            return Verdict::Leave;
        }
        if let Some(verdict) = follow::<false, _, _>(frame, tables, &packet, &flow, now) {
            return finished(verdict);
        }
    }
    // What cannot open a flow is to be refused, or is somebody else's.
    if movable(&packet) { Verdict::Open } else { Verdict::Leave }
}

/// Decides about a packet that may open a flow.
#[inline(always)]
pub fn open<F: Frame, T: Tables>(frame: &mut F, tables: &mut T) -> Verdict {
    match fragment::parse(frame) {
        Ok(Fragment::Whole(packet)) => finished(enter(frame, tables, &packet, Sender::Net)),
        _ => Verdict::Leave,
    }
}

/// The verdict, if nothing is left to do; else what is left is the stack's: a sender is to be told why its packet cannot
/// go on, who the next hop is to be found out, or a route is another one where the frame's own interface is known.
#[inline(always)]
const fn finished(verdict: Verdict) -> Verdict {
    match verdict {
        Verdict::Complain | Verdict::Pass(_) | Verdict::Drop(Reason::NoRoute) => Verdict::Leave,
        verdict => verdict,
    }
}

/// Whether it is time that the stack sends a packet of an entry's on: it asks then whether the next hop is still there,
/// at the same address (RFC 4861, 7.3), which nobody would who reads that from its table.
#[inline(always)]
fn asks_for_its_neighbour(flow: &Flow, now: Time) -> bool {
    flow.way == Way::MASQUERADE && now.since(flow.seen) >= REFRESH
}

/// Whether packets of an entry come from other machines and go on without the node being their sender or receiver.
#[inline(always)]
fn is_from_outside(flow: &Flow) -> bool {
    let forward = flow.state.direction() == Direction::Forward;
    !flow.state.hairpin() && (flow.way == Way::MASQUERADE || flow.way == Way::OUTSIDE && forward)
}
