//! Counting what happens.

use podnet_common::verdict::{Layer, Reason};

use crate::maps::COUNTERS;

/// Counts one packet or socket call.
#[inline(always)]
pub(crate) fn count(layer: Layer, reason: Reason) {
    if let Some(counter) = COUNTERS.get_ptr_mut(layer.counter(reason)) {
        // SAFETY: the element is this CPU's own, and programs on it do not interrupt each other in the
        // middle of an addition that matters: a lost count is harmless.
        unsafe { *counter += 1 };
    }
}
