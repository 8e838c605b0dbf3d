//! The way of a packet at the interfaces of a node.
//!
//! A packet is met at up to four [hooks](Hook): where it enters and leaves the node, and where it leaves and
//! reaches a pod. A flow is opened where its client's packets are first met, and followed until it ends.

use crate::conntrack::{Direction, Flow, REFRESH, REFRESH_BY_OTHER, State, Time, Tuple, Way};
use crate::dns;
use crate::filter::Place;
use crate::fragment::{self, Fragment, FragmentKey, FragmentPorts};
use crate::frame::Frame;
use crate::icmp;
use crate::nat;
use crate::origin::{origin, reserve, taken};
use crate::packet::{self, ETHERNET, Packet, TcpFlags};
use crate::reject;
use crate::sctp;
use crate::select::{Nobody, Side, select};
use crate::service::{BackendFlags, Frontend, FrontendFlags, FrontendKey};
use crate::tables::{InsertError, NoWay, Overwrite, Tables};
use crate::verdict::{Reason, Verdict};
use crate::wire::{Addr, Be16, Endpoint, Family, Protocol};

/// Who sends the packets that come to a hook.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sender {
    /// A pod of this node.
    Pod,
    /// A pod's socket that was led to a backend which no longer serves.
    Led,
    /// Another machine.
    Net,
    /// This node itself.
    Node,
}

impl Sender {
    const fn side(self) -> Side {
        match self {
            Self::Pod | Self::Led | Self::Node => Side::Inside,
            Self::Net => Side::Outside,
        }
    }

    pub(crate) const fn way(self) -> Way {
        match self {
            Self::Pod | Self::Led => Way::POD,
            Self::Net => Way::OUTSIDE,
            Self::Node => Way::NODE,
        }
    }
}

/// Where a packet is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Hook {
    /// A pod has sent it.
    FromPod,
    /// It is about to reach a pod.
    ToPod,
    /// Another machine has sent it.
    FromNet,
    /// It is about to leave the node.
    ToNet,
}

impl Hook {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::FromPod, Self::ToPod, Self::FromNet, Self::ToNet];

    /// Whether packets of an entry are translated here.
    ///
    /// Answers to pods and to clients outside are where they reach the client, not where they leave the
    /// backend: a node with strict source checks drops what comes from a pod's interface in the name of
    /// somebody else (`rp_filter`, RFC 3704).
    #[inline(always)]
    fn translates(self, flow: &Flow) -> bool {
        let on_entry = matches!(self, Self::FromPod | Self::FromNet);
        match (flow.state.direction(), flow.way) {
            _ if flow.state.hairpin() => on_entry,
            (Direction::Reply, Way::POD) => self == Self::ToPod,
            (Direction::Reply, Way::OUTSIDE) | (Direction::Forward, Way::NODE) => self == Self::ToNet,
            _ => on_entry,
        }
    }
}

/// Decides about a whole TCP or UDP packet of a known flow, or of none, and translates it: nearly all
/// packets. Others are left over.
#[inline(always)]
pub fn route<F: Frame, T: Tables>(hook: Hook, frame: &mut F, tables: &mut T) -> Verdict {
    match packet::parse(frame) {
        Ok(packet) if packet.tuple.protocol() == Protocol::SCTP => Verdict::Sctp,
        Ok(packet) if hook == Hook::FromPod && is_query(&packet) && tables.answers_names() => Verdict::Query,
        Ok(packet) => decide::<false, _, _>(hook, frame, tables, &packet, true),
        Err(Reason::Fragment | Reason::OtherProtocol) => Verdict::Rest,
        Err(reason) => Verdict::Pass(reason),
    }
}

/// Whether a packet looks like one that [`dns::answer`](crate::dns::answer) answers.
#[inline(always)]
fn is_query(packet: &Packet) -> bool {
    packet.tuple.destination().port == dns::PORT && packet.tuple.protocol() == Protocol::UDP
}

