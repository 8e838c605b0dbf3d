//! The door to a frame's bytes at a network card.

use core::ffi::c_void;

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::generated::bpf_xdp_get_buff_len;
use aya_ebpf::programs::XdpContext;
use podnet_common::frame::{Frame, L4Patch, patch_field};
use podnet_common::packet::ETHERNET;
use podnet_common::wire::Be16;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::frame;

/// A network card at which a frame is met.
pub(crate) struct Card<'a> {
    ctx: &'a XdpContext,
    /// Read once: the compiler would keep a pointer to the context's field, which the verifier does not let it use.
    pub(crate) interface: u32,
}

impl<'a> Card<'a> {
    /// The card of a program's context.
    #[inline(always)]
    pub(crate) fn new(ctx: &'a XdpContext) -> Self {
        // SAFETY: a field of the context.
        let interface = unsafe { (*ctx.ctx).ingress_ifindex };
        Self { ctx, interface }
    }
}

impl EbpfContext for Card<'_> {
    #[inline(always)]
    fn as_ptr(&self) -> *mut c_void {
        self.ctx.as_ptr()
    }
}

/// A frame at an XDP hook. Its headers lie in one piece, and its checksums are taken for whole: programs are not told
/// that those of a frame from this machine, over a veth or from a virtual machine, need not be.
pub(crate) struct XdpFrame<'a>(pub(crate) &'a XdpContext);

impl XdpFrame<'_> {
    /// Where `T` stands at `offset`, if it does in whole.
    #[inline(always)]
    fn at<T>(&self, offset: usize) -> Option<*mut T> {
        frame::at(self.0.data(), self.0.data_end(), offset)
    }
}

impl Frame for XdpFrame<'_> {
    // The node's stack does, which has the limits for that.
    const REFUSES: bool = false;

    #[inline(always)]
    fn load<T: FromBytes + Immutable + Copy>(&self, offset: usize) -> Option<T> {
        // SAFETY: `at` has compared with the end of the packet, which the verifier checks again, and any
        // bytes are a `T`. Packets are not aligned; BPF loads need not be.
        self.at::<T>(offset).map(|place| unsafe { *place })
    }

    #[inline(always)]
    fn store<T: IntoBytes + Immutable + Copy>(&mut self, offset: usize, value: T) -> Option<()> {
        // SAFETY: as in `load`; a program may write to its packet.
        self.at::<T>(offset).map(|place| unsafe { *place = value })
    }

    #[inline(always)]
    fn place(&self, offset: usize) -> Option<usize> {
        frame::place(offset)
    }

    #[inline(always)]
    fn patch_l4(&mut self, patch: &L4Patch) -> Option<()> {
        let offset = self.place(patch.offset)?;
        let field: Be16 = self.load(offset)?;
        self.store(offset, patch_field(field, patch))
    }

    #[inline(always)]
    fn longest(&self, _headers: usize) -> u16 {
        // SAFETY: a helper on this program's own context.
        let length = unsafe { bpf_xdp_get_buff_len(self.0.ctx) };
        // One that was put together of others is as long as all of them, and left to who can take it apart.
        u16::try_from(length as u32 - ETHERNET as u32).unwrap_or(u16::MAX)
    }

    #[inline(always)]
    fn resize(&mut self, _len: usize) -> Option<()> {
        None
    }
}
