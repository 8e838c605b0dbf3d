//! Whom a backend sees as the client of a flow: by which address and, where the client's own port is taken or the
//! address is the node's, by which source port.

use crate::conntrack::{Flow, State, Time, Tuple, Way};
use crate::frame::{Frame, Mac};
use crate::packet::Packet;
use crate::route::Sender;
use crate::select::Choice;
use crate::service::{Frontend, FrontendFlags, FrontendKind, ServiceId};
use crate::tables::{InsertError, Overwrite, Tables};
use crate::verdict::Reason;
use crate::wire::{Addr, Be16, Endpoint};

/// How many source ports are tried for a client whose own is taken at the chosen backend, or that gets
/// one of the node's.
const SOURCE_PORTS: usize = 16;
/// How long the flow must have been idle whose source port is given to another when none is free.
const IDLE: u32 = Time::seconds(60);

/// The source ports of masqueraded flows: above those that Linux gives to sockets (`ip_local_port_range`,
/// 32768 to 60999), and kept from being bound to by `ip_local_reserved_ports`, which the agent sets.
pub const MASQUERADE_PORTS: core::ops::RangeInclusive<u16> = FIRST_PORT..=u16::MAX;
const FIRST_PORT: u16 = 61_000;

/// Whom the backend is to see as the client of a flow.
pub(crate) struct Origin {
    addr: Addr,
    way: Way,
    state: State,
    mac: Mac,
}

/// The address by which the backend is to know the client.
#[inline(always)]
pub(crate) fn origin<F: Frame, T: Tables>(
    frame: &F,
    tables: &T,
    packet: &Packet,
    frontend: &Frontend,
    choice: &Choice,
    sender: Sender,
) -> Result<Origin, Reason> {
    let (client, service) = (packet.tuple.source(), packet.tuple.destination());
    if matches!(sender, Sender::Pod | Sender::Led) && choice.endpoint.addr == client.addr {
        // A pod that reaches itself sees the Service's address as its peer: its answer then leaves the pod
        // and can be translated back.
        return Ok(Origin {
            addr: service.addr,
            way: Way::POD,
            state: State::new(true),
            mac: Mac::default(),
        });
    }
    // Answers to a client outside come by this node only if the backend is on it; and ClusterIPs are the
    // cluster's own (semantics of kube-proxy's detectLocalMode).
    let masquerade = match sender {
        // It chose its address for the way to the Service, and another node that checks sources strictly takes
        // from a tunnel only what is behind it.
        Sender::Node => !choice.local,
        _ if frontend.flags.has(FrontendFlags::MASQUERADE) => true,
        _ if frontend.flags.has(FrontendFlags::POD_NETWORKS) => !tables.admits(ServiceId::PODS, client.addr),
        Sender::Pod | Sender::Led => false,
        Sender::Net => frontend.kind == FrontendKind::CLUSTER_IP || !choice.local,
    };
    let mac = if sender == Sender::Node { frame.load(6).ok_or(Reason::Truncated)? } else { Mac::default() };
    if !masquerade {
        let state = State::new(false);
        let state = if sender == Sender::Led { state.sent_at_once() } else { state };
        return Ok(Origin { addr: client.addr, way: sender.way(), state, mac });
    }
    let to = Tuple::between(client, choice.endpoint, packet.tuple.protocol());
    let addr = match tables.own_address(&to) {
        Some(addr) => addr,
        // The backend has this node's own address: its answers pass here anyway. Those to the node do so mostly.
        None if choice.local || sender == Sender::Node => {
            return Ok(Origin { addr: client.addr, way: sender.way(), state: State::new(false), mac });
        }
        None => return Err(Reason::NoRoute),
    };
    let way = if sender == Sender::Node { Way::NODE } else { Way::MASQUERADE };
    Ok(Origin { addr, way, state: State::new(false), mac })
}

/// Takes a tuple towards the chosen backend whose replies belong to this flow alone, by writing the entry
/// of the replies; the tuple and the forward entry, which is still to be written.
///
/// The client's own port is taken at the backend when the client reaches the same backend through another
/// Service from the same port; the flow then gets another source port, as the kernel's NAT would do. A
/// masqueraded flow gets one of the node's; when all that are tried are in use, that of the flow among them
/// which has been idle for the longest time.
#[inline(always)]
pub(crate) fn reserve<T: Tables>(
    tables: &mut T,
    packet: &Packet,
    choice: &Choice,
    origin: &Origin,
    now: Time,
) -> Result<(Tuple, Flow), Reason> {
    let protocol = packet.tuple.protocol();
    let state = origin.state.after(packet.flags);
    let interface = tables.interface();
    // A socket of the node may reach the same backend directly, and has its port from the kernel.
    let masquerade = matches!(origin.way, Way::MASQUERADE | Way::NODE);
    let port = if masquerade { masquerade_port(tables.random()) } else { packet.tuple.source().port };
    let mut replies = Tuple::between(choice.endpoint, Endpoint { addr: origin.addr, port }, protocol);
    // Nearly always the first port is free, which the attempt itself tells.
    let mut overwrite = Overwrite::No;
    for attempt in 0..2 {
        let to = replies.reply();
        let forward = Flow::new(&to, choice.backend, state, now).on(origin.way, interface, origin.mac);
        match tables.insert_flow(&replies, &forward.other(&packet.tuple, state, now), overwrite) {
            Ok(()) => return Ok((to, forward)),
            Err(InsertError::Full) => return Err(Reason::FlowTableFull),
            Err(InsertError::Exists) if attempt == 0 => {
                overwrite = search(tables, &mut replies, &packet.tuple, masquerade, now)?;
            }
            // Another CPU was faster.
            Err(InsertError::Exists) => {}
        }
    }
    Err(Reason::Collision)
}

/// Gives `replies`, the tuple of the replies to the flow of `client`, a port of the client's that it can have;
/// and whether there is an entry to be overwritten.
#[inline(always)]
fn search<T: Tables>(
    tables: &mut T,
    replies: &mut Tuple,
    client: &Tuple,
    masquerade: bool,
    now: Time,
) -> Result<Overwrite, Reason> {
    // The port of the flow that was idle for longest, and since when.
    let (mut idle, mut since) = (Be16::new(0), now);
    for _ in 0..SOURCE_PORTS {
        match tables.flow(replies) {
            None => return Ok(Overwrite::No),
            Some(other) if taken(tables, &other, client, now) => {
                if other.seen < since {
                    (idle, since) = (replies.destination().port, other.seen);
                }
            }
            Some(_) => return Ok(Overwrite::Yes),
        }
        let drawn = tables.random();
        replies.set_destination_port(if masquerade { masquerade_port(drawn) } else { any_port(drawn) });
    }
    if !masquerade {
        return Err(Reason::Collision);
    }
    if now.since(since) < IDLE {
        return Err(Reason::SourcePorts);
    }
    replies.set_destination_port(idle);
    if let Some(other) = tables.flow(replies) {
        // Without its forward entry nothing of the other flow comes through by this port any more.
        tables.remove_flow(&other.to(replies.protocol()).reply());
    }
    Ok(Overwrite::Yes)
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
pub(crate) fn taken<T: Tables>(tables: &T, entry: &Flow, tuple: &Tuple, now: Time) -> bool {
    let protocol = tuple.protocol();
    entry.alive(protocol, now, tables) && !entry.state.closed() && entry.to(protocol) != tuple.reply()
}
