//! Choosing a backend for a new connection.
//!
//! The choice is a slot, drawn uniformly. What the slots hold is user space's business: equal shares,
//! weights or a permutation of them all are tables, not code.

use crate::service::{Backend, BackendId, BackendRef, SlotRange};
use crate::tables::Services;
use crate::wire::Endpoint;

/// The backend chosen for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Where it is.
    pub endpoint: Endpoint,
    /// How flows remember it.
    pub backend: BackendRef,
}

/// Draws a backend of `slots`; `None` if there is none.
#[inline(always)]
pub fn select<S: Services>(services: &mut S, slots: SlotRange) -> Option<Choice> {
    if slots.count == 0 {
        return None;
    }
    // Multiply and shift: uniform without a division (Lemire, "Fast random integer generation in an
    // interval"); the bias of count / 2^32 is beyond measuring.
    let drawn = (u64::from(services.random()) * u64::from(slots.count)) >> 32;
    let id = services.slot(slots.base.wrapping_add(drawn as u32)).filter(|id| *id != BackendId::NOBODY)?;
    let backend: Backend = services.backend(id)?;
    Some(Choice { endpoint: backend.endpoint(), backend: BackendRef { id, generation: backend.generation } })
}
