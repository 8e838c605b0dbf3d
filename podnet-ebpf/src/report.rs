//! Counting what happens.

use podnet_common::verdict::Reason;

use crate::maps::COUNTERS;

/// Counts one packet or socket call.
#[inline(always)]
pub(crate) fn count(reason: Reason) {
    if let Some(counter) = COUNTERS.get_ptr_mut(reason as u32) {
        // SAFETY: the element is this CPU's own, and programs on it do not interrupt each other in the
        // middle of an addition that matters: a lost count is harmless.
        unsafe { *counter += 1 };
    }
}
