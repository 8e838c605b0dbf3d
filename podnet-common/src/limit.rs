//! How much of what costs more than it brings a CPU does.
//!
//! A client that is refused is told so; a flood of packets to a Service without endpoints is not to become a
//! flood of answers. Linux limits its own ICMP likewise (`icmp_msgs_per_sec`,
//! Documentation/networking/ip-sysctl.rst). And a flood of fragments that wait for others is not to keep the CPU from
//! its work.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::conntrack::Time;

/// How many refusals a CPU sends in a unit of [`Time`]: about ten thousand a second.
const REFUSALS: u32 = 670;
/// How many fragments begin to wait in that time: about a thousand a second.
const WAITS: u32 = 67;

/// What a CPU has done: the element of the per-CPU table of limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Limit {
    now: Time,
    refusals: u32,
    waits: u32,
}

impl Limit {
    /// Counts a refusal at `now`; whether it may be sent.
    #[inline(always)]
    pub const fn take_refusal(&mut self, now: Time) -> bool {
        self.begin(now);
        self.refusals = self.refusals.saturating_add(1);
        self.refusals <= REFUSALS
    }

    /// Counts a fragment that begins to wait at `now`; whether it may.
    #[inline(always)]
    pub const fn take_wait(&mut self, now: Time) -> bool {
        self.begin(now);
        self.waits = self.waits.saturating_add(1);
        self.waits <= WAITS
    }

    #[inline(always)]
    const fn begin(&mut self, now: Time) {
        if self.now.0 != now.0 {
            *self = Self { now, refusals: 0, waits: 0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_answered_in_part_and_another_time_again() {
        let mut limit = Limit::default();
        assert_eq!((0..5000).filter(|_| limit.take_refusal(Time(7))).count(), REFUSALS as usize);
        assert_eq!((0..5000).filter(|_| limit.take_wait(Time(7))).count(), WAITS as usize);
        assert!(limit.take_refusal(Time(8)) && limit.take_wait(Time(8)));
    }
}