/// Decides about a query of a pod's that was not answered: as about any other packet.
#[inline(always)]
pub fn unanswered<F: Frame, T: Tables>(frame: &mut F, tables: &mut T) -> Verdict {
    match packet::parse(frame) {
        Ok(packet) => decide::<false, _, _>(Hook::FromPod, frame, tables, &packet, true),
        Err(reason) => Verdict::Pass(reason),
    }
}

/// Decides about fragments and ICMP errors.
#[inline(always)]
pub fn rest<F: Frame, T: Tables>(hook: Hook, frame: &mut F, tables: &mut T) -> Verdict {
    match fragment::parse(frame) {
        // The program for SCTP looks at packets without a fragment header only.
        Ok(Fragment::Whole(packet)) if packet.tuple.protocol() == Protocol::SCTP => {
            Verdict::Pass(Reason::SctpFragment)
        }
        Ok(Fragment::Whole(packet)) => decide::<false, _, _>(hook, frame, tables, &packet, true),
        // It is translated as if it were the whole packet.
        Ok(Fragment::First(packet, key)) => {
            if tables.may_hold(Place::of_frontend(packet.tuple.destination().addr))
                || tables.may_hold(Place::of_backends(packet.tuple.source().addr))
            {
                tables.remember_fragment(&key, &FragmentPorts::new(&packet.tuple, tables.now()));
            }
            decide::<false, _, _>(hook, frame, tables, &packet, false)
        }
        Ok(Fragment::Later(key)) => later_fragment(hook, frame, tables, &key),
        Err(Reason::OtherProtocol) => icmp_error(hook, frame, tables),
        Err(reason) => Verdict::Pass(reason),
    }
}

/// Decides about an SCTP packet of a known flow, or of none.
#[inline(always)]
pub fn sctp<F: Frame, T: Tables>(hook: Hook, frame: &mut F, tables: &mut T) -> Verdict {
    match packet::parse(frame) {
        Ok(packet) => decide::<true, _, _>(hook, frame, tables, &packet, true),
        Err(reason) => Verdict::Pass(reason),
    }
}

/// Decides about a packet, whole or a first fragment, that may open a flow.
#[inline(always)]
pub fn open<F: Frame, T: Tables>(hook: Hook, frame: &mut F, tables: &mut T) -> Verdict {
    let packet = match fragment::parse(frame) {
        Ok(Fragment::Whole(packet) | Fragment::First(packet, _)) => packet,
        Ok(Fragment::Later(_)) => return Verdict::Pass(Reason::Fragment),
        Err(reason) => return Verdict::Pass(reason),
    };
    match hook {
        Hook::FromPod => enter(frame, tables, &packet, Sender::Pod),
        Hook::FromNet => enter(frame, tables, &packet, Sender::Net),
        Hook::ToNet => enter(frame, tables, &packet, Sender::Node),
        Hook::ToPod => Verdict::Pass(Reason::NotService),
    }
}

/// Decides about a datagram, whole or a first fragment, whose flow has been followed for a second without a look at
/// its frontend: it goes on, or another one is opened in its place.
#[inline(always)]
pub fn renew<F: Frame, T: Tables>(hook: Hook, frame: &mut F, tables: &mut T) -> Verdict {
    let (packet, whole) = match fragment::parse(frame) {
        Ok(Fragment::Whole(packet)) => (packet, true),
        Ok(Fragment::First(packet, _)) => (packet, false),
        Ok(Fragment::Later(_)) => return Verdict::Pass(Reason::Fragment),
        Err(reason) => return Verdict::Pass(reason),
    };
    let side = if hook == Hook::FromNet { Side::Outside } else { Side::Inside };
    let Some(flow) = tables.flow(&packet.tuple) else { return Verdict::Open };
    if !stays(tables, &packet.tuple, &flow, side) {
        return Verdict::Open;
    }
    let (to, now) = (flow.to(packet.tuple.protocol()), tables.now());
    keep(tables, &packet.tuple, &flow, &to, flow.state.after(packet.flags), now);
    let short_cut = if whole && hook == Hook::FromPod && tables.short_cuts() {
        short_cut(tables, &packet, &flow)
    } else {
        None
    };
    match (translate::<false, _, _>(frame, tables, &packet, &to, &flow, Reason::Established), short_cut) {
        (Verdict::Translated(reason), Some(interface)) => Verdict::ShortCut(interface, reason),
        (verdict, _) => verdict,
    }
}

