//! CRC32c (Castagnoli) by difference.
//!
//! A CRC is linear: that of changed bytes differs from that of the old ones by the CRC, without initial and
//! final inversion, of the difference of both. Where that difference is a few bytes followed by zeroes, its
//! CRC is those bytes, as a polynomial over GF(2), times a power of x that depends on how many follow.

/// The polynomial without its highest power, reflected: bit 31 is the coefficient of x^0.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// What so many more bytes multiply by: x^(8 * n) for `n` in 0..256, and for its multiples by 256. One table
/// entry for each byte of a length, not for each bit, leaves the kernel two multiplications of a few hundred
/// instructions instead of sixteen.
static POWERS: [[u32; 256]; 2] = {
    let mut powers = [[1 << 31; 256]; 2];
    let mut step = powers[0][0] >> 8;
    let mut digit = 0;
    while digit < 2 {
        let mut n = 1;
        while n < 256 {
            powers[digit][n] = multiply(powers[digit][n - 1], step);
            n += 1;
        }
        step = multiply(powers[digit][255], step);
        digit += 1;
    }
    powers
};

/// The product modulo the polynomial, without branches: the kernel's verifier would walk through both sides of
/// each.
#[inline(always)]
const fn multiply(mut a: u32, mut b: u32) -> u32 {
    let mut product = 0;
    let mut bit = 0;
    while bit < 32 {
        product ^= a & (b >> 31).wrapping_neg();
        b <<= 1;
        a = a >> 1 ^ POLYNOMIAL & (a & 1).wrapping_neg();
        bit += 1;
    }
    product
}

/// What a change of four bytes changes in the CRC of `length` bytes that start with them: `difference` is the
/// exclusive or of old and new bytes, read as a little-endian number. To be applied by exclusive or.
///
/// A function of its own in the kernel too: a program has more use for the registers.
#[inline(never)]
pub fn change(difference: u32, length: u16) -> u32 {
    let [low, high] = length.to_le_bytes();
    multiply(multiply(difference, POWERS[0][usize::from(low)]), POWERS[1][usize::from(high)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crc::{CRC_32_ISCSI, Crc};
    use proptest::prelude::*;
    use std::vec::Vec;

    const CRC32C: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

    fn changed(old: &[u8], start: [u8; 4]) -> (Vec<u8>, u32) {
        let mut new = old.to_vec();
        new[..4].copy_from_slice(&start);
        let number = |bytes: &[u8]| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let difference = number(old) ^ number(&new);
        (new, difference)
    }

    #[test]
    fn every_bit_of_the_length_counts() {
        for length in (4..300).chain((2..16).map(|i| 1 << i)).chain([1499, 1500, 9000, 65_535]) {
            let old: Vec<u8> = (0..length).map(|i: usize| i.to_le_bytes()[0]).collect();
            let (new, difference) = changed(&old, [0xff, 0x80, 0x01, 0x7f]);
            let patched = CRC32C.checksum(&old) ^ change(difference, u16::try_from(length).unwrap());
            assert_eq!(patched, CRC32C.checksum(&new), "{length} bytes");
        }
    }

    proptest! {
        #[test]
        fn a_change_gives_what_a_whole_crc_gives(
            old in proptest::collection::vec(any::<u8>(), 4..3000), start: [u8; 4],
        ) {
            let (new, difference) = changed(&old, start);
            let patched = CRC32C.checksum(&old) ^ change(difference, u16::try_from(old.len()).unwrap());
            prop_assert_eq!(patched, CRC32C.checksum(&new));
        }
    }
}
