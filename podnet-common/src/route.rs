//! The way of a packet at the interfaces of a node.
//!
//! At an interface that faces a pod, what the pod sends comes through [`from_pod`], what it is sent through
//! [`to_pod`]; at one that faces other machines, what comes in through [`from_net`], what goes out through
//! [`to_net`]. A flow is opened where its client's packets are first met, and followed until it ends.

use crate::conntrack::{Direction, Flow, REFRESH, State, Time, Tuple, Way};
use crate::filter::Place;
use crate::frame::{Frame, Mac};
use crate::nat;
use crate::packet::{self, Packet};
use crate::reject;
use crate::select::{Choice, Nobody, Side, select};
use crate::service::{BackendFlags, Frontend, FrontendFlags, FrontendKey};
use crate::tables::{InsertError, Overwrite, Tables};
use crate::verdict::{Reason, Verdict};
use crate::wire::{Addr, Be16, Endpoint, Protocol};

/// How many source ports are tried for a client whose own is taken at the chosen backend, or that gets
/// one of the node's.
const SOURCE_PORTS: usize = 4;
/// How long the flow must have been idle whose source port is given to another when none is free.
const IDLE: u32 = Time::seconds(60);

/// The source ports of masqueraded flows: above those that Linux gives to sockets (`ip_local_port_range`,
/// 32768 to 60999), and kept from being bound to by `ip_local_reserved_ports`, which the agent sets.
pub const MASQUERADE_PORTS: core::ops::RangeInclusive<u16> = FIRST_PORT..=u16::MAX;
const FIRST_PORT: u16 = 61_000;

/// Who sends the packets that come to a hook.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sender {
    /// A pod of this node.
    Pod,
    /// Another machine.
    Net,
    /// This node itself.
    Node,
}

impl Sender {
    const fn side(self) -> Side {
        match self {
            Self::Pod | Self::Node => Side::Inside,
            Self::Net => Side::Outside,
        }
    }

    const fn way(self) -> Way {
        match self {
            Self::Pod => Way::POD,
            Self::Net => Way::OUTSIDE,
            Self::Node => Way::NODE,
        }
    }
}

/// Decides about a packet that a pod has sent, and translates it.
#[inline(always)]
pub fn from_pod<F: Frame, T: Tables>(frame: &mut F, tables: &mut T) -> Verdict {
    match packet::parse(frame) {
        Ok(packet) => enter(frame, tables, &packet, Sender::Pod),
        Err(reason) => Verdict::Pass(reason),
    }
}

/// Decides about a packet that another machine has sent to this node, and translates it.
#[inline(always)]
pub fn from_net<F: Frame, T: Tables>(frame: &mut F, tables: &mut T) -> Verdict {
    match packet::parse(frame) {
        Ok(packet) => enter(frame, tables, &packet, Sender::Net),
        Err(reason) => Verdict::Pass(reason),
    }
}

/// Decides about a packet that is about to reach a pod, and translates it.
#[inline(always)]
pub fn to_pod<F: Frame, T: Tables>(frame: &mut F, tables: &mut T) -> Verdict {
    match packet::parse(frame) {
        Ok(packet) => leave(frame, tables, &packet, Way::POD).unwrap_or(Verdict::Pass(Reason::NotService)),
        Err(reason) => Verdict::Pass(reason),
    }
}

/// Decides about a packet that is about to leave the node, and translates it: an answer to a client
/// outside, or what the node itself sends to a Service.
#[inline(always)]
pub fn to_net<F: Frame, T: Tables>(frame: &mut F, tables: &mut T) -> Verdict {
    let packet = match packet::parse(frame) {
        Ok(packet) => packet,
        Err(reason) => return Verdict::Pass(reason),
    };
    match leave(frame, tables, &packet, Way::OUTSIDE) {
        Some(verdict) => verdict,
        None => enter(frame, tables, &packet, Sender::Node),
    }
}

/// Translates a backend's answer that is about to reach a client on `way`; `None` if it is none.
///
/// Not earlier, where the answer leaves the backend: a node with strict source checks drops what comes from
/// a pod's interface in the name of somebody else (`rp_filter`, RFC 3704).
#[inline(always)]
fn leave<F: Frame, T: Tables>(frame: &mut F, tables: &mut T, packet: &Packet, way: Way) -> Option<Verdict> {
    if !tables.may_hold(Place::of_backend(packet.tuple.source())) {
        return None;
    }
    let flow = tables.flow(&packet.tuple)?;
    if flow.state.direction() == Direction::Reply && !flow.state.hairpin() && flow.way == way {
        follow(frame, tables, packet, &flow)
    } else {
        None
    }
}