/// Whether a flow may stay with its backend: that is there, of the frontend that the client sends to, and may be used
/// by it. One that leaves the sets without leaving the Service, because it terminates for instance, finishes what it
/// has.
#[inline(always)]
fn stays<T: Tables>(tables: &T, tuple: &Tuple, flow: &Flow, side: Side) -> bool {
    let (destination, protocol) = (tuple.destination(), tuple.protocol());
    let at = match tables.led(destination, protocol) {
        // Its socket was led away from the frontend.
        Some(peer) => peer.endpoint(),
        None => destination,
    };
    let Some(frontend) = tables.frontend(&FrontendKey::new(at, protocol)) else { return false };
    let local = match side {
        Side::Inside => FrontendFlags::INSIDE_LOCAL,
        Side::Outside => FrontendFlags::OUTSIDE_LOCAL,
    };
    let needed = if frontend.flags.has(local) { BackendFlags::LOCAL } else { BackendFlags::NONE };
    tables.backend(flow.backend.id).is_some_and(|backend| {
        backend.generation == flow.backend.generation
            && backend.service == frontend.service
            && backend.flags.has(BackendFlags::SERVING.with(needed))
    })
}

/// Tells the sender of a packet, whole or a first fragment, why it cannot leave this node: what a router would say
/// (RFC 1191, RFC 8201; RFC 1812, 5.3.1), in the name of the address that the packet was sent to.
///
/// Too large a packet is answered even if it may be fragmented, which a program cannot do: Linux as its sender heeds
/// the answer all the same, and fragments those after it.
#[inline(always)]
pub fn complain<F: Frame, T: Tables>(frame: &mut F, tables: &mut T) -> Verdict {
    const TRUNCATED: Verdict = Verdict::Drop(Reason::Truncated);
    let packet = match fragment::parse(frame) {
        Ok(Fragment::Whole(packet) | Fragment::First(packet, _)) => packet,
        Ok(Fragment::Later(_)) => return Verdict::Drop(Reason::FragmentAlone),
        Err(reason) => return Verdict::Drop(reason),
    };
    let Some(flow) = tables.flow(&packet.tuple) else { return Verdict::Drop(Reason::NoRoute) };
    let Some(headers) = packet::headers(frame, &packet) else { return TRUNCATED };
    let to = flow.to(packet.tuple.protocol());
    let (error, reason) = match tables.way_out(&to, frame.longest(headers)) {
        Err(NoWay::Mtu(mtu)) => (reject::Error::TooBig(mtu), Reason::TooBig),
        Ok(_) if nat::expires(frame, packet.family) == Some(true) => {
            (reject::Error::TimeExceeded, Reason::Expired)
        }
        // Or there is a route by now: its sender may try again.
        _ => return Verdict::Drop(Reason::NoRoute),
    };
    if !tables.may_refuse() {
        return Verdict::Drop(Reason::TooManyRefusals);
    }
    match reject::error(frame, &packet, error) {
        Some(()) if flow.way == Way::NODE => Verdict::Inject(tables.interface(), reason),
        Some(()) => Verdict::Return(reason),
        None => Verdict::Drop(reason),
    }
}

