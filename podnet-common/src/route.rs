//! The way of a packet at the interfaces that face pods.
//!
//! What a pod sends comes through [`from_pod`], what it is sent through [`to_pod`]. A flow is opened by the
//! former, and followed by both until it ends.

use crate::conntrack::{Direction, Flow, REFRESH, State, Time, Tuple};
use crate::filter::Place;
use crate::frame::Frame;
use crate::nat;
use crate::packet::{self, Packet};
use crate::reject;
use crate::select::{Choice, select};
use crate::service::{Frontend, FrontendKey};
use crate::tables::{InsertError, Overwrite, Tables};
use crate::verdict::{Reason, Verdict};
use crate::wire::{Be16, Endpoint, Protocol};

/// How many source ports are tried for a client whose own is taken at the chosen backend.
const SOURCE_PORTS: usize = 4;

/// Decides about a packet that a pod has sent, and translates it.
#[inline(always)]
pub fn from_pod<F: Frame, T: Tables>(frame: &mut F, tables: &mut T) -> Verdict {
    let packet = match packet::parse(frame) {
        Ok(packet) => packet,
        Err(reason) => return Verdict::Pass(reason),
    };
    if !tables.may_hold(Place::of_frontend(packet.tuple.destination().addr)) {
        return Verdict::Pass(Reason::NotService);
    }
    // Known flows first, SYNs too: a repeated one must not choose again.
    let known = tables.flow(&packet.tuple);
    if let Some(flow) = &known {
        // A backend's answer keeps its source until it reaches the client: the node's stack drops what
        // comes from a pod's interface in the name of somebody else (rp_filter, RFC 3704).
        let verdict = match flow.state.direction() {
            Direction::Reply if !flow.state.hairpin() => {
                flow.alive(packet.tuple.protocol(), tables.now()).then_some(Verdict::Pass(Reason::NotService))
            }
            _ => follow(frame, tables, &packet, flow),
        };
        if let Some(verdict) = verdict {
            return verdict;
        }
    }
    match tables.frontend(&FrontendKey::new(packet.tuple.destination(), packet.tuple.protocol())) {
        Some(frontend) => open(frame, tables, &packet, &frontend, known.as_ref()),
        None => Verdict::Pass(Reason::NotService),
    }
}

/// Decides about a packet that is about to reach a pod, and translates it.
#[inline(always)]
pub fn to_pod<F: Frame, T: Tables>(frame: &mut F, tables: &mut T) -> Verdict {
    let packet = match packet::parse(frame) {
        Ok(packet) => packet,
        Err(reason) => return Verdict::Pass(reason),
    };
    if !tables.may_hold(Place::of_backend(packet.tuple.source())) {
        return Verdict::Pass(Reason::NotService);
    }
    match tables.flow(&packet.tuple) {
        Some(flow) if flow.state.direction() == Direction::Reply && !flow.state.hairpin() => {
            follow(frame, tables, &packet, &flow).unwrap_or(Verdict::Pass(Reason::NotService))
        }
        _ => Verdict::Pass(Reason::NotService),
    }
}

/// Translates a packet of a known flow; `None` if the entry no longer holds for it.
#[inline(always)]
fn follow<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &mut T,
    packet: &Packet,
    flow: &Flow,
) -> Option<Verdict> {
    let protocol = packet.tuple.protocol();
    let now = tables.now();
    if !flow.alive(protocol, now) {
        return None;
    }
    let reason = match flow.state.direction() {
        Direction::Reply => Reason::Reply,
        // The client uses the port of a connection that is over for a new one.
        Direction::Forward if packet.flags.opens() && flow.state.closed() => return None,
        // A datagram need not go where the ones before it went, nor a SYN: they go to somebody who is
        // there.
        Direction::Forward if movable(packet) && !tables.serves(flow.backend) => return None,
        Direction::Forward => Reason::Established,
    };
    let to = flow.to(protocol);
    let state = flow.state.after(packet.flags);
    if state != flow.state || now.since(flow.seen) >= REFRESH {
        keep(tables, &packet.tuple, flow, &to, state, now);
    }
    Some(translate(frame, packet, &to, state, reason))
}

/// Whether a packet may as well go to another backend than the ones of its flow before it.
#[inline(always)]
const fn movable(packet: &Packet) -> bool {
    matches!(packet.tuple.protocol(), Protocol::UDP) || packet.flags.opens()
}

/// Notes in both entries of a flow what a packet has changed, and writes the other one anew if the table
/// has lost it.
#[inline(always)]
fn keep<T: Tables>(tables: &mut T, from: &Tuple, flow: &Flow, to: &Tuple, state: State, now: Time) {
    tables.touch_flow(from, state, now);
    let other = to.reply();
    let overwrite = match tables.flow(&other) {
        None => Overwrite::No,
        Some(entry) if entry.to(from.protocol()) == from.reply() => {
            tables.touch_flow(&other, state, now);
            return;
        }
        // A later flow has this one's tuple: what this one still does is no news of that one.
        Some(entry) if taken(&entry, from, now) => return,
        Some(_) => Overwrite::Yes,
    };
    let entry = Flow::new(&from.reply(), flow.backend, state.opposite(), now);
    // A full table is no reason to lose the packet at hand: the next one tries again.
    let _ = tables.insert_flow(&other, &entry, overwrite);
}

