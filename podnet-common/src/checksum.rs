//! Internet checksums, whole (RFC 1071) and by difference (RFC 1624).
//!
//! Sums are taken over 16-bit words as they stand in memory: the ones' complement sum does not depend on
//! byte order (RFC 1071, 2(B)), so nothing is swapped.

use crate::wire::{Addr, Be16};

/// A ones' complement sum that has not been folded to 16 bits yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum(u64);

impl Sum {
    /// The empty sum.
    pub const ZERO: Self = Self(0);

    /// Adds a 16-bit word.
    #[inline(always)]
    #[must_use]
    pub const fn word(self, word: Be16) -> Self {
        Self(self.0 + word.raw() as u64)
    }

    /// Adds 32 bits as they stand in memory.
    #[inline(always)]
    #[must_use]
    pub const fn double_word(self, raw: u32) -> Self {
        Self(self.0 + raw as u64)
    }

    /// Adds an address. The mapped prefix of an IPv4 address is left out, as a packet does.
    #[inline(always)]
    #[must_use]
    pub fn addr(self, addr: Addr) -> Self {
        let [a, b, c, d] = addr.words();
        match addr.family() {
            crate::wire::Family::V4 => self.double_word(d.raw()),
            crate::wire::Family::V6 => {
                self.double_word(a.raw()).double_word(b.raw()).double_word(c.raw()).double_word(d.raw())
            }
        }
    }

    /// This sum and another one.
    #[inline(always)]
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// The sum over the same bytes if they began a byte later in the words (RFC 1071, 2(B)).
    #[inline(always)]
    #[must_use]
    pub const fn swapped(self) -> Self {
        Self(self.fold().swap_bytes() as u64)
    }

    /// The sum in 32 bits, as the kernel's `__wsum`.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "folded before")]
    pub const fn wide(self) -> u32 {
        let once = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        ((once & 0xffff_ffff) + (once >> 32)) as u32
    }

    /// The sum folded to 16 bits.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "folded before")]
    pub const fn fold(self) -> u16 {
        let wide = self.wide();
        let once = (wide & 0xffff) + (wide >> 16);
        ((once & 0xffff) + (once >> 16)) as u16
    }

    /// The checksum field whose packet sums up to this.
    #[inline(always)]
    pub const fn finish(self) -> Be16 {
        Be16::from_raw(!self.fold())
    }
}

/// What a change of some words changes in the sum over them: `~old + new` of RFC 1624's equation 3.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delta(Sum);

impl Delta {
    /// No change.
    pub const NONE: Self = Self(Sum::ZERO);

    /// `old` becomes `new`. A word that stays leaves [`NONE`](Self::NONE) as it is, so that no work is
    /// done for it.
    #[inline(always)]
    #[must_use]
    pub const fn word(self, old: Be16, new: Be16) -> Self {
        if old.raw() == new.raw() {
            return self;
        }
        Self(Sum(self.0.0 + (!old.raw()) as u64 + new.raw() as u64))
    }

    /// 32 bits, as they stand in memory, become others.
    #[inline(always)]
    #[must_use]
    pub const fn double_word(self, old: u32, new: u32) -> Self {
        Self(Sum(self.0.0 + (!old) as u64 + new as u64))
    }

    /// `old` becomes `new`, of the same family.
    #[inline(always)]
    #[must_use]
    pub fn addr(self, old: Addr, new: Addr) -> Self {
        let mut sum = self.0.0;
        let (old, new) = (old.words(), new.words());
        let mut i = 0;
        while i < 4 {
            // The mapped prefixes of two IPv4 addresses are equal: x + ~x is the zero of this sum.
            sum += u64::from(!old[i].raw()) + u64::from(new[i].raw());
            i += 1;
        }
        Self(Sum(sum))
    }

    /// What sums up to `added` comes in the place of zeroes, or of nothing.
    #[inline(always)]
    #[must_use]
    pub const fn sum(self, added: Sum) -> Self {
        Self(self.0.and(added))
    }

    /// This change and another one.
    #[inline(always)]
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(Sum(self.0.0 + other.0.0))
    }

    /// The change as the kernel's `__wsum`, for `bpf_l4_csum_replace`.
    #[inline(always)]
    pub const fn wide(self) -> u32 {
        self.0.wide()
    }

    /// The checksum field after the change.
    #[inline(always)]
    pub const fn apply(self, field: Be16) -> Be16 {
        Sum(self.0.0 + (!field.raw()) as u64).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    fn whole(words: &[u16]) -> Be16 {
        words.iter().fold(Sum::ZERO, |sum, word| sum.word(Be16::new(*word))).finish()
    }

    #[test]
    fn rfc_1071_example() {
        // RFC 1071, section 3: 00 01 f2 03 f4 f5 f6 f7 sums up to ddf2.
        assert_eq!(whole(&[0x0001, 0xf203, 0xf4f5, 0xf6f7]), Be16::new(!0xddf2));
    }

    proptest! {
        #[test]
        fn a_delta_gives_what_a_whole_sum_gives(
            words in proptest::collection::vec(any::<u16>(), 2..40), at in any::<prop::sample::Index>(), new: u16,
        ) {
            let before = whole(&words);
            let mut after: Vec<u16> = words.clone();
            let i = at.index(words.len());
            after[i] = new;
            let patched = Delta::NONE.word(Be16::new(words[i]), Be16::new(new)).apply(before);
            // 0 and ffff are the same number in ones' complement.
            let zero = |sum: Be16| if sum.get() == 0xffff { 0 } else { sum.get() };
            prop_assert_eq!(zero(patched), zero(whole(&after)));
        }
    }
}