/// Translates a packet of a known flow: one that is whole, or the first fragment of one.
#[inline(always)]
fn decide<const SCTP: bool, F: Frame, T: Tables>(
    hook: Hook,
    frame: &mut F,
    tables: &mut T,
    packet: &Packet,
    whole: bool,
) -> Verdict {
    let (source, destination) = (packet.tuple.source(), packet.tuple.destination());
    // Fragments stay together, on the way through the stack.
    let short_cuts = whole && hook == Hook::FromPod && tables.short_cuts();
    let answer = (short_cuts || matches!(hook, Hook::ToPod | Hook::ToNet))
        && tables.may_hold(Place::of_backend(source));
    let request = hook != Hook::ToPod && tables.may_hold(Place::of_frontend(destination.addr));
    if !answer && !request {
        return if hook == Hook::ToPod {
            Verdict::Pass(Reason::NotService)
        } else {
            nobodys(tables, destination.addr)
        };
    }
    // Known flows first, SYNs too: a repeated one must not choose again.
    let now = tables.now();
    if let Some(flow) = tables.flow(&packet.tuple)
        && flow.alive(packet.tuple.protocol(), now, tables)
    {
        let short_cut = if short_cuts { short_cut(tables, packet, &flow) } else { None };
        if hook.translates(&flow) || short_cut.is_some() {
            // The frontend of a datagram's flow is asked no more often than it is noted that the flow lives.
            if !SCTP && is_due(packet, &flow, now) {
                return Verdict::Renew;
            }
            match (follow::<SCTP, _, _>(frame, tables, packet, &flow, now), short_cut) {
                (Some(Verdict::Translated(reason)), Some(interface)) => {
                    return Verdict::ShortCut(interface, reason);
                }
                (Some(verdict), _) => return verdict,
                (None, _) => {}
            }
        } else {
            return Verdict::Pass(Reason::NotService);
        }
    }
    if request { Verdict::Open } else { Verdict::Pass(Reason::NotService) }
}

/// The interface of this node behind which a packet's receiver is, if the packet may go there directly, past
/// the node's stack: which has to have accepted the flow's packets both ways, and is to see how it begins and
/// ends. That is what the kernel's own flow table does (Documentation/networking/nf_flowtable.rst).
#[inline(always)]
fn short_cut<T: Tables>(tables: &mut T, packet: &Packet, flow: &Flow) -> Option<u32> {
    const EVENTS: u8 = TcpFlags::SYN | TcpFlags::FIN | TcpFlags::RST;
    if flow.way != Way::POD || flow.state.hairpin() {
        return None;
    }
    let interface = match flow.state.direction() {
        Direction::Forward => flow.backend_interface,
        Direction::Reply => {
            // Where answers come from is where requests go to.
            let here = tables.interface();
            if flow.backend_interface != here {
                let protocol = packet.tuple.protocol();
                tables.note_backend(&packet.tuple, here);
                tables.note_backend(&flow.to(protocol).reply(), here);
            }
            flow.client_interface
        }
    };
    let open = flow.state.replied() && !flow.state.closed() && !packet.flags.has(EVENTS);
    (open && interface != 0).then_some(interface)
}

/// Translates a fragment like the first one of its packet, for which it waits if it has come before: by going
/// through the node's ingress again.
#[inline(always)]
fn later_fragment<F: Frame, T: Tables>(
    hook: Hook,
    frame: &mut F,
    tables: &mut T,
    key: &FragmentKey,
) -> Verdict {
    let (known, now) = (tables.fragment(key), tables.now());
    let tuple = match key.tuple(known.as_ref(), now) {
        Ok(tuple) => tuple,
        Err(reason) => {
            let waiting = FragmentPorts::waiting(known.as_ref(), now);
            // An answer waits where it leaves its backend: it cannot where it is translated, on its way out.
            return if matches!(hook, Hook::FromPod | Hook::FromNet)
                && (tables.may_hold(Place::of_frontend(key.destination()))
                    || tables.may_hold(Place::of_backends(key.source())))
                && !waiting.has_waited()
                && (!waiting.begins_to_wait() || tables.may_wait())
            {
                tables.note_wait(key, known.as_ref(), &waiting);
                Verdict::Inject(tables.interface(), Reason::FragmentWaits)
            } else {
                Verdict::Pass(reason)
            };
        }
    };
    match tables.flow(&tuple) {
        Some(flow) if hook.translates(&flow) => {
            let to = flow.to(tuple.protocol());
            let family = tuple.source().addr.family();
            // Nobody complains of later fragments (RFC 1122, 3.2.2).
            match send_on(frame, tables, family, None, &to, &flow, Reason::FollowingFragment) {
                Ok(verdict) => match fragment::rewrite_addresses(frame, key, &to) {
                    Some(()) => verdict,
                    None => Verdict::Drop(Reason::Truncated),
                },
                Err(reason) => Verdict::Drop(reason),
            }
        }
        _ => Verdict::Pass(Reason::FragmentAlone),
    }
}