/// Opens a flow to a backend of `frontend`; `stale` is the entry for the packet that no longer holds, if
/// there is one.
#[inline(always)]
fn open<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &mut T,
    packet: &Packet,
    frontend: &Frontend,
    stale: Option<&Flow>,
) -> Verdict {
    let protocol = packet.tuple.protocol();
    if protocol == Protocol::TCP && !packet.flags.opens() {
        // It may belong to a connection that somebody else translates since before podnet was here.
        return Verdict::Pass(Reason::MidConnection);
    }
    let Some(choice) = select(tables, frontend.inside) else {
        return match reject::reply(frame, packet) {
            Some(()) => Verdict::Return(Reason::NoEndpoints),
            None => Verdict::Drop(Reason::NoEndpoints),
        };
    };
    let now = tables.now();
    let (to, state) = match reserve(tables, packet, &choice, now) {
        Ok(reserved) => reserved,
        Err(reason) => return Verdict::Drop(reason),
    };
    let forward = Flow::new(&to, choice.backend, state, now);
    let overwrite = if stale.is_some() { Overwrite::Yes } else { Overwrite::No };
    match tables.insert_flow(&packet.tuple, &forward, overwrite) {
        Ok(()) => {
            let moved = stale.is_some_and(|flow| flow.alive(protocol, now) && !flow.state.closed());
            let reason = if moved { Reason::Moved } else { Reason::NewFlow };
            translate(frame, packet, &to, state, reason)
        }
        // Another CPU has opened the flow meanwhile: its choice holds.
        Err(InsertError::Exists) => match tables.flow(&packet.tuple) {
            Some(flow) => translate(frame, packet, &flow.to(protocol), flow.state, Reason::Established),
            None => Verdict::Drop(Reason::FlowTableFull),
        },
        Err(InsertError::Full) => Verdict::Drop(Reason::FlowTableFull),
    }
}

/// Takes a tuple towards the chosen backend whose replies belong to this flow alone, by writing the entry
/// of the replies.
///
/// The client's own port is taken at the backend when the client reaches the same backend through another
/// Service from the same port; the flow then gets another source port, as the kernel's NAT would do.
#[inline(always)]
fn reserve<T: Tables>(
    tables: &mut T,
    packet: &Packet,
    choice: &Choice,
    now: Time,
) -> Result<(Tuple, State), Reason> {
    let protocol = packet.tuple.protocol();
    let (client, service) = (packet.tuple.source(), packet.tuple.destination());
    let hairpin = choice.endpoint.addr == client.addr;
    let state = State::new(hairpin).after(packet.flags);
    // A pod that reaches itself sees the Service's address as its peer: its answer then leaves the pod
    // and can be translated back.
    let addr = if hairpin { service.addr } else { client.addr };
    let mut port = client.port;
    for _ in 0..SOURCE_PORTS {
        let to = Tuple::between(Endpoint { addr, port }, choice.endpoint, protocol);
        let replies = to.reply();
        let entry = Flow::new(&packet.tuple.reply(), choice.backend, state.opposite(), now);
        let overwrite = match tables.flow(&replies) {
            None => Overwrite::No,
            Some(other) if taken(&other, &packet.tuple, now) => {
                #[expect(clippy::cast_possible_truncation, reason = "any 15 bits")]
                let drawn = tables.random() as u16;
                port = Be16::new(0x8000 | drawn);
                continue;
            }
            Some(_) => Overwrite::Yes,
        };
        match tables.insert_flow(&replies, &entry, overwrite) {
            Ok(()) => return Ok((to, state)),
            Err(InsertError::Full) => return Err(Reason::FlowTableFull),
            // Another CPU was faster; the next round sees whose it is.
            Err(InsertError::Exists) => {}
        }
    }
    Err(Reason::Collision)
}

/// Whether an entry for replies belongs to a living flow other than that of `tuple`.
#[inline(always)]
fn taken(entry: &Flow, tuple: &Tuple, now: Time) -> bool {
    let protocol = tuple.protocol();
    entry.alive(protocol, now) && !entry.state.closed() && entry.to(protocol) != tuple.reply()
}

#[inline(always)]
fn translate<F: Frame>(frame: &mut F, packet: &Packet, to: &Tuple, state: State, reason: Reason) -> Verdict {
    if state.hairpin() && turn_around(frame).is_none() || nat::rewrite(frame, packet, to).is_none() {
        return Verdict::Drop(Reason::Truncated);
    }
    if state.hairpin() { Verdict::Return(reason) } else { Verdict::Translated(reason) }
}

/// Swaps the frame's MAC addresses: it goes back to who sent it.
#[inline(always)]
pub(crate) fn turn_around<F: Frame>(frame: &mut F) -> Option<()> {
    let [destination, source]: [[Be16; 3]; 2] = frame.load(0)?;
    frame.store(0, [source, destination])
}
