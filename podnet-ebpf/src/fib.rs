//! Asking the kernel's routing table.

use aya_ebpf::bindings::bpf_fib_lookup as Query;
use aya_ebpf::helpers::generated::bpf_fib_lookup;
use podnet_common::conntrack::Tuple;
use podnet_common::frame::Mac;
use podnet_common::tables::{NextHop, NoWay};
use podnet_common::wire::{Addr, Be32, Family};

use crate::door::Door;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// Of include/uapi/linux/bpf.h: neighbours are found when the packet is sent; and the source that a socket of
/// this machine would get is told. Older kernels than Linux 6.3 and 6.7 refuse them.
const BPF_FIB_LOOKUP_SKIP_NEIGH: u32 = 1 << 2;
const BPF_FIB_LOOKUP_SRC: u32 = 1 << 4;
/// There is a route; who the next hop is will be found out when the packet is sent.
pub(crate) const BPF_FIB_LKUP_RET_NO_NEIGH: i64 = 7;
const EINVAL: i64 = 22;

/// What the helper says of a packet that is longer than the route takes.
const BPF_FIB_LKUP_RET_FRAG_NEEDED: i64 = 8;

/// Where a packet of `length` bytes to the destination of `to` goes next.
#[inline(always)]
pub(crate) fn way_out(ctx: &impl Door, to: &Tuple, length: u16) -> Result<NextHop, NoWay> {
    let mut query = query(ctx, to, length);
    match ask(ctx, &mut query, 0) {
        // SAFETY: the kernel has filled the field.
        BPF_FIB_LKUP_RET_FRAG_NEEDED => Err(NoWay::Mtu(unsafe { query.__bindgen_anon_1.mtu_result })),
        answered => ctx.next_hop(answered, &query).ok_or(NoWay::Unreachable),
    }
}

/// Destination and source of a frame to the next hop that was found.
#[inline(always)]
pub(crate) const fn frame_addresses(answer: &Query) -> [Mac; 2] {
    [answer.dmac, answer.smac]
}

/// This node's own address on that way.
#[inline(always)]
pub(crate) fn own_address(ctx: &impl Door, to: &Tuple) -> Option<Addr> {
    // Whatever the length: the helper asks for none of 0.
    let mut query = query(ctx, to, 0);
    if ask(ctx, &mut query, BPF_FIB_LOOKUP_SKIP_NEIGH | BPF_FIB_LOOKUP_SRC) != 0 {
        return None;
    }
    // SAFETY: the kernel has filled the field of the family that was asked for.
    Some(unsafe {
        match to.destination().addr.family() {
            Family::V4 => Addr::v4(Be32::from_raw(query.__bindgen_anon_3.ipv4_src)),
            Family::V6 => Addr::from_words(query.__bindgen_anon_3.ipv6_src.map(Be32::from_raw)),
        }
    })
}

/// Whether the kernel tells this node's own addresses, whatever they may be.
#[inline(always)]
pub(crate) fn tells_own_addresses(ctx: &impl Door) -> bool {
    // SAFETY: all of the structure is numbers, for which zero is a value.
    let mut query: Query = unsafe { core::mem::zeroed() };
    query.family = AF_INET;
    ask(ctx, &mut query, BPF_FIB_LOOKUP_SKIP_NEIGH | BPF_FIB_LOOKUP_SRC) != -EINVAL
}

#[inline(always)]
fn query(ctx: &impl Door, to: &Tuple, length: u16) -> Query {
    // SAFETY: all of the structure is numbers, for which zero is a value.
    let mut query: Query = unsafe { core::mem::zeroed() };
    let (source, destination) = (to.source().addr.words(), to.destination().addr.words());
    match to.destination().addr.family() {
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
    // Without a length the kernel would look at the device alone, not at the route, and let pass whatever is to be cut
    // into segments.
    query.__bindgen_anon_1.tot_len = length.max(1);
    query.ifindex = ctx.interface();
    query
}

#[inline(always)]
fn ask(ctx: &impl Door, query: &mut Query, flags: u32) -> i64 {
    // SAFETY: a helper on this program's own context and a structure of the size that is named.
    unsafe { bpf_fib_lookup(ctx.as_ptr(), &raw mut *query, size_of::<Query>() as i32, flags) }
}