/// Translates an ICMP error about a packet of a flow.
#[inline(always)]
fn icmp_error<F: Frame, T: Tables>(hook: Hook, frame: &mut F, tables: &mut T) -> Verdict {
    let error = match icmp::parse(frame) {
        Ok(error) => error,
        Err(reason) => return Verdict::Pass(reason),
    };
    let tuple = error.flow();
    match tables.flow(&tuple) {
        Some(flow) if hook.translates(&flow) => {
            let to = flow.to(tuple.protocol());
            // Nor of ICMP errors.
            match send_on(frame, tables, error.family, None, &to, &flow, Reason::IcmpError) {
                Ok(verdict) => match icmp::rewrite(frame, &error, &to) {
                    Some(()) => verdict,
                    None => Verdict::Drop(Reason::Truncated),
                },
                Err(reason) => Verdict::Drop(reason),
            }
        }
        _ => Verdict::Pass(Reason::OtherProtocol),
    }
}

/// Opens a flow for a packet, if it is to a Service.
#[inline(always)]
pub(crate) fn enter<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &mut T,
    packet: &Packet,
    mut sender: Sender,
) -> Verdict {
    let (destination, protocol) = (packet.tuple.destination(), packet.tuple.protocol());
    let stale =
        tables.flow(&packet.tuple).map(|flow| (flow.state, flow.alive(protocol, tables.now(), tables)));
    let middle = protocol != Protocol::UDP && !packet.flags.opens();
    if let Some((state, true)) = stale
        && middle
        && state.direction() == Direction::Forward
    {
        // Its backend is gone, or it would have been followed: its client would wait for an answer until it
        // gives up. A reset has no answer (RFC 9293, 3.5.2).
        if packet.flags.has(TcpFlags::RST) {
            return Verdict::Drop(Reason::BackendGone);
        }
        return refuse(frame, tables, packet, sender.way(), Reason::BackendGone);
    }
    let frontend = match tables.frontend(&FrontendKey::new(destination, protocol)) {
        Some(frontend) => frontend,
        None => match tables.frontend(&FrontendKey::rest_of(destination.addr)) {
            Some(rest) => rest,
            None if sender == Sender::Net => return nobodys(tables, destination.addr),
            None => match left_behind(tables, destination, protocol) {
                Some(frontend) => {
                    if sender == Sender::Pod {
                        sender = Sender::Led;
                    }
                    frontend
                }
                None => return nobodys(tables, destination.addr),
            },
        },
    };
    if frontend.flags.has(FrontendFlags::LOOPBACK) {
        Verdict::Pass(Reason::NotService)
    } else if middle {
        // It may belong to a connection that somebody else translates since before podnet was here.
        Verdict::Pass(Reason::MidConnection)
    } else if sender == Sender::Net && is_translated(tables, &packet.tuple) {
        Verdict::Pass(Reason::NotService)
    } else {
        begin(frame, tables, packet, &frontend, stale, sender)
    }
}

/// Whether a packet from outside has got its backend already, at the network card: one that is a frontend too.
#[inline(always)]
fn is_translated<T: Tables>(tables: &T, tuple: &Tuple) -> bool {
    tables.may_hold(Place::of_backend(tuple.destination()))
        && tables.flow(&tuple.reply()).is_some_and(|flow| {
            let answers = flow.way == Way::OUTSIDE && flow.state.direction() == Direction::Reply;
            answers && flow.alive(tuple.protocol(), tables.now(), tables)
        })
}