/// Translates what a client sends to a Service, and answers that a hook for what comes in has to translate.
#[inline(always)]
fn enter<F: Frame, T: Tables>(frame: &mut F, tables: &mut T, packet: &Packet, sender: Sender) -> Verdict {
    let (destination, protocol) = (packet.tuple.destination(), packet.tuple.protocol());
    if !tables.may_hold(Place::of_frontend(destination.addr)) {
        return if tables.in_service_network(destination.addr) {
            Verdict::Drop(Reason::Unassigned)
        } else {
            Verdict::Pass(Reason::NotService)
        };
    }
    // Known flows first, SYNs too: a repeated one must not choose again.
    let known = tables.flow(&packet.tuple);
    if let Some(flow) = &known {
        let verdict = match flow.state.direction() {
            Direction::Reply if !flow.answered_on_entry() => {
                flow.alive(protocol, tables.now()).then_some(Verdict::Pass(Reason::NotService))
            }
            _ => follow(frame, tables, packet, flow),
        };
        if let Some(verdict) = verdict {
            return verdict;
        }
    }
    let found = match tables.frontend(&FrontendKey::new(destination, protocol)) {
        Some(frontend) => Some(frontend),
        None => match tables.frontend(&FrontendKey::rest_of(destination.addr)) {
            // A connection that podnet did not open may be in its middle.
            Some(rest) if packet.flags.opens() || !matches!(protocol, Protocol::TCP) => Some(rest),
            Some(_) => return Verdict::Pass(Reason::MidConnection),
            None if sender == Sender::Pod => left_behind(tables, destination, protocol),
            None => None,
        },
    };
    match found {
        Some(frontend) if !frontend.flags.has(FrontendFlags::LOOPBACK) => {
            open(frame, tables, packet, &frontend, known.as_ref(), sender)
        }
        _ => Verdict::Pass(Reason::NotService),
    }
}

/// The frontend of a connected UDP socket that was led to a backend which no longer serves: its datagrams
/// are translated one by one from now on.
#[inline(always)]
fn left_behind<T: Tables>(tables: &T, destination: Endpoint, protocol: Protocol) -> Option<Frontend> {
    if !matches!(protocol, Protocol::UDP) {
        return None;
    }
    let peer = tables.led(destination, protocol)?;
    if tables.serves(peer.backend) {
        return None;
    }
    tables.frontend(&FrontendKey::new(peer.endpoint(), protocol))
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
        Direction::Forward if movable(packet) => {
            if !tables.serves(flow.backend) {
                return None;
            }
            Reason::Established
        }
        Direction::Forward if !tables.has(flow.backend, BackendFlags::PRESENT) => {
            return Some(refuse(frame, tables, packet, flow.way, Reason::BackendGone));
        }
        Direction::Forward => Reason::Established,
    };
    let to = flow.to(protocol);
    let state = flow.state.after(packet.flags);
    if state != flow.state || now.since(flow.seen) >= REFRESH {
        keep(tables, &packet.tuple, flow, &to, state, now);
    }
    Some(translate(frame, tables, packet, &to, &flow.seen_in(state), reason))
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
    // A full table is no reason to lose the packet at hand: the next one tries again.
    let _ = tables.insert_flow(&other, &flow.other(from, state, now), overwrite);
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
    sender: Sender,
) -> Verdict {
    let (client, protocol) = (packet.tuple.source(), packet.tuple.protocol());
    if protocol == Protocol::TCP && !packet.flags.opens() {
        // It may belong to a connection that somebody else translates since before podnet was here.
        return Verdict::Pass(Reason::MidConnection);
    }
    if frontend.flags.has(FrontendFlags::SOURCE_RANGES) && !tables.admits(frontend.service, client.addr) {
        return Verdict::Drop(Reason::SourceRange);
    }
    let choice = match select(tables, frontend, sender.side(), client.addr) {
        Ok(choice) => choice,
        Err(Nobody::NoneLocal) => return Verdict::Drop(Reason::NoneLocal),
        Err(Nobody::NoEndpoints) => return refuse(frame, tables, packet, sender.way(), Reason::NoEndpoints),
        Err(Nobody::NoPort) => return refuse(frame, tables, packet, sender.way(), Reason::NoPort),
    };
    let now = tables.now();
    let origin = match origin(frame, tables, packet, frontend, &choice, sender) {
        Ok(origin) => origin,
        Err(reason) => return Verdict::Drop(reason),
    };
    let (to, forward) = match reserve(tables, packet, &choice, &origin, now) {
        Ok(reserved) => reserved,
        Err(reason) => return Verdict::Drop(reason),
    };
    let overwrite = if stale.is_some() { Overwrite::Yes } else { Overwrite::No };
    match tables.insert_flow(&packet.tuple, &forward, overwrite) {
        Ok(()) => {
            let moved = stale.is_some_and(|flow| flow.alive(protocol, now) && !flow.state.closed());
            let reason = if moved { Reason::Moved } else { Reason::NewFlow };
            translate(frame, tables, packet, &to, &forward, reason)
        }
        // Another CPU has opened the flow meanwhile: its choice holds.
        Err(InsertError::Exists) => match tables.flow(&packet.tuple) {
            Some(flow) => translate(frame, tables, packet, &flow.to(protocol), &flow, Reason::Established),
            None => Verdict::Drop(Reason::FlowTableFull),
        },
        Err(InsertError::Full) => Verdict::Drop(Reason::FlowTableFull),
    }
}

