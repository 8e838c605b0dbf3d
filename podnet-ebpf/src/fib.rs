//! Asking the kernel's routing table.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::bpf_fib_lookup as Query;
use aya_ebpf::helpers::generated::bpf_fib_lookup;
use aya_ebpf::programs::TcContext;
use podnet_common::conntrack::Tuple;
use podnet_common::tables::WayOut;
use podnet_common::wire::{Addr, Be32, Family};

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// Flags of include/uapi/linux/bpf.h: neighbours are found when the packet is sent; and the source that a
/// socket of this machine would get is told (Linux 6.7).
const BPF_FIB_LOOKUP_SKIP_NEIGH: u32 = 1 << 2;
const BPF_FIB_LOOKUP_SRC: u32 = 1 << 4;

/// How a packet to the destination of `to` leaves this node.
#[inline(always)]
pub(crate) fn way_out(ctx: &TcContext, to: &Tuple) -> Option<WayOut> {
    // SAFETY: all of the structure is numbers, for which zero is a value.
    let mut query: Query = unsafe { core::mem::zeroed() };
    let family = to.destination().addr.family();
    let (source, destination) = (to.source().addr.words(), to.destination().addr.words());
    match family {
        Family::V4 => {
            query.family = AF_INET;
            query.__bindgen_anon_3.ipv4_src = source[3].raw();
            query.__bindgen_anon_4.ipv4_dst = destination[3].raw();
        }
        Family::V6 => {
            query.family = AF_INET6;
            query.__bindgen_anon_3.ipv6_src = source.map(Be32::raw);
            query.__bindgen_anon_4.ipv6_dst = destination.map(Be32::raw);
        }
    }
    query.l4_protocol = to.protocol().0;
    // SAFETY: a field of the context.
    query.ifindex = unsafe { (*ctx.skb.skb).ifindex };
    let flags = BPF_FIB_LOOKUP_SKIP_NEIGH | BPF_FIB_LOOKUP_SRC;
    // SAFETY: a helper on this program's own context and a structure of the size that is named.
    let found = unsafe { bpf_fib_lookup(ctx.as_ptr(), &raw mut query, size_of::<Query>() as i32, flags) };
    if found != 0 {
        return None;
    }
    // SAFETY: the kernel has filled the field of the family that was asked for.
    let source = unsafe {
        match family {
            Family::V4 => Addr::v4(Be32::from_raw(query.__bindgen_anon_3.ipv4_src)),
            Family::V6 => Addr::from_words(query.__bindgen_anon_3.ipv6_src.map(Be32::from_raw)),
        }
    };
    Some(WayOut { interface: query.ifindex, source })
}