/// What becomes of a packet to an address that no Service has, or has any more.
#[inline(always)]
fn nobodys<T: Tables>(tables: &T, addr: Addr) -> Verdict {
    if tables.in_service_network(addr) {
        Verdict::Drop(Reason::Unassigned)
    } else {
        Verdict::Pass(Reason::NotService)
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

/// Translates a packet of a living flow; `None` if the entry does not hold for it.
#[inline(always)]
pub(crate) fn follow<const SCTP: bool, F: Frame, T: Tables>(
    frame: &mut F,
    tables: &mut T,
    packet: &Packet,
    flow: &Flow,
    now: Time,
) -> Option<Verdict> {
    let protocol = packet.tuple.protocol();
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
        Direction::Forward if !tables.has(flow.backend, BackendFlags::PRESENT) => return None,
        Direction::Forward => Reason::Established,
    };
    let to = flow.to(protocol);
    let state = flow.state.after(packet.flags);
    if state != flow.state || now.since(flow.seen) >= REFRESH {
        keep(tables, &packet.tuple, flow, &to, state, now);
    }
    Some(translate::<SCTP, _, _>(frame, tables, packet, &to, &flow.seen_in(state), reason))
}

/// Whether it is time to note that a flow lives, for a datagram of its client's.
#[inline(always)]
pub(crate) fn is_due(packet: &Packet, flow: &Flow, now: Time) -> bool {
    matches!(packet.tuple.protocol(), Protocol::UDP)
        && flow.state.direction() == Direction::Forward
        && now.since(flow.seen) >= REFRESH
}

/// Whether a packet may as well go to another backend than the ones of its flow before it.
#[inline(always)]
pub(crate) const fn movable(packet: &Packet) -> bool {
    matches!(packet.tuple.protocol(), Protocol::UDP) || packet.flags.opens()
}

/// Notes in both entries of a flow what a packet has changed, and writes the other one anew if the table
/// has lost it.
#[inline(always)]
fn keep<T: Tables>(tables: &mut T, from: &Tuple, flow: &Flow, to: &Tuple, state: State, now: Time) {
    tables.touch_flow(from, state, now);
    let other = to.reply();
    // An answer says nothing of the frontend: the client's next datagram is to ask.
    let answer = from.protocol() == Protocol::UDP && flow.state.direction() == Direction::Reply;
    let seen = if answer { now.before(REFRESH) } else { now };
    let overwrite = match tables.flow(&other) {
        None => Overwrite::No,
        Some(entry) if entry.to(from.protocol()) == from.reply() => {
            let seen = if now.since(entry.seen) < REFRESH_BY_OTHER { entry.seen } else { seen };
            tables.touch_flow(&other, state, seen);
            return;
        }
        // A later flow has this one's tuple: what this one still does is no news of that one.
        Some(entry) if taken(tables, &entry, from, now) => return,
        Some(_) => Overwrite::Yes,
    };
    // A full table is no reason to lose the packet at hand: the next one tries again.
    let _ = tables.insert_flow(&other, &flow.other(from, state, seen), overwrite);
}

/// Opens a flow to a backend of `frontend`; `stale` is the state of the entry for the packet that no longer
/// holds, and whether it was alive, if there is one.
#[inline(always)]
fn begin<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &mut T,
    packet: &Packet,
    frontend: &Frontend,
    stale: Option<(State, bool)>,
    sender: Sender,
) -> Verdict {
    let (client, protocol) = (packet.tuple.source(), packet.tuple.protocol());
    if frontend.flags.has(FrontendFlags::SOURCE_RANGES) && !tables.admits(frontend.service, client.addr) {
        return Verdict::Drop(Reason::SourceRange);
    }
    let choice = match select(tables, frontend, sender.side(), &packet.tuple) {
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
        Ok(()) if protocol == Protocol::SCTP => Verdict::Sctp,
        Ok(()) => {
            let moved = stale.is_some_and(|(state, alive)| alive && !state.closed());
            let reason = if moved { Reason::Moved } else { Reason::NewFlow };
            translate::<false, _, _>(frame, tables, packet, &to, &forward, reason)
        }
        // Another CPU has opened the flow meanwhile: its choice holds.
        Err(InsertError::Exists) if protocol == Protocol::SCTP => Verdict::Sctp,
        Err(InsertError::Exists) => match tables.flow(&packet.tuple) {
            Some(flow) => translate::<false, _, _>(
                frame,
                tables,
                packet,
                &flow.to(protocol),
                &flow,
                Reason::Established,
            ),
            None => Verdict::Drop(Reason::FlowTableFull),
        },
        Err(InsertError::Full) => Verdict::Drop(Reason::FlowTableFull),
    }
}

