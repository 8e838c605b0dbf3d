//! Choosing a backend for a new connection.
//!
//! The choice is a slot, drawn uniformly or told by a hash, unless the client is remembered. What the slots hold is
//! user space's business: equal shares, weights or a permutation of them all are tables, not code.

use crate::affinity::{Affinity, AffinityKey};
use crate::conntrack::Tuple;
use crate::maglev;
use crate::service::{
    Algorithm, Backend, BackendFlags, BackendId, BackendRef, Frontend, FrontendFlags, FrontendKind, SlotRange,
};
use crate::tables::Services;
use crate::wire::{Be16, Endpoint};

/// The backend chosen for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Where it is.
    pub endpoint: Endpoint,
    /// How flows remember it.
    pub backend: BackendRef,
    /// Whether it is on this node.
    pub local: bool,
}

/// From which side a connection comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// From a pod of this node, or from the node itself.
    Inside,
    /// From anywhere else.
    Outside,
}

/// Why a connection gets no backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nobody {
    /// No endpoint can serve: the client is refused.
    NoEndpoints,
    /// The address has no such port: the client is refused.
    NoPort,
    /// Endpoints elsewhere could serve and the traffic policy forbids it: the packet is dropped.
    NoneLocal,
}

/// The backend of `frontend` for a new connection with a first packet of `tuple`, coming from `side`.
///
/// A client that is remembered gets the backend it had, if that is still in the set that is to be chosen
/// from. A choice is remembered from now on, another time each time: by new connections, not by packets.
///
/// # Errors
/// [`Nobody`] if there is none.
#[inline(always)]
pub fn select<S: Services>(
    services: &mut S,
    frontend: &Frontend,
    side: Side,
    tuple: &Tuple,
) -> Result<Choice, Nobody> {
    let (slots, local, drop) = match side {
        Side::Inside => (frontend.inside, FrontendFlags::INSIDE_LOCAL, FrontendFlags::INSIDE_DROP),
        Side::Outside => (frontend.outside, FrontendFlags::OUTSIDE_LOCAL, FrontendFlags::OUTSIDE_DROP),
    };
    let nobody = if frontend.flags.has(drop) {
        Nobody::NoneLocal
    } else if matches!(frontend.kind, FrontendKind::CLUSTER_IP_REST) {
        Nobody::NoPort
    } else {
        Nobody::NoEndpoints
    };
    if frontend.affinity == 0 {
        let number = number(services, frontend, side, tuple);
        return at(services, slots, number).ok_or(nobody);
    }
    let set = if frontend.flags.has(local) { BackendFlags::IN_LOCAL } else { BackendFlags::IN_CLUSTER };
    let client = tuple.source();
    let key = AffinityKey::new(frontend.service, client.addr);
    let now = services.now();
    let remembered = services.affinity(&key).filter(|affinity| affinity.holds(frontend.affinity, now));
    let choice = match remembered.and_then(|affinity| recall(services, affinity.backend, set)) {
        Some(choice) => choice,
        None => {
            // Nodes that have not seen the client before send it where the others do.
            let anywhere = Endpoint { port: Be16::new(0), ..client };
            let tuple = Tuple::between(anywhere, tuple.destination(), tuple.protocol());
            let number = number(services, frontend, side, &tuple);
            at(services, slots, number).ok_or(nobody)?
        }
    };
    services.remember_client(&key, &Affinity::new(choice.backend, now));
    Ok(choice)
}

/// The backend that was chosen before, if it is still the same and in the set.
#[inline(always)]
fn recall<S: Services>(services: &S, remembered: BackendRef, set: BackendFlags) -> Option<Choice> {
    let backend = services.backend(remembered.id)?;
    let valid = backend.generation == remembered.generation && backend.flags.has(set);
    valid.then(|| choice(remembered.id, &backend))
}

/// What says which slot: any number is as likely as any other.
#[inline(always)]
fn number<S: Services>(services: &mut S, frontend: &Frontend, side: Side, tuple: &Tuple) -> u32 {
    match side {
        Side::Outside if frontend.algorithm == Algorithm::MAGLEV => maglev::hash(tuple),
        _ => services.random(),
    }
}

/// The backend of the slot that `number` says; `None` if there is none.
#[inline(always)]
fn at<S: Services>(services: &S, slots: SlotRange, number: u32) -> Option<Choice> {
    if slots.count == 0 {
        return None;
    }
    // Multiply and shift: uniform without a division (Lemire, "Fast random integer generation in an
    // interval"); the bias of count / 2^32 is beyond measuring.
    let slot = (u64::from(number) * u64::from(slots.count)) >> 32;
    let id = services.slot(slots.base.wrapping_add(slot as u32)).filter(|id| *id != BackendId::NOBODY)?;
    // Generations count from 1: a place without one was never given out.
    let backend = services.backend(id).filter(|backend| backend.generation != 0)?;
    Some(choice(id, &backend))
}

#[inline(always)]
const fn choice(id: BackendId, backend: &Backend) -> Choice {
    Choice {
        endpoint: backend.endpoint(),
        backend: BackendRef { id, generation: backend.generation },
        local: backend.flags.has(BackendFlags::LOCAL),
    }
}
