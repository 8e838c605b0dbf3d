//! How many refusals a CPU sends.
//!
//! A client that is refused is told so; a flood of packets to a Service without endpoints is not to become a
//! flood of answers. Linux limits its own ICMP likewise (`icmp_msgs_per_sec`, Documentation/networking/ip-sysctl.rst).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::conntrack::Time;

/// How many refusals a CPU sends in a unit of [`Time`]: about ten thousand a second.
const REFUSALS: u32 = 670;

/// What a CPU has sent: an element of the per-CPU table of limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Limit {
    now: Time,
    sent: u32,
}

impl Limit {
    /// Counts a refusal at `now`; whether it may be sent.
    #[inline(always)]
    pub const fn take(&mut self, now: Time) -> bool {
        if self.now.0 != now.0 {
            *self = Self { now, sent: 0 };
        }
        self.sent = self.sent.saturating_add(1);
        self.sent <= REFUSALS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_answered_in_part_and_another_time_again() {
        let mut limit = Limit::default();
        assert_eq!((0..5000).filter(|_| limit.take(Time(7))).count(), REFUSALS as usize);
        assert!(limit.take(Time(8)));
    }
}