/// Makes of a packet the refusal that its sender, on `way`, gets.
#[inline(always)]
fn refuse<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &mut T,
    packet: &Packet,
    way: Way,
    reason: Reason,
) -> Verdict {
    if !F::REFUSES {
        return Verdict::Leave;
    }
    if !tables.may_refuse() {
        return Verdict::Drop(Reason::TooManyRefusals);
    }
    match reject::reply(frame, packet) {
        Some(()) if way == Way::NODE => Verdict::Inject(tables.interface(), reason),
        Some(()) => Verdict::Return(reason),
        None => Verdict::Drop(reason),
    }
}

/// Gives a packet the tuple `to`, and sends it on as its flow's entry says.
#[inline(always)]
fn translate<const SCTP: bool, F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    packet: &Packet,
    to: &Tuple,
    flow: &Flow,
    reason: Reason,
) -> Verdict {
    match send_on(frame, tables, packet.family, Some(packet), to, flow, reason) {
        Ok(verdict) => match rewrite::<SCTP, _>(frame, packet, to) {
            Some(()) => verdict,
            None => Verdict::Drop(Reason::Truncated),
        },
        Err(Reason::Truncated) => Verdict::Drop(Reason::Truncated),
        Err(_) => Verdict::Complain,
    }
}

/// Writes the tuple `to`, of SCTP if it may be that: its checksum takes code that other programs do without.
#[inline(always)]
fn rewrite<const SCTP: bool, F: Frame>(frame: &mut F, packet: &Packet, to: &Tuple) -> Option<()> {
    match packet.tuple.protocol() {
        Protocol::SCTP if SCTP => sctp::rewrite(frame, packet, to),
        _ => nat::rewrite(frame, packet, to),
    }
}

/// Prepares a frame, of `packet` unless that has no L4 header or is an ICMP error, to go on as its flow's entry says,
/// once it has got the tuple `to`; an error is why it cannot, and the frame is as it was.
#[inline(always)]
fn send_on<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    family: Family,
    packet: Option<&Packet>,
    to: &Tuple,
    flow: &Flow,
    reason: Reason,
) -> Result<Verdict, Reason> {
    match (flow.way, flow.state.direction()) {
        _ if flow.state.hairpin() => {
            turn_around(frame).ok_or(Reason::Truncated)?;
            Ok(Verdict::Return(reason))
        }
        (Way::NODE, Direction::Reply) => {
            // Linux takes in only what is addressed to the interface it comes in by.
            frame.store(0, flow.client_mac).ok_or(Reason::Truncated)?;
            Ok(Verdict::Inject(flow.client_interface, reason))
        }
        (way, direction)
            if way == Way::MASQUERADE
                || direction == Direction::Forward && (way == Way::NODE || flow.state.at_once()) =>
        {
            let headers = match packet {
                Some(packet) => packet::headers(frame, packet).ok_or(Reason::Truncated)?,
                None => ETHERNET,
            };
            let next = tables.way_out(to, frame.longest(headers)).map_err(NoWay::reason)?;
            if flow.way == Way::MASQUERADE {
                nat::hop(frame, family).ok_or(Reason::Expired)?;
            }
            if let Some(addresses) = next.addresses {
                frame.store(0, addresses).ok_or(Reason::Truncated)?;
            }
            Ok(Verdict::Forward(next.interface, reason))
        }
        _ => Ok(Verdict::Translated(reason)),
    }
}

/// Swaps the frame's MAC addresses: it goes back to who sent it.
#[inline(always)]
pub(crate) fn turn_around<F: Frame>(frame: &mut F) -> Option<()> {
    let [destination, source]: [[Be16; 3]; 2] = frame.load(0)?;
    frame.store(0, [source, destination])
}
