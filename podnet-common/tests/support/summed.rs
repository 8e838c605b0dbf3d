//! The sum over a frame that a device may have left beside it (`CHECKSUM_COMPLETE`).

use podnet_common::checksum::Delta;
use podnet_common::frame::{Frame, L4Patch};
use podnet_common::packet::ETHERNET;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// A frame that follows the sum over its bytes, as a device may have left it to the kernel.
#[derive(Clone)]
pub(crate) struct Summed {
    pub(crate) bytes: Vec<u8>,
    pub(crate) change: Delta,
}

impl Summed {
    pub(crate) fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, change: Delta::NONE }
    }
}

impl Frame for Summed {
    fn load<T: FromBytes + Immutable + Copy>(&self, offset: usize) -> Option<T> {
        self.bytes.load(offset)
    }

    fn store<T: IntoBytes + Immutable + Copy>(&mut self, offset: usize, value: T) -> Option<()> {
        self.bytes.store(offset, value)
    }

    fn patch_l4(&mut self, patch: &L4Patch) -> Option<()> {
        self.bytes.patch_l4(patch)
    }

    fn note_change(&mut self, change: Delta) {
        self.change = self.change.and(change);
    }

    fn longest(&self, headers: usize) -> u16 {
        self.bytes.longest(headers)
    }

    fn resize(&mut self, len: usize) -> Option<()> {
        Frame::resize(&mut self.bytes, len)
    }
}

/// The ones' complement sum over what is behind the Ethernet header.
pub(crate) fn sum(frame: &[u8]) -> u64 {
    frame[ETHERNET..]
        .chunks(2)
        .map(|word| u64::from(u16::from_ne_bytes([word[0], word.get(1).copied().unwrap_or(0)])))
        .sum()
}
