//! The door to an skb's bytes, and what it has in common with that of other frames.

use aya_ebpf::bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR};
use aya_ebpf::helpers::generated::{bpf_csum_update, bpf_l4_csum_replace, bpf_skb_change_tail};
use aya_ebpf::programs::TcContext;
use podnet_common::checksum::Delta;
use podnet_common::frame::{Frame, L4Patch};
use podnet_common::packet::{ETHERNET, ETHERTYPE_IPV6, IPV4, IPV6};
use podnet_common::wire::Protocol;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// `BPF_F_IPV6` of Linux 6.16 (include/uapi/linux/bpf.h): the pseudo header is IPv6's, whose addresses no
/// header checksum covers. Older kernels refuse the flag.
const BPF_F_IPV6: u64 = 1 << 7;

/// The shortest frame that could be ours: the last fragment of a packet, with a byte of it.
const SHORTEST: usize = ETHERNET + IPV4 + 1;
/// What frames hold of headers at least, unless they are such fragments: Ethernet, IP, and a UDP header behind
/// IPv4 or a TCP header behind IPv6.
const LEAST: usize = ETHERNET + IPV4 + 8;
const LEAST_V6: usize = ETHERNET + IPV6 + 20;
/// How far from the start of a frame a header may stand.
const FARTHEST: usize = 1023;
/// How much is made readable of a frame whose headers do not lie in one piece.
const HEADERS: u32 = 128;

/// Where `T` stands at `offset` of the bytes from `data` to `end`, if it does in whole.
#[inline(always)]
pub(crate) fn at<T>(data: usize, end: usize, offset: usize) -> Option<*mut T> {
    let start = data + offset;
    (start + size_of::<T>() <= end).then_some(start as *mut T)
}

/// [`Frame::place`] of any frame.
#[inline(always)]
pub(crate) fn place(offset: usize) -> Option<usize> {
    // SAFETY: reads a local variable, in a way that the compiler has to believe.
    let offset = unsafe { (&raw const offset).read_volatile() };
    (offset <= FARTHEST).then_some(offset)
}

/// An skb at a tc hook.
pub(crate) struct Skb<'a>(&'a TcContext);

impl<'a> Skb<'a> {
    /// The frame of `ctx`; `None` if it is too short to be podnet's.
    ///
    /// The headers of what local sockets send lie in one piece, but nothing else need: the data of a large
    /// packet, and the headers too of one that a driver has put together of pages.
    #[inline(always)]
    pub(crate) fn new(ctx: &'a TcContext) -> Option<Self> {
        let frame = Self(ctx);
        if !frame.holds(LEAST) {
            if (ctx.len() as usize) < SHORTEST {
                return None;
            }
            frame.pull()?;
        }
        if frame.load(12) == Some(ETHERTYPE_IPV6) && !frame.holds(LEAST_V6) && !frame.is_sctp_v6() {
            frame.pull()?;
        }
        Some(frame)
    }

    /// Whether an SCTP header follows that of IPv6. It lies in one piece, but the chunks behind it may each be
    /// an skb of their own, for a device to send apart: none must move to the header.
    #[inline(always)]
    fn is_sctp_v6(&self) -> bool {
        self.load(ETHERNET + 6) == Some(Protocol::SCTP)
    }

    /// Whether the first `length` bytes can be read.
    #[inline(always)]
    fn holds(&self, length: usize) -> bool {
        self.0.data() + length <= self.0.data_end()
    }

    /// Makes the headers readable.
    #[inline(always)]
    fn pull(&self) -> Option<()> {
        self.0.pull_data(self.0.len().min(HEADERS)).ok()
    }

    /// Where `T` stands at `offset`, if it does in whole.
    #[inline(always)]
    fn at<T>(&self, offset: usize) -> Option<*mut T> {
        at(self.0.data(), self.0.data_end(), offset)
    }
}

impl Frame for Skb<'_> {
    #[inline(always)]
    fn load<T: FromBytes + Immutable + Copy>(&self, offset: usize) -> Option<T> {
        // SAFETY: `at` has compared with the end of the packet, which the verifier checks again, and any
        // bytes are a `T`. Packets are not aligned; BPF loads need not be.
        self.at::<T>(offset).map(|place| unsafe { *place })
    }

    #[inline(always)]
    fn is_tagged(&self) -> bool {
        /// The bits of a tag that are the VLAN's number (include/uapi/linux/if_vlan.h).
        const VLAN: u32 = 0x0fff;
        let skb = self.0.skb.skb;
        // SAFETY: fields of the context.
        unsafe { (*skb).vlan_present != 0 && (*skb).vlan_tci & VLAN != 0 }
    }

    #[inline(always)]
    fn store<T: IntoBytes + Immutable + Copy>(&mut self, offset: usize, value: T) -> Option<()> {
        // SAFETY: as in `load`; a program may write to its packet.
        self.at::<T>(offset).map(|place| unsafe { *place = value })
    }

    #[inline(always)]
    fn place(&self, offset: usize) -> Option<usize> {
        place(offset)
    }

    #[inline(always)]
    fn patch_l4(&mut self, patch: &L4Patch) -> Option<()> {
        let mangled = if patch.udp { u64::from(BPF_F_MARK_MANGLED_0) } else { 0 };
        let pseudo = u64::from(BPF_F_PSEUDO_HDR) | mangled;
        if patch.v6 {
            if !self.replace(patch.offset, patch.addresses, pseudo | BPF_F_IPV6)
                && !self.replace(patch.offset, patch.addresses, pseudo)
            {
                return None;
            }
        } else if !self.replace(patch.offset, patch.addresses, pseudo) {
            return None;
        }
        (patch.ports == Delta::NONE || self.replace(patch.offset, patch.ports, mangled)).then_some(())
    }

    #[inline(always)]
    fn note_change(&mut self, change: Delta) {
        // SAFETY: a helper on this program's own context; it refuses an skb without such a sum.
        unsafe { bpf_csum_update(self.0.skb.skb, change.wide()) };
    }

    #[inline(always)]
    fn longest(&self, headers: usize) -> u16 {
        /// `GSO_BY_FRAGS` (include/linux/skbuff.h): SCTP's chunks, each of a packet's size.
        const BY_FRAGMENTS: u32 = 0xffff;
        // SAFETY: fields of the context.
        let (length, segment) = unsafe { ((*self.0.skb.skb).len, (*self.0.skb.skb).gso_size) };
        let frame = match segment {
            0 => length,
            BY_FRAGMENTS => headers as u32,
            segment => headers as u32 + segment,
        };
        (frame - ETHERNET as u32) as u16
    }

    #[inline(always)]
    fn gather(&mut self, length: usize) {
        if !self.holds(length) {
            // What could not be gathered is missed when it is loaded.
            let _ = self.0.pull_data(self.0.len().min(length as u32));
        }
    }

    #[inline(always)]
    fn resize(&mut self, len: usize) -> Option<()> {
        // SAFETY: a helper on this program's own context.
        let done = unsafe { bpf_skb_change_tail(self.0.skb.skb, u32::try_from(len).ok()?, 0) };
        (done == 0).then_some(())
    }
}

impl Skb<'_> {
    /// Changes the checksum at `offset` by `delta`: a size of 0 in the flags means that a difference is
    /// given (`bpf_l4_csum_replace` in net/core/filter.c).
    #[inline(always)]
    fn replace(&self, offset: usize, delta: Delta, flags: u64) -> bool {
        // SAFETY: a helper on this program's own context; it checks the offset.
        unsafe { bpf_l4_csum_replace(self.0.skb.skb, offset as u32, 0, u64::from(delta.wide()), flags) == 0 }
    }
}