/// Whom the backend is to see as the client of a flow.
struct Origin {
    addr: Addr,
    way: Way,
    hairpin: bool,
    mac: Mac,
}

/// The address by which the backend is to know the client.
#[inline(always)]
fn origin<F: Frame, T: Tables>(
    frame: &F,
    tables: &T,
    packet: &Packet,
    frontend: &Frontend,
    choice: &Choice,
    sender: Sender,
) -> Result<Origin, Reason> {
    let (client, service) = (packet.tuple.source(), packet.tuple.destination());
    if sender == Sender::Pod && choice.endpoint.addr == client.addr {
        // A pod that reaches itself sees the Service's address as its peer: its answer then leaves the pod
        // and can be translated back.
        return Ok(Origin { addr: service.addr, way: Way::POD, hairpin: true, mac: Mac::default() });
    }
    // Answers to a client outside come by this node only if the backend is on it.
    let masquerade = match sender {
        Sender::Pod => frontend.flags.has(FrontendFlags::MASQUERADE),
        Sender::Net => frontend.flags.has(FrontendFlags::MASQUERADE) || !choice.local,
        Sender::Node => false,
    };
    if !masquerade {
        let mac =
            if sender == Sender::Node { frame.load(6).ok_or(Reason::Truncated)? } else { Mac::default() };
        return Ok(Origin { addr: client.addr, way: sender.way(), hairpin: false, mac });
    }
    let to = Tuple::between(client, choice.endpoint, packet.tuple.protocol());
    let out = tables.way_out(&to).ok_or(Reason::NoRoute)?;
    Ok(Origin { addr: out.source, way: Way::MASQUERADE, hairpin: false, mac: Mac::default() })
}

/// Takes a tuple towards the chosen backend whose replies belong to this flow alone, by writing the entry
/// of the replies; the tuple and the forward entry, which is still to be written.
///
/// The client's own port is taken at the backend when the client reaches the same backend through another
/// Service from the same port; the flow then gets another source port, as the kernel's NAT would do. A
/// masqueraded flow gets one of the node's; when all that are tried are in use, that of the flow among them
/// which has been idle for the longest time.
#[inline(always)]
fn reserve<T: Tables>(
    tables: &mut T,
    packet: &Packet,
    choice: &Choice,
    origin: &Origin,
    now: Time,
) -> Result<(Tuple, Flow), Reason> {
    let (client, protocol) = (packet.tuple.source(), packet.tuple.protocol());
    let masquerade = origin.way == Way::MASQUERADE;
    let state = State::new(origin.hairpin).after(packet.flags);
    let interface = tables.interface();
    let mut port = if masquerade { masquerade_port(tables.random()) } else { client.port };
    let mut idle: Option<(Tuple, Flow)> = None;
    for _ in 0..SOURCE_PORTS {
        let to = Tuple::between(Endpoint { addr: origin.addr, port }, choice.endpoint, protocol);
        let replies = to.reply();
        let forward = Flow::new(&to, choice.backend, state, now).on(origin.way, interface, origin.mac);
        let entry = forward.other(&packet.tuple, state, now);
        let overwrite = match tables.flow(&replies) {
            None => Overwrite::No,
            Some(other) if taken(&other, &packet.tuple, now) => {
                if masquerade && idle.as_ref().is_none_or(|(_, flow)| other.seen < flow.seen) {
                    idle = Some((to, other));
                }
                let drawn = tables.random();
                port = if masquerade { masquerade_port(drawn) } else { any_port(drawn) };
                continue;
            }
            Some(_) => Overwrite::Yes,
        };
        match tables.insert_flow(&replies, &entry, overwrite) {
            Ok(()) => return Ok((to, forward)),
            Err(InsertError::Full) => return Err(Reason::FlowTableFull),
            // Another CPU was faster; the next round sees whose it is.
            Err(InsertError::Exists) => {}
        }
    }
    match idle {
        Some((to, flow)) if now.since(flow.seen) >= IDLE => {
            // Without its forward entry nothing of the other flow comes through by this port any more.
            tables.remove_flow(&flow.to(protocol).reply());
            let forward = Flow::new(&to, choice.backend, state, now).on(origin.way, interface, origin.mac);
            let entry = forward.other(&packet.tuple, state, now);
            match tables.insert_flow(&to.reply(), &entry, Overwrite::Yes) {
                Ok(()) => Ok((to, forward)),
                Err(_) => Err(Reason::FlowTableFull),
            }
        }
        Some(_) => Err(Reason::SourcePorts),
        None => Err(Reason::Collision),
    }
}

