//! The door to a packet's bytes.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::checksum::Delta;
use crate::wire::Be16;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// How the L4 checksum of a frame has to change.
///
/// An intent, not bytes: an skb may carry a *partial* checksum, of the pseudo header only, to be completed
/// by the device, and only the kernel's helpers know. A frame in plain memory applies it by
/// [`patch_field`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct L4Patch {
    /// Where the checksum field is, in bytes from the start of the frame.
    pub offset: usize,
    /// The change of the pseudo header's addresses.
    pub addresses: Delta,
    /// The change of the ports, or of whatever else the checksum covers and the packet holds.
    pub ports: Delta,
    /// UDP: a field of 0 means "no checksum" and stays (RFC 768); a result of 0 is written as ffff.
    pub udp: bool,
    /// The pseudo header is that of IPv6.
    pub v6: bool,
}

/// An Ethernet frame that the core reads and changes.
///
/// All offsets count from the first byte of the Ethernet header. Methods that name bytes outside the
/// frame return `None` and change nothing.
pub trait Frame {
    /// Whether refusals are made of such frames; where not, they are left to who can.
    const REFUSES: bool = true;

    /// Reads a `T` at `offset`.
    fn load<T: FromBytes + Immutable + Copy>(&self, offset: usize) -> Option<T>;

    /// An offset that was found in the frame and kept for a while; `None` if it is beyond all headers.
    ///
    /// To be asked before the offset is used: the kernel's verifier forgets what it knew of a number when
    /// the compiler keeps it in pieces.
    #[inline(always)]
    fn place(&self, offset: usize) -> Option<usize> {
        Some(offset)
    }

    /// Whether the frame belongs to a VLAN of the interface that it is at: it has a tag (IEEE 802.1Q), kept beside
    /// its bytes, of another VLAN than 0, which says no more than a priority.
    #[inline(always)]
    fn is_tagged(&self) -> bool {
        false
    }

    /// Writes a `T` at `offset`.
    fn store<T: IntoBytes + Immutable + Copy>(&mut self, offset: usize, value: T) -> Option<()>;

    /// Carries out `patch`. The last change of a frame: in the kernel it ends access to the bytes.
    fn patch_l4(&mut self, patch: &L4Patch) -> Option<()>;

    /// Notes that the frame's bytes have changed by `change`, which no checksum within them makes up for: a
    /// device may have left their sum beside the frame.
    #[inline(always)]
    fn note_change(&mut self, _change: Delta) {}

    /// How long the longest packet is that a device makes of the frame, without its Ethernet header: it may cut a
    /// frame whose headers end at `headers` into segments.
    fn longest(&self, headers: usize) -> u16;

    /// Makes the first `length` bytes readable, or as many as there are, where a frame need not lie in one
    /// piece.
    #[inline(always)]
    fn gather(&mut self, _length: usize) {}

    /// Cuts the frame to `len` bytes, or grows it with zeroes.
    fn resize(&mut self, len: usize) -> Option<()>;
}

/// The checksum field after `patch`, where the whole checksum is in the packet.
#[inline(always)]
pub fn patch_field(field: Be16, patch: &L4Patch) -> Be16 {
    if patch.udp && field.raw() == 0 {
        return field;
    }
    let patched = patch.ports.apply(patch.addresses.apply(field));
    if patch.udp && patched.raw() == 0 { Be16::from_raw(0xffff) } else { patched }
}