/// One of the node's ports for masqueraded flows, by chance.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "less than 2^16, and less than the number of ports")]
const fn masquerade_port(drawn: u32) -> Be16 {
    const PORTS: u64 = u16::MAX as u64 - FIRST_PORT as u64 + 1;
    Be16::new(FIRST_PORT + ((drawn as u64 * PORTS) >> 32) as u16)
}

/// One of the upper half of all ports, by chance.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "any 15 bits")]
const fn any_port(drawn: u32) -> Be16 {
    Be16::new(0x8000 | drawn as u16)
}

/// Whether an entry for replies belongs to a living flow other than that of `tuple`.
#[inline(always)]
fn taken(entry: &Flow, tuple: &Tuple, now: Time) -> bool {
    let protocol = tuple.protocol();
    entry.alive(protocol, now) && !entry.state.closed() && entry.to(protocol) != tuple.reply()
}

/// Makes of a packet the refusal that its sender, on `way`, gets.
#[inline(always)]
fn refuse<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    packet: &Packet,
    way: Way,
    reason: Reason,
) -> Verdict {
    match reject::reply(frame, packet) {
        Some(()) if way == Way::NODE => Verdict::Inject(tables.interface(), reason),
        Some(()) => Verdict::Return(reason),
        None => Verdict::Drop(reason),
    }
}

/// Gives a packet the tuple `to`, and sends it on as its flow's entry says.
#[inline(always)]
fn translate<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    packet: &Packet,
    to: &Tuple,
    flow: &Flow,
    reason: Reason,
) -> Verdict {
    let verdict = match (flow.way, flow.state.direction()) {
        _ if flow.state.hairpin() => {
            if turn_around(frame).is_none() {
                return Verdict::Drop(Reason::Truncated);
            }
            Verdict::Return(reason)
        }
        (Way::NODE, Direction::Reply) => {
            // Linux takes in only what is addressed to the interface it comes in by.
            if frame.store(0, flow.client_mac).is_none() {
                return Verdict::Drop(Reason::Truncated);
            }
            Verdict::Inject(flow.client_interface, reason)
        }
        (Way::NODE, Direction::Forward) | (Way::MASQUERADE, _) => {
            let Some(out) = tables.way_out(to) else { return Verdict::Drop(Reason::NoRoute) };
            if flow.way == Way::MASQUERADE && nat::hop(frame, packet.family).is_none() {
                return Verdict::Pass(Reason::Expired);
            }
            Verdict::Forward(out.interface, reason)
        }
        _ => Verdict::Translated(reason),
    };
    match nat::rewrite(frame, packet, to) {
        Some(()) => verdict,
        None => Verdict::Drop(Reason::Truncated),
    }
}

/// Swaps the frame's MAC addresses: it goes back to who sent it.
#[inline(always)]
pub(crate) fn turn_around<F: Frame>(frame: &mut F) -> Option<()> {
    let [destination, source]: [[Be16; 3]; 2] = frame.load(0)?;
    frame.store(0, [source, destination])
}
